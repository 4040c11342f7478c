"""What every engine records in the same way, and what has to wait for backtraces under GDB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.test_tracer import CALLER, IN_ROOT, INNER, ROOT, At
from virtrace.engine.tracer import RawEvent
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, IncompleteError, TraceError, Unavailable
from virtrace.inferior.stillness import Stillness
from virtrace.inferior.waiting import HeldEvents
from virtrace.plan.capture import PendingBacktrace
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Selection
from virtrace.record.recording import Recording
from virtrace.trace.format import Footer, Header, Json, SwitchedOff

RECIPE = catalogue.find_recipe("blockinfo")
NAME = RECIPE.roots[0].name


class Taken:
    """A sink that keeps what it is given, as far as it has room."""

    def __init__(self, rotates: bool = False, room: int = 1000) -> None:
        self.rotates = rotates
        self.items: list[Any] = []
        self._room = room

    def begin(self, header: Header) -> None:
        self._take(header)

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        for item in items:
            self._take(item)

    def rotate(self, footer: Footer) -> None:
        self._take(footer)

    def finish(self, footer: Footer) -> None:
        # There is room for a footer where there is none for an event.
        self._room += 1
        self._take(footer)

    def _take(self, item: object) -> None:
        if len(self.items) >= self._room:
            raise TraceError("no room", "make room")
        self.items.append(item)

    @property
    def kinds(self) -> list[str]:
        return [
            item.type if isinstance(item, RawEvent) else item.get("reason", item["type"])
            for item in self.items
        ]


def recorded(sink: Taken, selection: Selection | None = None) -> Recording:
    return Recording(RECIPE, selection or Selection(), sink)


def call(recording: Recording) -> None:
    recording.tracer.enter(ROOT, At(992), CALLER, 1000)
    recording.tracer.leave(CALLER, At(1000))


def test_hits_are_in_the_footer_for_each_probe_of_the_recipe() -> None:
    sink = Taken()
    recording = recorded(sink)
    recording.hit(NAME)
    recording.ending.request("interrupt")
    recording.finish(7, detached=True)
    [footer] = sink.items
    assert footer["hits"] == {**{probe.name: 0 for probe in RECIPE.probes}, NAME: 1}
    assert (footer["reason"], footer["t_ns"], footer["detached"]) == ("interrupt", 7, True)
    assert footer["stopped_ns"] == {"total": 0, "max": 0}
    assert recording.status() == INTERRUPTED


def test_open_calls_end_before_the_footer() -> None:
    sink = Taken()
    recording = recorded(sink)
    recording.tracer.enter(ROOT, At(992), CALLER, 1000)
    recording.ending.request("limit")
    recording.finish(7, detached=True)
    assert sink.kinds == ["enter", "lost", "limit"]
    assert recording.status() == DONE


def test_the_last_call_that_is_wanted_ends_it() -> None:
    recording = recorded(Taken(), Selection(calls=2))
    call(recording)
    assert not recording.ending.is_due()
    call(recording)
    assert recording.ending.is_due()
    assert recording.ending.reason == "limit"


def test_a_file_may_end_wherever_a_call_does_and_nowhere_else() -> None:
    sink = Taken(rotates=True)
    recording = recorded(sink)
    recording.tracer.enter(ROOT, At(992), CALLER, 1000)
    recording.tracer.enter(INNER, At(892), IN_ROOT, 900)
    recording.tracer.leave(IN_ROOT, At(900))
    recording.tracer.leave(CALLER, At(1000))
    assert sink.kinds == ["enter", "enter", "exit", "exit", "rotated"]
    assert sink.items[-1]["detached"] is False


def test_a_full_disk_ends_it_with_its_footer() -> None:
    sink = Taken(room=1)
    recording = recorded(sink)
    call(recording)
    assert recording.ending.is_due()
    recording.finish(7, detached=True)
    assert sink.kinds == ["enter", "error"]
    with pytest.raises(IncompleteError, match="no room"):
        recording.status()


def test_events_that_the_engine_lost_make_it_incomplete() -> None:
    sink = Taken()
    recording = recorded(sink)
    recording.lost = 3
    recording.ending.request("done")
    recording.finish(7, detached=True)
    assert sink.items[-1]["dropped"] == 3
    assert recording.status() == INCOMPLETE


def test_what_is_switched_off_is_recorded_where_it_was() -> None:
    sink = Taken()
    recording = recorded(sink)
    recording.tracer.enter(ROOT, At(992), CALLER, 1000)
    recording.switch_off(ROOT.probe, "span", "over budget", 5)
    assert sink.kinds == ["enter", "lost", "switched-off"]


def event(*values: object) -> RawEvent:
    return RawEvent("point", 0, 1, "p", None, None, None, dict(zip("abc", values)))


def backtrace(pending: PendingBacktrace) -> Json:
    if pending.tid == 0:
        raise Unavailable("thread 0 is nobody")
    if pending.tid < 0:
        raise ValueError("a bug")
    return [f"frame of {pending.tid}"]


def pending(tid: int) -> PendingBacktrace:
    return PendingBacktrace(tid, lambda: tid)


def test_what_follows_a_held_event_is_held_too() -> None:
    sink = Taken(rotates=True)
    waiting = HeldEvents(sink, backtrace)
    recording = Recording(RECIPE, Selection(), waiting)
    waiting.take([event(1)])
    assert not waiting.needs_stop
    waiting.take([event(pending(5), pending(0))])
    call(recording)
    assert waiting.needs_stop
    assert sink.kinds == ["point"]
    waiting.resolve()
    assert not waiting.needs_stop
    assert sink.kinds == ["point", "point", "enter", "exit", "rotated"]
    assert sink.items[1].values == {
        "a": ["frame of 5"],
        "b": {"unavailable": "thread 0 is nobody"},
    }


def test_a_bug_in_a_backtrace_holds_nothing_back() -> None:
    sink = Taken()
    waiting = HeldEvents(sink, backtrace)
    waiting.take([event(pending(-1))])
    waiting.take([event(2)])
    with pytest.raises(ValueError, match="a bug"):
        waiting.resolve()
    assert [item.values for item in sink.items] == [
        {"a": {"unavailable": "an internal error"}},
        {"a": 2},
    ]


def test_stops_add_up() -> None:
    stillness = Stillness(100)
    first = stillness.account(stillness.since_ns)
    begun = stillness.since_ns
    stillness.stopped()
    assert stillness.since_ns >= begun
    stillness.hit()
    second = stillness.account(begun)
    record = stillness.record()
    assert record["total"] == first + second
    assert record["max"] == max(first, second)
    # What GDB worked is charged once.
    assert stillness.charge_gdb() == record["gdb"] > 0
    assert stillness.charge_gdb() == 0
