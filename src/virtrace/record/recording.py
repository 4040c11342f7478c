"""One recording, from its header to its footer: what every engine does in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from virtrace.engine.tracer import RawEvent, Tracer
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, NOT_TRACED, TraceError, incomplete
from virtrace.recipe.model import Recipe
from virtrace.recipe.selection import Selection
from virtrace.record.ends import Ending
from virtrace.record.header import needed_but_missing
from virtrace.trace.format import ENDED, Footer, Header, StoppedNs, SwitchedOff

_EXIT_STATUS = {"done": DONE, "limit": DONE, "interrupt": INTERRUPTED}


class Sink(Protocol):
    """Takes a recording: writes it, or hands it to the process that does.

    rotates: whether the recording may go on in a new file, so that it has to know where one may end

    Raises: TraceError from every method if it cannot take what it is given
    """

    @property
    def rotates(self) -> bool: ...

    def begin(self, header: Header) -> None: ...

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        """Take events and `switched-off` records, in their order."""

    def rotate(self, footer: Footer) -> None:
        """Note that a file may end here, with this footer."""

    def finish(self, footer: Footer) -> None: ...


def never_stopped() -> StoppedNs:
    """Return the times that the process was stopped, for an engine that never stops it, in ns."""
    return {"total": 0, "max": 0}


class Recording:
    """Turns what an engine meets into a trace.

    tracer: to be told of every hit
    ending: decides when the recording ends
    lost: events that the engine knows it has lost
    """

    def __init__(
        self,
        recipe: Recipe,
        selection: Selection,
        sink: Sink,
        stopped_ns: Callable[[], StoppedNs] = never_stopped,
    ) -> None:
        """stopped_ns: how long the process was stopped so far, as the footer has it."""
        self.tracer = Tracer(selection.where, self._record)
        self.ending = Ending(selection.calls, self.tracer)
        self.lost = 0
        self._sink = sink
        self._stopped_ns = stopped_ns
        self._hits = {probe.name: 0 for probe in recipe.probes}
        self._recipe = recipe
        self._lacks_needed = False

    def begin(self, header: Header) -> None:
        self._lacks_needed = bool(needed_but_missing(self._recipe, header))
        self._sink.begin(header)

    def hit(self, name: str) -> None:
        """Count a hit of the probe, be it recorded or not."""
        # The plan of an imported trace may have probes that its recipe has not.
        self._hits[name] = self._hits.get(name, 0) + 1

    def switch_off(self, name: str, kind: str, why: str, t_ns: int) -> None:
        """Note that a probe is no longer met.

        kind: ``span``, ``point`` or ``line``
        t_ns: since the start of the trace
        """
        if kind != "line":
            self.tracer.switch_off(name, t_ns)
        self._sink.take(
            [{"type": "switched-off", "t_ns": t_ns, "name": name, "kind": kind, "why": why}]
        )

    def finish(self, t_ns: int, *, detached: bool) -> None:
        """Write the end of open calls, and the footer.

        t_ns: since the start of the trace
        detached: whether the process has been let go
        """
        try:
            self.tracer.finish(t_ns, ENDED)
        except Exception as error:
            self.ending.fail(error)
        try:
            self._sink.finish(self._footer(self.ending.reason or "error", t_ns, detached=detached))
        except TraceError as error:
            self.ending.fail(error)

    def status(self) -> int:
        """Return the exit status.

        Raises: IncompleteError if a failure ended the recording
        """
        failure = self.ending.failure
        if failure is not None:
            raise incomplete(failure) from failure
        if self.lost:
            return INCOMPLETE
        reason = self.ending.reason or "error"
        if self._lacks_needed and reason in _EXIT_STATUS:
            # Whatever was recorded, it is not what the recipe is for.
            return NOT_TRACED
        return _EXIT_STATUS.get(reason, INCOMPLETE)

    def _record(self, event: RawEvent) -> None:
        try:
            self._sink.take([event])
            ends_call = event.span == event.call and event.type != "enter"
            if self._sink.rotates and (ends_call or event.call is None):
                self._sink.rotate(self._footer("rotated", event.t_ns, detached=False))
        except TraceError as error:
            # What the sink does not take ends the trace, which gets its footer all the same.
            self.ending.fail(error)

    def _footer(self, reason: str, t_ns: int, *, detached: bool) -> Footer:
        return {
            "type": "footer",
            "reason": reason,
            "t_ns": t_ns,
            # Whoever writes the file counts what came into it.
            "events": 0,
            "dropped": self.lost,
            "hits": {**self._hits},
            "detached": detached,
            "stopped_ns": self._stopped_ns(),
        }
