"""From a tracer's events to the trace: placed, numbered, written and shown. Does not need gdb."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from virtrace.engine.answers import Answers, Placed
from virtrace.engine.callers import Callers
from virtrace.engine.tracer import RawEvent
from virtrace.errors import TraceError
from virtrace.recipe.selection import Limits
from virtrace.trace.format import Event, Footer, Header, SwitchedOff
from virtrace.trace.json_text import without_quotes
from virtrace.trace.writer import TraceWriter


class View(Protocol):
    """What the user sees at the terminal. Its methods must not raise."""

    def banner(self, header: Header) -> None: ...
    def event(self, event: Event) -> None: ...
    def switched_off(self, record: SwitchedOff) -> None: ...
    def summary(self, footer: Footer) -> None: ...


def _nothing(_: RawEvent) -> None:
    """Add nothing: the event is complete."""


class Output:
    """Writes and shows a trace.

    complete: adds to the values of an event what only the writing process knows.
    """

    def __init__(
        self,
        answers: Answers,
        limits: Limits,
        writer: TraceWriter,
        view: View,
        complete: Callable[[RawEvent], None] = _nothing,
    ) -> None:
        self._answers = answers
        self._callers = Callers()
        self._limits = limits
        self._writer = writer
        self._view = view
        self._complete = complete
        self._end: Callable[[str], None] = lambda reason: None
        self._events = 0
        self._roles: Mapping[str, str | None] = {}
        # Events that belong into the trace and could not be written.
        self._dropped = 0

    @property
    def descriptor(self) -> int:
        return self._writer.descriptor

    @property
    def rotates(self) -> bool:
        return self._writer.rotates

    @property
    def remaining(self) -> int:
        """How many more events the trace may have."""
        return self._limits.events - self._events

    def listen(self, end: Callable[[str], None]) -> None:
        """end: called with ``limit`` once the trace is as large as it may get."""
        self._end = end

    def begin(self, header: Header) -> None:
        """Write the header. All methods raise TraceError if it cannot be written."""
        self._roles = {probe["name"]: probe["role"] for probe in header["probes"]}
        self._callers.begin(header)
        # First: without it nothing that follows can be read.
        try:
            self._writer.begin(header)
        finally:
            self._view.banner(header)

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        """Write and show events and switched-off records; on a full disk, those that fit."""
        events = sum(isinstance(item, RawEvent) for item in items)
        try:
            placed = [*self._placed(items)]
            events = _count(placed)
            written = self._write(placed) if placed else []
        except TraceError:
            for item in placed:
                try:
                    events -= _count(self._write([item]))
                except TraceError:
                    continue
            self._dropped += events
            raise
        except Exception:
            self._dropped += events
            raise
        for record in written:
            if isinstance(record, Event):
                self._view.event(record)
            else:
                self._view.switched_off(record)
        if self._events >= self._limits.events or self._writer.size >= self._limits.bytes:
            self._end("limit")

    def _placed(self, items: Sequence[RawEvent | SwitchedOff]) -> Iterator[Placed | SwitchedOff]:
        for item in self._callers.released(items):
            placed = self._answers.place(item) if isinstance(item, RawEvent) else item
            if placed is not None:
                yield placed

    def _write(self, items: Sequence[Placed | SwitchedOff]) -> list[Event | SwitchedOff]:
        """Write all of the records, or none of them and raise TraceError."""
        written: list[Event | SwitchedOff] = []
        records: list[Mapping[str, Any]] = []
        requests = []
        seq = self._events
        for item in items:
            if isinstance(item, Placed):
                event = self._numbered(item, seq)
                record = event.to_record()
                written.append(event)
                records.append(without_quotes(record, item.json_name) if item.json_name else record)
                if item.requests is not None:
                    item.requests.seq = seq
                    requests.append(item.requests)
                seq += 1
            else:
                written.append(item)
                records.append(item)
        try:
            self._writer.write(records)
        except TraceError:
            for request in requests:
                request.seq = None
            raise
        self._events = seq
        return written

    def _numbered(self, placed: Placed, seq: int) -> Event:
        event = placed.event
        self._complete(event)
        return Event(
            event.type,
            seq,
            event.t_ns,
            event.tid,
            event.name,
            event.span,
            event.parent,
            event.call,
            event.values,
            placed.answers.seq if placed.answers is not None else None,
            self._roles.get(event.name),
            placed.json_name is not None,
        )

    def rotate(self, footer: Footer) -> None:
        """A file may end here, and does where it is full. footer: with `rotated` as its reason."""
        self._writer.may_rotate(self._counted(footer))

    def finish(self, footer: Footer) -> None:
        """Write the footer. Its `dropped` counts events that did not get here."""
        footer = self._counted(footer)
        try:
            self._writer.finish(footer)
            self._writer.check_there()
        finally:
            self._view.summary(footer)

    def _counted(self, footer: Footer) -> Footer:
        return {**footer, "events": self._events, "dropped": footer["dropped"] + self._dropped}


def _count(items: Sequence[Placed | Event | SwitchedOff]) -> int:
    return sum(isinstance(item, (Placed, Event)) for item in items)
