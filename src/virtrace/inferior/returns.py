"""The return addresses of traced functions. Does not need gdb."""

from __future__ import annotations

from virtrace.engine.budget import Switch


class ReturnSites:
    """The places where a breakpoint for returns is, or is wanted, and the probes that need it.

    A place keeps its breakpoint, because the same call site serves every call from it.
    """

    def __init__(self) -> None:
        self._set: dict[int, set[Switch]] = {}
        self._wanted: dict[int, set[Switch]] = {}

    def want(self, pc: int, switch: Switch) -> bool:
        """Have the probe's returns to ``pc`` traced; return whether a breakpoint has to be set.

        GDB's documentation forbids a breakpoint's stop() to add another: that has to wait for the
        loop.
        """
        if pc in self._set:
            self._set[pc].add(switch)
            return False
        self._wanted.setdefault(pc, set()).add(switch)
        return True

    def wanted(self) -> list[int]:
        """Return the places without a breakpoint."""
        return [*self._wanted]

    def wanted_by(self, pc: int) -> list[Switch]:
        """Return the probes that want a breakpoint at ``pc``, which has none."""
        return [*self._wanted.get(pc, ())]

    def take(self) -> dict[int, set[Switch]]:
        """Return the wanted places; from now on they have a breakpoint.

        The sets are shared with the breakpoints: a later probe at a place is added to its set.
        """
        taken, self._wanted = self._wanted, {}
        self._set.update(taken)
        return taken

    def drop(self, switch: Switch) -> None:
        """Forget a probe; places that no other one wants are forgotten, too."""
        self._set = _without(switch, self._set)
        self._wanted = _without(switch, self._wanted)


def _without(switch: Switch, sites: dict[int, set[Switch]]) -> dict[int, set[Switch]]:
    # These sets are shared with the breakpoints.
    for switches in sites.values():
        switches.discard(switch)
    return {pc: switches for pc, switches in sites.items() if switches}
