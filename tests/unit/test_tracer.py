"""Entries and returns, as a thread meets them, become nested spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from virtrace.binary.ctype import Integer
from virtrace.engine.stacks import Stacks
from virtrace.engine.tracer import RawEvent, Tracer
from virtrace.errors import Unavailable
from virtrace.plan.capture import Arguments, Capture
from virtrace.plan.model import (
    Captures,
    LineSite,
    PointSite,
    ReturnPointSite,
    SpanSite,
)
from virtrace.recipe.path import RETURN, parse_path
from virtrace.trace.format import SWITCHED_OFF, unavailable

LONG = {"n": Integer(8, True), RETURN: Integer(8, True)}
N = {"n": Capture(parse_path("n"), LONG)}
RESULT = {"result": Capture(parse_path("return"), LONG), **N}


class FromThread:
    """What `At` says of its own arguments (plan.arguments.ArgumentSource)."""

    def reader(self, thread: Any, caller: object, entered: object) -> Arguments:
        return thread.argument  # type: ignore[no-any-return]


PLACE = ("libvirt.so.0", "/usr/lib/libvirt.so.0", 0x1000, 0x1000, FromThread())
ROOT = SpanSite("root", *PLACE, N, RESULT, root=True)
INNER = SpanSite("inner", *PLACE, N, RESULT)
INNERMOST = SpanSite("innermost", *PLACE, N, RESULT)
POINT = PointSite("point", *PLACE, N)
ANSWER = PointSite("answer", *PLACE, N, anywhere=True)
ERROR = ReturnPointSite("error", *PLACE, RESULT)
ANYWHERE = ReturnPointSite("anywhere", *PLACE, RESULT, anywhere=True)

# Addresses that calls return to. The stack grows down: a callee's stack pointer is lower.
CALLER, IN_ROOT, IN_INNER = 0x100, 0x200, 0x300


class NoMemory:
    def read(self, address: int, size: int) -> bytes:
        raise Unavailable(f"cannot read memory at {address:#x}")


class At:
    """A thread at a probe (tracer.Stop)."""

    def __init__(
        self, sp: int, n: int | None = 0, result: int = 0, tid: int = 1, stack: int | None = None
    ) -> None:
        self.memory = NoMemory()
        self.tid = tid
        self.stack = tid if stack is None else stack
        self.t_ns = 0
        self.sp = sp
        self._n = n
        self._result = result

    def argument(self, name: str) -> int:
        assert name == "n"
        if self._n is None:
            raise Unavailable("optimized out")
        return self._n

    def argument_registers(self) -> Mapping[str, int]:
        return {}

    def register(self, name: str) -> int:
        raise Unavailable(f"{name} is not known")

    def probe_argument(self, index: int) -> int:
        raise Unavailable("at no static probe")

    def return_address(self) -> int:
        raise Unavailable("not known")

    def result(self) -> int:
        return self._result

    def result_is_used(self) -> bool:
        return False


class Traced:
    """A tracer, and what it recorded."""

    def __init__(self, **where: str) -> None:
        self.events: list[RawEvent] = []
        self.tracer = Tracer(where, self.events.append)

    def enter(self, site: Any, pc: int, sp: int, **stop: Any) -> bool:
        """sp: the stack pointer once the function has returned."""
        return self.tracer.enter(site, At(sp - 8, **stop), pc, sp)

    def leave(self, pc: int, sp: int, **stop: Any) -> None:
        self.tracer.leave(pc, At(sp, **stop))

    @property
    def told(self) -> list[str]:
        return [f"{event.type} {event.name}" for event in self.events]

    def of(self, kind: str, name: str) -> RawEvent:
        (event,) = (event for event in self.events if (event.type, event.name) == (kind, name))
        return event


def test_a_call_within_a_call() -> None:
    traced = Traced()
    assert traced.enter(ROOT, CALLER, 1000, n=1)
    assert traced.enter(INNER, IN_ROOT, 900, n=2)
    assert traced.tracer.calls_open == 1
    traced.leave(IN_ROOT, 900, result=20)
    traced.leave(CALLER, 1000, result=-10)
    assert traced.told == ["enter root", "enter inner", "exit inner", "exit root"]
    root, inner = traced.events[0], traced.events[1]
    assert (root.span, root.parent, root.call) == (1, None, 1)
    assert (inner.span, inner.parent, inner.call) == (2, 1, 1)
    assert traced.of("exit", "inner").values == {"result": 20, "n": 2}
    # At the return, an argument is what it was at the entry.
    assert traced.of("exit", "root").values == {"result": -10, "n": 1}
    assert traced.of("exit", "root").span == 1
    assert (traced.tracer.calls_done, traced.tracer.calls_open) == (1, 0)


class TestSwitchedOff:
    def test_what_is_open_of_it_is_lost_and_what_comes_later_is_not_in_it(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        traced.enter(INNER, IN_ROOT, 900)
        traced.enter(INNERMOST, IN_INNER, 800)
        traced.tracer.switch_off("inner", 5)
        # Below the frame of `inner`, which may have returned and may not.
        traced.enter(INNERMOST, IN_INNER, 800)
        traced.leave(IN_INNER, 800)
        traced.leave(CALLER, 1000)
        assert traced.told == [
            *("enter root", "enter inner", "enter innermost"),
            *("lost innermost", "lost inner"),
            *("enter innermost", "exit innermost", "exit root"),
        ]
        assert traced.of("lost", "inner").values == {"why": SWITCHED_OFF}
        assert traced.events[5].parent == 1
        assert traced.tracer.calls_done == 1

    def test_without_its_root_a_call_is_over(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        assert traced.tracer.is_inside(1)
        traced.tracer.switch_off("root", 5)
        assert not traced.enter(INNER, IN_ROOT, 900)
        traced.leave(CALLER, 1000)
        assert traced.told == ["enter root", "lost root"]
        assert not traced.tracer.is_inside(1)
        assert (traced.tracer.calls_done, traced.tracer.calls_open) == (0, 0)


def test_outside_of_a_root_nothing_is_traced() -> None:
    traced = Traced()
    assert not traced.enter(INNER, IN_ROOT, 900)
    assert not traced.enter(ERROR, IN_ROOT, 900)
    traced.tracer.point(POINT, At(800))
    traced.leave(IN_ROOT, 900)
    assert traced.events == []


def test_a_point_that_is_wanted_anywhere() -> None:
    traced = Traced(n="1")
    traced.tracer.point(ANSWER, At(800, n=3))
    # At a return, outside of calls: no call is open or done by it.
    assert traced.enter(ANYWHERE, IN_ROOT, 900, n=4)
    assert traced.tracer.calls_open == 0
    traced.leave(IN_ROOT, 900, result=5)
    assert traced.tracer.calls_done == 0
    assert traced.told == ["point answer", "point anywhere"]
    assert [(event.parent, event.call) for event in traced.events] == [(None, None)] * 2
    assert traced.events[1].values == {"result": 5, "n": 4}
    # In a call that is recorded it has its place; in one that is not, none.
    for n, place in ((1, (1, 1)), (2, (None, None))):
        traced.events.clear()
        traced.enter(ROOT, CALLER, 1000, n=n)
        traced.tracer.point(ANSWER, At(800))
        traced.enter(ANYWHERE, IN_ROOT, 900)
        traced.leave(IN_ROOT, 900)
        traced.leave(CALLER, 1000)
        points = [event for event in traced.events if event.type == "point"]
        assert [(event.parent, event.call) for event in points] == [place] * 2
    assert traced.tracer.calls_done == 1


def test_a_return_whose_entry_was_not_recorded() -> None:
    traced = Traced()
    traced.tracer.returned(ANYWHERE, At(900, result=-28, n=4))
    assert traced.events[0].values == {"result": -28, "n": 4}
    assert (traced.events[0].parent, traced.events[0].call) == (None, None)
    traced.enter(ROOT, CALLER, 1000, n=1)
    traced.tracer.returned(ANYWHERE, At(900, result=-5, n=5))
    traced.leave(CALLER, 1000)
    event = traced.events[2]
    assert (event.values, event.parent, event.call) == ({"result": -5, "n": 5}, 1, 1)
    # Inside of calls alone, it has no place outside of them.
    traced.events.clear()
    traced.tracer.returned(replace(ANYWHERE, anywhere=False), At(900, result=-5))
    assert traced.events == []


def test_a_call_within_a_point_begins_a_tree() -> None:
    traced = Traced()
    traced.enter(ANYWHERE, CALLER, 1000)
    traced.enter(ROOT, IN_ROOT, 900)
    assert traced.tracer.calls_open == 1
    traced.tracer.point(POINT, At(800))
    traced.leave(IN_ROOT, 900)
    # Nothing but the point is open now: what belongs into calls is not recorded.
    traced.tracer.point(POINT, At(800))
    traced.leave(CALLER, 1000)
    assert traced.told == ["enter root", "point point", "exit root", "point anywhere"]
    assert (traced.of("enter", "root").parent, traced.of("point", "anywhere").call) == (None, None)
    assert (traced.tracer.calls_done, traced.tracer.calls_open) == (1, 0)


def test_a_tail_call_returns_for_its_caller_too() -> None:
    traced = Traced()
    traced.enter(ROOT, CALLER, 1000, n=1)
    traced.enter(INNER, CALLER, 1000, n=2)
    traced.enter(INNERMOST, CALLER, 1000, n=3)
    traced.leave(CALLER, 1000, result=5)
    assert traced.told[3:] == ["exit innermost", "exit inner", "exit root"]
    assert [event.values["result"] for event in traced.events[3:]] == [5, 5, 5]
    assert [event.values["n"] for event in traced.events[3:]] == [3, 2, 1]
    assert traced.tracer.calls_done == 1


def test_recursion_from_one_line() -> None:
    traced = Traced()
    for depth in range(5):
        traced.enter(ROOT, CALLER, 1000 - 100 * depth, n=depth)
    for depth in reversed(range(5)):
        traced.leave(CALLER, 1000 - 100 * depth, result=depth)
    assert [event.parent for event in traced.events[:5]] == [None, 1, 2, 3, 4]
    assert {event.call for event in traced.events} == {1}
    assert [event.span for event in traced.events[5:]] == [5, 4, 3, 2, 1]
    assert traced.tracer.calls_done == 1


def test_another_thread_is_another_call() -> None:
    traced = Traced()
    traced.enter(ROOT, CALLER, 1000, tid=1)
    traced.enter(ROOT, CALLER, 1000, tid=2)
    traced.enter(INNER, IN_ROOT, 900, tid=2)
    traced.enter(INNER, IN_ROOT, 900, tid=1)
    assert traced.tracer.calls_open == 2
    traced.leave(IN_ROOT, 900, tid=1)
    traced.leave(CALLER, 1000, tid=1)
    assert traced.tracer.calls_open == 1
    by_thread = {
        tid: [(e.type, e.name, e.call) for e in traced.events if e.tid == tid] for tid in (1, 2)
    }
    assert by_thread[1] == [
        ("enter", "root", 1),
        ("enter", "inner", 1),
        ("exit", "inner", 1),
        ("exit", "root", 1),
    ]
    assert by_thread[2] == [("enter", "root", 2), ("enter", "inner", 2)]


def test_a_return_of_somebody_else_at_the_same_place_is_passed_over() -> None:
    traced = Traced()
    traced.enter(ROOT, CALLER, 1000)
    traced.leave(CALLER, 900)
    traced.leave(IN_ROOT, 1000)
    traced.leave(CALLER, 1000, tid=2)
    assert traced.told == ["enter root"]
    traced.leave(CALLER, 1000)
    assert traced.told == ["enter root", "exit root"]


class TestLongjmp:
    def test_out_of_an_inner_function(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        traced.enter(INNER, IN_ROOT, 900)
        traced.enter(INNERMOST, IN_INNER, 800)
        traced.leave(CALLER, 1000)
        assert traced.told[3:] == ["lost innermost", "lost inner", "exit root"]
        assert traced.of("lost", "inner").values == {"why": "its return was not seen"}

    def test_out_of_the_root_and_in_again_from_another_frame(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, n=1)
        traced.enter(ROOT, CALLER, 1200, n=2)
        traced.leave(CALLER, 1200)
        assert traced.told == ["enter root", "lost root", "enter root", "exit root"]
        assert [event.call for event in traced.events] == [1, 1, 2, 2]
        assert traced.tracer.calls_done == 1

    def test_out_of_the_root_and_in_again_from_the_same_line(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, n=1)
        traced.enter(INNER, IN_ROOT, 900)
        traced.enter(ROOT, CALLER, 1000, n=2)
        traced.leave(CALLER, 1000, result=2)
        assert traced.told == [
            *("enter root", "enter inner", "lost inner", "lost root"),
            *("enter root", "exit root"),
        ]
        assert [event.call for event in traced.events] == [1, 1, 1, 1, 3, 3]
        assert traced.of("exit", "root").values == {"result": 2, "n": 2}

    def test_an_inner_call_again_after_it_jumped_to_the_root(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        traced.enter(INNER, IN_ROOT, 900, n=1)
        traced.enter(INNER, IN_ROOT, 900, n=2)
        traced.leave(IN_ROOT, 900)
        traced.leave(CALLER, 1000)
        assert traced.told == [
            *("enter root", "enter inner", "lost inner"),
            *("enter inner", "exit inner", "exit root"),
        ]
        assert {event.parent for event in traced.events if event.name == "inner"} == {1}


class TestPoints:
    def test_inside_it_belongs_to_the_innermost_span(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        traced.enter(INNER, IN_ROOT, 900)
        traced.tracer.point(POINT, At(850, n=7))
        point = traced.of("point", "point")
        assert (point.span, point.parent, point.call) == (None, 2, 1)
        assert point.values == {"n": 7}

    def test_after_a_longjmp_it_belongs_to_what_is_left(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        traced.enter(INNER, IN_ROOT, 900)
        traced.tracer.point(POINT, At(950))
        assert traced.of("point", "point").parent == 1

    def test_an_answer_is_recorded_anywhere(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, tid=1)
        traced.tracer.point(ANSWER, At(500, n=3, tid=2))
        answer = traced.of("point", "answer")
        assert (answer.parent, answer.call, answer.values) == (None, None, {"n": 3})

    def test_at_the_return_it_has_arguments_and_result(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000)
        assert traced.enter(ERROR, IN_ROOT, 900, n=4)
        traced.leave(IN_ROOT, 900, result=44)
        point = traced.of("point", "error")
        assert (point.parent, point.call) == (1, 1)
        assert point.values == {"result": 44, "n": 4}
        # It is no call of its own.
        assert traced.tracer.calls_done == 0
        traced.tracer.finish(9, "the end")
        assert traced.told == ["enter root", "point error", "lost root"]


class TestFilters:
    def test_a_call_that_is_not_wanted_is_silent_with_all_that_is_in_it(self) -> None:
        traced = Traced(n="2")
        for n in (1, 2):
            traced.enter(ROOT, CALLER, 1000, n=n)
            traced.enter(INNER, IN_ROOT, 900, n=n)
            traced.tracer.point(POINT, At(850, n=n))
            traced.enter(ERROR, IN_INNER, 840, n=n)
            traced.leave(IN_INNER, 840)
            traced.leave(IN_ROOT, 900)
            traced.leave(CALLER, 1000)
        assert len(traced.events) == 6
        assert {event.values["n"] for event in traced.events} == {2}
        assert len({event.call for event in traced.events}) == 1
        assert traced.tracer.calls_done == 1

    def test_it_is_not_open_either(self) -> None:
        traced = Traced(n="2")
        traced.enter(ROOT, CALLER, 1000, n=1)
        assert traced.tracer.calls_open == 0
        traced.tracer.finish(9, "the end")
        assert traced.events == []

    def test_a_value_that_is_unknown_fits_no_filter(self) -> None:
        traced = Traced(n="2")
        traced.enter(ROOT, CALLER, 1000, n=None)
        assert traced.events == []


def test_values_that_are_unavailable_say_why() -> None:
    missing: Captures = {"x": Unavailable("there is no argument or variable 'x' here"), **N}
    site = SpanSite("root", *PLACE, missing, RESULT, root=True)
    traced = Traced()
    traced.enter(site, CALLER, 1000, n=None)
    traced.leave(CALLER, 1000, result=3)
    assert traced.of("enter", "root").values == {
        "x": {"unavailable": "there is no argument or variable 'x' here"},
        "n": {"unavailable": "optimized out"},
    }
    assert traced.of("exit", "root").values == {
        "result": 3,
        "n": {"unavailable": "optimized out"},
    }


def test_what_is_open_at_the_end_is_lost_innermost_first() -> None:
    traced = Traced()
    traced.enter(ROOT, CALLER, 1000)
    traced.enter(INNER, IN_ROOT, 900)
    traced.tracer.finish(9, "the trace ended")
    assert traced.told[2:] == ["lost inner", "lost root"]
    assert [(event.t_ns, event.values) for event in traced.events[2:]] == [
        (9, {"why": "the trace ended"})
    ] * 2
    assert traced.tracer.calls_open == 0
    assert traced.tracer.calls_done == 0


@pytest.mark.parametrize("site", [ROOT, ERROR])
def test_what_is_needed_of_the_entry(site: SpanSite | ReturnPointSite) -> None:
    assert site.needed == {"n"}


def test_a_watched_value_that_cannot_be_read_for_a_while() -> None:
    """What it became meanwhile is not told as if it had changed between two lines."""
    traced = Traced()
    traced.enter(ROOT, CALLER, 100)
    for line, n in enumerate((1, None, None, 1, None, 2)):
        site = LineSite("root", *PLACE[:3], PLACE[-1], "a.c", line, 0, N)
        traced.tracer.line(site, 0x400, At(80, n))
    gone = unavailable("optimized out")
    assert [event.values["changed"] for event in traced.events if event.type == "line"] == [
        {"n": {"to": 1}},
        {"n": gone},
        {},
        {},
        {"n": gone},
        {"n": {"from": 1, "to": 2}},
    ]


class TestStacks:
    """A thread leaves one stack for another, as coroutines do, and comes back."""

    @pytest.mark.parametrize("other", [500, 5000], ids=["below", "above"])
    def test_a_span_stays_open_while_its_thread_is_on_another_stack(self, other: int) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, n=1, stack=1)
        traced.enter(INNER, IN_ROOT, 900, stack=1)
        # Here it yields to another coroutine, which does the same and goes on first.
        traced.enter(ROOT, CALLER, other, n=2, stack=2)
        traced.leave(CALLER, other, n=2, stack=2)
        traced.leave(IN_ROOT, 900, stack=1)
        traced.leave(CALLER, 1000, stack=1)
        assert traced.told == [
            *("enter root", "enter inner"),
            *("enter root", "exit root"),
            *("exit inner", "exit root"),
        ]
        first, second = (
            event for event in traced.events if event.type == "enter" and event.parent is None
        )
        assert (first.call, second.call) == (1, 3)
        assert traced.tracer.calls_done == 2

    def test_a_span_can_return_on_another_thread(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, stack=1, tid=1)
        assert traced.tracer.is_inside(1)
        traced.leave(CALLER, 1000, stack=1, tid=2)
        assert traced.told == ["enter root", "exit root"]
        assert not traced.tracer.is_inside(1)

    def test_what_a_thread_lost_is_lost_on_all_its_stacks(self) -> None:
        traced = Traced()
        traced.enter(ROOT, CALLER, 1000, stack=1, tid=1)
        traced.enter(ROOT, CALLER, 5000, stack=2, tid=1)
        traced.enter(ROOT, CALLER, 9000, stack=3, tid=2)
        traced.tracer.lose(1, 0, "events were lost")
        assert traced.told[3:] == ["lost root", "lost root"]
        assert traced.tracer.calls_open == 1


class Process:
    """Its mappings, and how often they were read."""

    def __init__(self, *mappings: tuple[int, int]) -> None:
        self.mappings = mappings
        self.reads = 0
        self.stacks = Stacks(self.read)

    def read(self) -> Sequence[tuple[int, int]]:
        self.reads += 1
        return self.mappings


def test_stacks_of_one_thread_are_told_apart_by_their_mappings() -> None:
    # A page that cannot be written guards each of them.
    process = Process((0x1000, 0x8000), (0x9000, 0x10000))
    first = process.stacks.number(1, 0x7FF0)
    second = process.stacks.number(1, 0xFFF0)
    assert first != second
    assert process.reads == 2
    assert [process.stacks.number(1, sp) for sp in (0x1000, 0x9000, 0x4000)] == [
        first,
        second,
        first,
    ]
    assert process.reads == 2


def test_a_stack_that_grows_stays_the_same() -> None:
    process = Process((0x5000, 0x8000))
    stack = process.stacks.number(1, 0x7000)
    process.mappings = ((0x1000, 0x8000),)
    assert process.stacks.number(1, 0x1800) == stack
    # A mapping above it was joined with it.
    process.mappings = ((0x1000, 0x9000),)
    assert process.stacks.number(1, 0x8800) == stack


def test_a_stack_that_another_thread_takes_over_is_looked_at_again() -> None:
    process = Process((0x1000, 0x9000))
    old = process.stacks.number(1, 0x8000)
    process.mappings = ((0x1000, 0x4000), (0x5000, 0x9000))
    assert process.stacks.number(2, 0x3000) != process.stacks.number(2, 0x8000) == old


def test_a_stack_that_is_in_no_mapping_is_that_of_its_thread() -> None:
    process = Process()
    assert process.stacks.number(7, 0x1000) == -7
