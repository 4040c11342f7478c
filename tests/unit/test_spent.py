"""Where the time of calls went: every nanosecond once, and in the right place."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support import samples
from tests.support.paths import DATA
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Span
from virtrace.analysis.spent import LOCK, QEMU, REST, WORKER, TimeSpent, parts
from virtrace.trace import roles
from virtrace.trace.format import Event, SwitchedOff
from virtrace.trace.reader import Trace, read_trace

SAMPLE = DATA / "sample-blockinfo.jsonl"
CHANCE = random.Random(18)


def event(t_ns: int, role: str | None = None, **values: Any) -> Event:
    made = samples.Recorder().add("point", "p", values=values)
    return made._replace(t_ns=t_ns, role=role)


def span(start: int, end: int | None, *children: Any, role: str | None = None) -> Span:
    return Span(1, "f", 1, start, {}, role, end, {}, children=list(children))


def exchange(start: int, end: int) -> Exchange:
    send = event(start, roles.QMP_COMMAND, json={"execute": "query", "id": "1"})
    return Exchange(send, event(end))


def kinds(call: Call) -> dict[str, int]:
    divided = parts(call)
    assert divided is not None
    told: dict[str, int] = {}
    for part in divided:
        assert part.ns > 0
        told[part.kind] = told.get(part.kind, 0) + part.ns
    return told


def test_each_kind() -> None:
    lock = span(20, 50, role=roles.LOCK)
    root = span(10, 100, lock, span(50, 90, exchange(60, 85)))
    call = Call(1, root, received=event(3))
    assert kinds(call) == {WORKER: 7, LOCK: 30, QEMU: 25, REST: 35}


def test_what_was_not_seen_to_end_is_left_out() -> None:
    time = TimeSpent(read_trace(SAMPLE))
    unanswered = Exchange(exchange(3, 4).send)
    for root in (span(1, None), span(1, 9, unanswered)):
        time.add(Call(1, root))
    time.add(Call(1, span(1, 9), problems=["the entry of f is not in the trace"]))
    assert (time.left_out, time.calls.count) == (3, 0)


def generated(start: int, end: int, depth: int) -> Span:
    """With children that may overlap, and that may reach out of it, as a stranger's trace can."""
    children: list[Any] = []
    for _ in range(CHANCE.randrange(4) if depth else 0):
        first, last = sorted(CHANCE.randrange(start - 5, end + 5) for _ in range(2))
        if CHANCE.randrange(2):
            children.append(exchange(first, last))
        else:
            children.append(generated(first, last + 1, depth - 1))
    role = roles.LOCK if not CHANCE.randrange(4) else None
    return span(start, end, *children, role=role)


def test_the_parts_are_the_whole() -> None:
    for _ in range(500):
        root = generated(100, 100 + CHANCE.randrange(1, 200), 4)
        call = Call(1, root, received=event(CHANCE.randrange(150)))
        queued = max(root.t_enter_ns - (call.received.t_ns if call.received else 0), 0)
        assert sum(kinds(call).values()) == queued + (root.duration_ns or 0)


def test_a_real_trace() -> None:
    trace = read_trace(SAMPLE)
    time = TimeSpent(trace)
    calls = list(CallBuilder().calls(trace))
    assert list(time.watch(calls)) == calls
    assert time.unknown is None
    assert time.told == {QEMU}
    awaited = [
        node.duration_ns or 0
        for call in calls
        for node in call.nodes()
        if isinstance(node, Exchange)
    ]
    assert time.calls.ns[QEMU] == sum(awaited)
    assert time.calls.total_ns == sum(call.root.duration_ns or 0 for call in calls)
    assert [*time.domains] == ["vm1"]
    assert [row.total_ns for row in time.apis.values()] == [time.calls.total_ns]


@pytest.mark.parametrize("lacks", ["switched off", "dropped", "probes"])
def test_what_the_trace_cannot_tell(lacks: str) -> None:
    trace = read_trace(SAMPLE)
    header, footer, off = trace.header, trace.footer, list[SwitchedOff]()
    assert footer is not None
    if lacks == "switched off":
        off = [SwitchedOff(type="switched-off", name="qmp.send", kind="point", t_ns=1, why="load")]
    elif lacks == "dropped":
        footer = {**footer, "dropped": 1}
    else:
        header = {**header, "probes": [p for p in header["probes"] if p["name"] != "qmp.reply"]}
    time = TimeSpent(Trace(header, trace.events, footer, switched_off=off))
    assert time.unknown is not None


def test_the_number_of_names_is_limited() -> None:
    time = TimeSpent(read_trace(SAMPLE))
    for number in range(3000):
        call = Call(1, span(1, 9))
        call.root.name = f"f{number}"
        time.add(call)
    assert len(time.apis) == 1001
    assert time.apis["others"].count == 2000
