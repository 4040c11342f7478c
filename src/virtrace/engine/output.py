"""From what a tracer tells to the trace: placed, numbered, written and shown. Does not need gdb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from virtrace.engine.answers import Answers
from virtrace.engine.tracer import RawEvent
from virtrace.errors import TraceError
from virtrace.recipe.selection import Limits
from virtrace.trace.format import Event, Footer, Header, SwitchedOff
from virtrace.trace.writer import TraceWriter


class View(Protocol):
    """What the person at the terminal sees; must not raise."""

    def banner(self, header: Header) -> None: ...
    def event(self, event: Event) -> None: ...
    def switched_off(self, record: SwitchedOff) -> None: ...
    def summary(self, footer: Footer) -> None: ...


def _nothing(_: RawEvent) -> None:
    """All of the event is known."""


class Output:
    """complete: adds to the values of an event what only this side knows."""

    def __init__(
        self,
        answers: Answers,
        limits: Limits,
        writer: TraceWriter,
        view: View,
        complete: Callable[[RawEvent], None] = _nothing,
    ) -> None:
        self._answers = answers
        self._limits = limits
        self._writer = writer
        self._view = view
        self._complete = complete
        self._end: Callable[[str], None] = lambda reason: None
        self._events = 0
        # Events that belong into the trace, and are not there.
        self._dropped = 0

    @property
    def descriptor(self) -> int:
        return self._writer.descriptor

    @property
    def rotates(self) -> bool:
        return self._writer.rotates

    def listen(self, end: Callable[[str], None]) -> None:
        """end: called with ``limit`` once the trace is as large as it may get."""
        self._end = end

    def begin(self, header: Header) -> None:
        """TraceError where the disk does not take it, here and below."""
        # First: without it nothing that follows can be read.
        try:
            self._writer.begin(header)
        finally:
            self._view.banner(header)

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        """Events, and what else stands between them; of a full disk what there is room for."""
        events = _count(items)
        try:
            placed = [
                item
                for item in items
                if not isinstance(item, RawEvent) or self._answers.place(item)
            ]
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
        for one in written:
            if isinstance(one, Event):
                self._view.event(one)
            else:
                self._view.switched_off(one)
        if self._events >= self._limits.events or self._writer.size >= self._limits.bytes:
            self._end("limit")

    def _write(self, items: Sequence[RawEvent | SwitchedOff]) -> list[Event | SwitchedOff]:
        """All of them, or TraceError and none."""
        written: list[Event | SwitchedOff] = []
        seq = self._events
        for item in items:
            if isinstance(item, RawEvent):
                self._complete(item)
                written.append(Event(seq=seq, **vars(item)))
                seq += 1
            else:
                written.append(item)
        self._writer.write(one.to_record() if isinstance(one, Event) else one for one in written)
        self._events = seq
        return written

    def rotate(self, footer: Footer) -> None:
        """A file may end here, and does where it is full. footer: with `rotated` as its reason."""
        self._writer.may_rotate(self._counted(footer))

    def finish(self, footer: Footer) -> None:
        """footer: its `dropped` are events that did not come as far; what is lost here is added."""
        footer = self._counted(footer)
        try:
            self._writer.finish(footer)
            self._writer.check_there()
        finally:
            self._view.summary(footer)

    def _counted(self, footer: Footer) -> Footer:
        return {**footer, "events": self._events, "dropped": footer["dropped"] + self._dropped}


def _count(items: Sequence[RawEvent | Event | SwitchedOff]) -> int:
    return sum(isinstance(item, (RawEvent, Event)) for item in items)
