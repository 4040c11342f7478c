"""Turns entries and returns on many threads and stacks into nested spans.

This module does not need gdb: a probe tells it what it met, and it says what to record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from virtrace.errors import Unavailable
from virtrace.image.memory import Memory
from virtrace.plan.arguments import Entered, Thread
from virtrace.plan.capture import Arguments, Capture
from virtrace.plan.model import (
    AnySite,
    Captures,
    LineSite,
    PointSite,
    ReturnPointSite,
    SpanSite,
    StaticProbeSite,
)
from virtrace.plan.proof import TracedCaller
from virtrace.recipe.model import Inside
from virtrace.recipe.path import CALLER, RETURN
from virtrace.trace.format import (
    SWITCHED_OFF,
    Json,
    Record,
    as_argument,
    is_unavailable,
    unavailable,
)


class Stop(Thread, Protocol):
    """A thread that stands at a probe.

    tid: thread id, as the kernel counts
    stack: number of the stack that it is on, see engine.stacks
    t_ns: since the trace started
    """

    tid: int
    stack: int
    t_ns: int

    def argument_registers(self) -> Mapping[str, int]: ...

    def return_address(self) -> int:
        """At an entry: where the function returns to. Raises Unavailable."""

    def result(self) -> int:
        """At a return: what the function returned. Raises Unavailable."""

    def result_is_used(self) -> bool:
        """At a return: whether the caller goes on by looking at it."""


@dataclass
class RawEvent:
    """An event before it has its place in the file."""

    type: str
    t_ns: int
    tid: int
    name: str
    span: int | None
    parent: int | None
    call: int | None
    values: Record


@dataclass
class _Open:
    """A function that was entered. tid: of the thread that entered it.

    Of a point, span is that of its parent; None outside of recorded calls.
    begun_by: of a point on another stack, the span that it is inside. values: at the entry.
    """

    site: SpanSite | ReturnPointSite | PointSite
    tid: int
    span: int | None
    parent: int | None
    call: int | None
    return_pc: int
    return_sp: int
    recorded: bool
    caller: TracedCaller | None = None
    entered: Entered | None = None
    begun_by: _Open | None = None
    is_open: bool = True
    values: Record = field(default_factory=dict)
    arguments: dict[str, int | Unavailable] = field(default_factory=dict)
    # Of the last line that was recorded; the watched values as they were last known, and those
    # that could not be read there.
    line: tuple[str, int] | None = None
    watched: Record = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def argument(self, name: str) -> int:
        value = self.arguments[name]
        if isinstance(value, Unavailable):
            raise value
        return value


class Tracer:
    """where: what a root's values at entry must be, as text, for its call to be recorded."""

    def __init__(self, where: Mapping[str, str], record: Callable[[RawEvent], None]) -> None:
        self._where = where
        self._record = record
        # By stack: a coroutine leaves its spans open while its thread goes on on another stack.
        self._stacks: dict[int, list[_Open]] = {}
        self._spans = 0
        self._all_spans = True
        self.calls_done = 0

    @property
    def calls_open(self) -> int:
        return sum(
            any(opened.recorded and isinstance(opened.site, SpanSite) for opened in spans)
            for spans in self._stacks.values()
        )

    def enter(
        self, site: SpanSite | ReturnPointSite, stop: Stop, return_pc: int, return_sp: int
    ) -> bool:
        """A function was entered. False: its return is not needed, nothing is traced here."""
        spans = self._of_stack(stop)
        parent = None
        if spans:
            # Frames at or below the new one are gone, whatever became of their return.
            self._abandon(spans, stop, return_sp)
            # Those of the same frame called it as their last act (a tail call); but no function
            # calls itself so: that one is gone too, by longjmp or with its thread.
            if any(span.site is site and span.return_sp == return_sp for span in spans):
                self._abandon(spans, stop, return_sp + 1)
            parent = next((opened for opened in reversed(spans) if opened.call is not None), None)
        if isinstance(site, ReturnPointSite):
            inside = parent is not None and parent.recorded
            if not inside and not site.anywhere:
                return False
            read = _reader(site, stop)
            span, call = (parent.span, parent.call) if parent and inside else (None, None)
            opened = _Open(site, stop.tid, span, span, call, return_pc, return_sp, True)
        else:
            # The caller may be a span that is no longer traced.
            read = _reader(site, stop, parent.caller if parent and self._all_spans else None)
            begins = site.root
            if parent is None and site.inside is not None:
                begins = site.inside.of_point
                parent = self._elsewhere(site.inside, _values(site.enter, stop.memory, read))
            if parent is None and not begins:
                return False
            opened = self._open(site, stop, read, parent, return_pc, return_sp)
        if opened.recorded:
            if isinstance(site, SpanSite) and site.keeps_registers:
                opened.entered = Entered(stop.argument_registers(), return_sp)
            opened.arguments = {name: _or_why(read, name) for name in site.needed}
        spans.append(opened)
        self._stacks[stop.stack] = spans
        return True

    def _open(
        self,
        site: SpanSite,
        stop: Stop,
        read: Arguments,
        parent: _Open | None,
        return_pc: int,
        return_sp: int,
    ) -> _Open:
        """A new span; recorded like its parent, or, of a root, where the filters want it."""
        self._spans += 1
        span = self._spans
        if parent is None:
            opened = _Open(site, stop.tid, span, None, span, return_pc, return_sp, True)
        else:
            opened = _Open(
                site,
                stop.tid,
                span,
                parent.span,
                parent.call,
                return_pc,
                return_sp,
                parent.recorded,
            )
        if opened.recorded:
            if site.parameters:
                values = [_or_why(read, parameter.name) for parameter in site.parameters]
                proven = tuple(None if isinstance(one, Unavailable) else one for one in values)
                opened.caller = TracedCaller(site.parameters, proven, return_sp)
            entered = opened.values = _values(site.enter, stop.memory, read)
            opened.recorded = parent is not None or not site.root or self._wanted(entered)
            if opened.recorded:
                self._emit("enter", stop.t_ns, stop.tid, opened, entered)
        return opened

    def leave(self, pc: int, stop: Stop) -> None:
        """A thread came to ``pc``, where functions that are traced return to."""
        spans = self._stacks.get(stop.stack, [])
        self._abandon(spans, stop, stop.sp)
        # A tail call returns for its caller too: both end here, the inner one first.
        while spans and spans[-1].return_pc == pc and spans[-1].return_sp == stop.sp:
            closed = spans.pop()
            if closed.recorded:
                self._leave(closed, stop)
                is_root = isinstance(closed.site, SpanSite) and closed.site.root
                self.calls_done += is_root and closed.parent is None
        if not spans:
            self._stacks.pop(stop.stack, None)

    def _of_stack(self, stop: Stop) -> list[_Open]:
        """What is open on the stack of a thread, without points that are inside of what is not."""
        spans = self._stacks.get(stop.stack, [])
        while spans and spans[-1].begun_by is not None and not spans[-1].begun_by.is_open:
            spans.pop()
        return spans

    def _elsewhere(self, inside: Inside, values: Record) -> _Open | None:
        """The call on another stack that something is inside; None if it is not certain."""
        found = [
            opened
            for spans in self._stacks.values()
            for opened in spans
            if isinstance(opened.site, SpanSite)
            and opened.site.probe == inside.name
            and opened.recorded
            and all(
                not is_unavailable(values.get(own)) and values.get(own) == opened.values.get(its)
                for own, its in inside.by.items()
            )
        ]
        return found[0] if len(found) == 1 else None

    def _leave(self, closed: _Open, stop: Stop) -> None:
        closed.is_open = False

        def argument(name: str) -> int:
            if name != RETURN:
                return closed.argument(name)
            moved = isinstance(closed.site, SpanSite) and closed.site.moved
            if moved and not stop.result_is_used():
                raise Unavailable("without debug info it is not known to return one")
            return stop.result()

        assert not isinstance(closed.site, PointSite)
        if isinstance(closed.site, ReturnPointSite):
            values = _values(closed.site.capture, stop.memory, argument)
            self._point(closed.site.probe, stop, closed.parent, closed.call, values)
        else:
            values = _values(closed.site.exit, stop.memory, argument)
            self._emit("exit", stop.t_ns, stop.tid, closed, values)

    def point(self, site: PointSite | StaticProbeSite, stop: Stop) -> None:
        span, call = None, None
        spans = self._of_stack(stop)
        inside = _around(spans, stop)
        if inside is not None:
            span, call = inside.span, inside.call
        elif isinstance(site, PointSite) and site.inside is not None:
            values = _values(site.capture, stop.memory, _reader(site, stop))
            parent = self._elsewhere(site.inside, values)
            if parent is not None:
                span, call = parent.span, parent.call
                # What it calls is inside, too.
                opened = _Open(site, stop.tid, span, span, call, 0, stop.sp + 1, True)
                opened.begun_by = parent
                self._stacks.setdefault(stop.stack, spans).append(opened)
        if call is None and not site.anywhere:
            return
        values = _values(site.capture, stop.memory, _reader(site, stop))
        self._point(site.probe, stop, span, call, values)

    def returned(self, site: ReturnPointSite, stop: Stop) -> None:
        """A function returned whose entry was not recorded: its return met the condition."""
        inside = _around(self._of_stack(stop), stop)
        if inside is None and not site.anywhere:
            return
        span, call = (None, None) if inside is None else (inside.span, inside.call)
        read = site.arguments.reader(stop, None, None)
        values = _values(
            site.capture,
            stop.memory,
            lambda name: stop.result() if name == RETURN else read(name),
        )
        self._point(site.probe, stop, span, call, values)

    def line(self, site: LineSite, pc: int, stop: Stop) -> None:
        """A thread came to a statement of a function. pc: where that is in the process."""
        # Which may be where a traced function returned to.
        self.leave(pc, stop)
        spans = self._stacks.get(stop.stack, [])
        inside = next((span for span in reversed(spans) if span.return_sp > stop.sp), None)
        if inside is None or not inside.recorded or inside.site.probe != site.probe:
            return
        # One line has many statements: it is one line, as long as no other comes between.
        if inside.line == (site.source, site.line):
            return
        inside.line = (site.source, site.line)
        read = _reader(site, stop, entered=inside.entered)
        changed: Record = {}
        for name, value in _values(site.watch, stop.memory, read).items():
            known = inside.watched.get(name)
            if is_unavailable(value):
                if known is not None and name not in inside.unread:
                    changed[name] = value
                    inside.unread.add(name)
                continue
            inside.unread.discard(name)
            if value != known:
                changed[name] = {"to": value} if known is None else {"from": known, "to": value}
                inside.watched[name] = value
        values: Record = {"file": site.source, "line": site.line, "changed": changed}
        event = RawEvent(
            "line", stop.t_ns, stop.tid, site.probe, None, inside.span, inside.call, values
        )
        self._record(event)

    def is_inside(self, tid: int) -> bool:
        """Whether the thread is in a call, recorded or not."""
        return any(span.tid == tid for spans in self._stacks.values() for span in spans)

    def switch_off(self, name: str, t_ns: int) -> None:
        """No entry or return of it will be met any more.

        What is open of it is lost, and all that is open in it: what comes later could not be told
        from what happened in it.
        """
        self._all_spans = False
        for spans in self._stacks.values():
            while any(opened.site.probe == name for opened in spans):
                self._lost(t_ns, spans.pop(), SWITCHED_OFF)

    def lose(self, tid: int, t_ns: int, why: str) -> None:
        """Events of the thread were lost: which of its calls are still open is not known."""
        for spans in self._stacks.values():
            while any(opened.tid == tid for opened in spans):
                self._lost(t_ns, spans.pop(), why)

    def finish(self, t_ns: int, why: str) -> None:
        """End the trace: emit `lost` for every span that is still open."""
        for spans in self._stacks.values():
            for opened in reversed(spans):
                self._lost(t_ns, opened, why)
        self._stacks.clear()

    def _wanted(self, values: Record) -> bool:
        return all(as_argument(values.get(key)) == wanted for key, wanted in self._where.items())

    def _abandon(self, spans: list[_Open], stop: Stop, end: int) -> None:
        """Drop the frames that end below an address."""
        while spans and spans[-1].return_sp < end:
            self._lost(stop.t_ns, spans.pop(), "its return was not seen")

    def _lost(self, t_ns: int, opened: _Open, why: str) -> None:
        opened.is_open = False
        if opened.recorded and isinstance(opened.site, SpanSite):
            self._emit("lost", t_ns, opened.tid, opened, {"why": why})

    def _emit(self, kind: str, t_ns: int, tid: int, span: _Open, values: Record) -> None:
        self._record(
            RawEvent(kind, t_ns, tid, span.site.probe, span.span, span.parent, span.call, values)
        )

    def _point(
        self, name: str, stop: Stop, parent: int | None, call: int | None, values: Record
    ) -> None:
        self._record(RawEvent("point", stop.t_ns, stop.tid, name, None, parent, call, values))


def _around(spans: list[_Open], stop: Stop) -> _Open | None:
    """The span that a thread is in, if it is recorded: one whose frame is gone cannot be that."""
    found = next(
        (one for one in reversed(spans) if one.return_sp > stop.sp and one.call is not None), None
    )
    return found if found is not None and found.recorded else None


def _reader(
    site: AnySite,
    stop: Stop,
    caller: TracedCaller | None = None,
    entered: Entered | None = None,
) -> Arguments:
    read = site.arguments.reader(stop, caller, entered)
    return lambda name: stop.return_address() if name == CALLER else read(name)


def _or_why(read: Arguments, name: str) -> int | Unavailable:
    try:
        return read(name)
    except Unavailable as why:
        return why


def _values(captures: Captures, memory: Memory, arguments: Arguments) -> Record:
    return {name: _value(capture, memory, arguments) for name, capture in captures.items()}


def _value(capture: Capture | Unavailable, memory: Memory, arguments: Arguments) -> Json:
    try:
        if isinstance(capture, Unavailable):
            raise capture
        return capture.run(memory, arguments)
    except Unavailable as why:
        return unavailable(str(why))
