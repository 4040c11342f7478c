"""The budget of a trace: how long threads may be stopped, and which probe is switched off.

Does not need gdb.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from virtrace.plan.model import AnySite, LineSite, SpanSite
from virtrace.recipe.model import Recipe
from virtrace.recipe.selection import Limits

_SECOND_NS = 1_000_000_000
_LINE, _POINT, _SPAN, _ROOT = range(4)


class Switch(NamedTuple):
    """What is switched off together: all lines of a function, a point with its answer, or a span.

    Switches compare by worth: the smallest is switched off first.
    """

    worth: int
    name: str

    @property
    def kind(self) -> str:
        return ("line", "point", "span", "span")[self.worth]


class Budget:
    """How long calls and threads were held, and which probes are switched off beyond the limits."""

    def __init__(self, limits: Limits, recipe: Recipe, cost: str = "threads were stopped") -> None:
        """cost: what takes the time, in words."""
        self._limits = limits
        self._cost = cost
        self._asked = {point.name: point.answers.point for point in recipe.points if point.answers}
        # Nothing is recorded any more if all of these are gone.
        self.beginnings = {Switch(_ROOT, span.name) for span in recipe.roots} | {
            Switch(_POINT, point.name)
            for point in recipe.points
            if point.anywhere and not point.answers
        }
        self._set: set[Switch] = set()
        self._gone: set[Switch] = set()
        self._calls: dict[int, Counter[Switch]] = {}
        self._second: Counter[Switch] = Counter()
        self._second_began_ns = 0

    def switch(self, site: AnySite) -> Switch:
        """Make the switch of a site that will be probed."""
        switch = self._switch(site)
        self._set.add(switch)
        return switch

    def _switch(self, site: AnySite) -> Switch:
        if isinstance(site, LineSite):
            return Switch(_LINE, site.probe)
        if isinstance(site, SpanSite):
            return Switch(_ROOT if site.root else _SPAN, site.probe)
        return Switch(_POINT, self._asked.get(site.probe, site.probe))

    @property
    def is_spent(self) -> bool:
        """Whether everything is switched off without which nothing is recorded."""
        return not self._set & self.beginnings - self._gone

    def spend(
        self, switch: Switch, ns: int, t_ns: int, tid: int, in_call: bool
    ) -> tuple[Switch, str] | None:
        """Count the time that a stop of the process took; return what to switch off, and why.

        ns: duration of the stop.
        t_ns: end of the stop.
        tid: the thread that hit the probe.
        in_call: whether that thread is still in a call.
        """
        if switch in self._gone:
            return None
        if t_ns - self._second_began_ns >= _SECOND_NS:
            self._second.clear()
            self._second_began_ns = t_ns
        self._second[switch] += ns
        if in_call:
            call = self._calls.setdefault(tid, Counter())
            call[switch] += ns
            gone = self._over(call, self._limits.stop_ms * 1e6)
            if gone is not None:
                self._forget(gone)
                return gone, f"a call was held for more than {self._limits.stop_ms:g} ms in total"
        else:
            self._calls.pop(tid, None)
        gone = self._over(self._second, self._limits.load / 100 * _SECOND_NS)
        if gone is not None:
            self._forget(gone)
            share = f"{self._limits.load:g} % of a second"
            return gone, f"{self._cost} for more than {share}"
        return None

    def _forget(self, switch: Switch) -> None:
        """Stop counting what a switch costs: the rest may be cheap enough."""
        self._gone.add(switch)
        for spent in (self._second, *self._calls.values()):
            del spent[switch]

    def _over(self, spent: Counter[Switch], limit_ns: float) -> Switch | None:
        """Return the least valuable switch among those that cost anything, if over the limit."""
        if sum(spent.values()) <= limit_ns:
            return None
        gone = min(spent, key=lambda switch: (switch.worth, -spent[switch]))
        if gone.worth == _ROOT and (others := self._set - self._gone - self.beginnings):
            # Without roots nothing would be recorded, from the first call on if that is slow.
            spent.clear()
            gone = min(others)
        return gone
