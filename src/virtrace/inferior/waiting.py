"""Holds back events that need a backtrace. Does not need gdb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from virtrace.engine.tracer import RawEvent
from virtrace.errors import Unavailable
from virtrace.plan.capture import PendingBacktrace
from virtrace.record.recording import Sink
from virtrace.trace.format import Footer, Header, Json, Record, SwitchedOff, unavailable


class HeldEvents:
    """A sink that holds events back until their backtraces can be taken.

    GDB can walk a stack only while all threads are stopped, which is not so at a probe. All events
    that follow a held event are held, too, to keep the order.
    """

    rotates: bool

    def __init__(self, sink: Sink, backtrace: Callable[[PendingBacktrace], Json]) -> None:
        """backtrace: takes a thread's backtrace; may raise Unavailable."""
        self.rotates = sink.rotates
        self._sink = sink
        self._backtrace = backtrace
        self._held: list[Callable[[], None]] = []
        self._pending: list[tuple[Record, str, PendingBacktrace]] = []

    @property
    def needs_stop(self) -> bool:
        """Whether all threads have to be stopped for a backtrace."""
        return bool(self._pending)

    def begin(self, header: Header) -> None:
        self._sink.begin(header)

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        for item in items:
            if isinstance(item, RawEvent):
                self._pending += [
                    (item.values, name, value)
                    for name, value in item.values.items()
                    if isinstance(value, PendingBacktrace)
                ]
        self._pass_on(partial(self._sink.take, items))

    def rotate(self, footer: Footer) -> None:
        self._pass_on(partial(self._sink.rotate, footer))

    def finish(self, footer: Footer) -> None:
        self._sink.finish(footer)

    def resolve(self) -> None:
        """Take the backtraces, now that all threads stand, and pass on what was held.

        Raises: the first error that is not Unavailable, once everything was passed on
        """
        failures: list[Exception] = []
        for values, name, thread in self._pending:
            try:
                values[name] = self._backtrace(thread)
            except Unavailable as why:
                values[name] = unavailable(str(why))
            except Exception as error:
                values[name] = unavailable("an internal error")
                failures.append(error)
        self._pending.clear()
        held, self._held = self._held, []
        for pass_on in held:
            try:
                pass_on()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _pass_on(self, pass_on: Callable[[], None]) -> None:
        if self._pending:
            self._held.append(pass_on)
        else:
            pass_on()
