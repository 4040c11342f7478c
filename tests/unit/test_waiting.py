"""What had not ended when the trace did, and calls of clients, from events made by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import samples
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.analysis.waiting import Waiting, ended_ns, waiting
from virtrace.report import document, text
from virtrace.report.highlight import Style
from virtrace.trace.format import ENDED, Event, SwitchedOff
from virtrace.trace.reader import Trace

IDENTITY = {"user-name": "root", "unix-user-id": 0, "process-id": 4242}


SWITCHED_OFF: SwitchedOff = {
    "type": "switched-off",
    "t_ns": 0,
    "name": "qmp.send",
    "kind": "point",
    "why": "too dear",
}


def trace(events: list[Event], **footer: Any) -> Trace:
    return Trace(samples.HEADER, events, samples.footer(events, **footer))


def found(whole: Trace) -> list[Waiting]:
    return waiting(CallBuilder().everything(whole.events), ended_ns(whole))


def test_where_a_probe_was_switched_off_nothing_is_said_to_wait() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    whole = trace(cut(recorder, 1))
    nodes = list(CallBuilder().everything(whole.events))
    assert waiting(nodes, ended_ns(whole))
    assert waiting(nodes, ended_ns(whole), [SWITCHED_OFF]) == []


def shown(whole: Trace) -> list[str]:
    return list(text.still_waiting(found(whole), Style(width=80)))


def cut(recorder: samples.Recorder, calls: int, *, lost: bool = True) -> list[Event]:
    """The events of the last call up to its QMP command; lost: as the engine ends a trace."""
    while recorder.events[-1].name != "qmp.send":
        recorder.events.pop()
    entered = [event for event in recorder.events if event.type == "enter" and event.call == calls]
    for event in reversed(entered if lost else []):
        place = {"span": event.span, "parent": event.parent, "call": event.call}
        recorder.add("lost", event.name, values={"why": ENDED}, **place)
    return recorder.events


@pytest.mark.parametrize("lost", [True, False])
def test_a_command_without_a_reply_is_what_its_call_waits_for(lost: bool) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    samples.blockinfo(recorder, number=13)
    events = cut(recorder, 6, lost=lost)
    [send] = [event for event in events if event.name == "qmp.send" and event.call == 6]
    whole = trace(events, t_ns=send.t_ns + 5_000_000_000)
    [one] = found(whole)
    assert isinstance(one.node, Exchange)
    assert (one.node.id, one.ns) == ("libvirt-13", 5_000_000_000)
    assert one.call is not None
    assert one.call.id == 6
    told = " ".join(" ".join(shown(whole)).split())
    assert told == (
        "still waiting when the trace ended, since: 5.0 s QMP query-blockstats libvirt-13 "
        f'{{"query-nodes": true}} to monitor {samples.MON} in virDomainGetBlockInfo(vm1, vda)'
    )


def test_the_innermost_function_waits_where_no_command_does() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    events = recorder.events[:2]
    # Without the time of its end a trace ends when it last heard something.
    [one] = found(Trace(samples.HEADER, events))
    assert isinstance(one.node, Span)
    assert (one.node.name, one.ns) == ("qemuDomainGetBlockInfo", 0)


def test_nothing_waits_where_all_has_ended_or_was_given_up() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    assert found(trace(recorder.events)) == []
    assert shown(trace(recorder.events)) == []
    events = cut(recorder, 1)
    for event in events:
        if event.type == "lost":
            event.values["why"] = "its return was not seen"
    assert found(trace(events)) == []


def message(recorder: samples.Recorder, serial: int, kind: int = 0) -> Event:
    values = {"client": "0x55", "program": 536903814, "serial": serial, "type": kind}
    return recorder.add("point", "rpc.received", tid=1, values=values)


def dispatch(recorder: samples.Recorder, serial: int, status: int) -> None:
    call = recorder.new_span()
    place = {"parent": call, "call": call}
    values = {"client": "0x55", "program": 536903814, "serial": serial}
    name = "virNetServerProgramDispatch"
    recorder.add("enter", name, span=call, call=call, values=values)
    recorder.add("point", "rpc.client", values={"identity": IDENTITY}, **place)
    recorder.add("point", "rpc.procedure", values={"name": "remoteDispatchX"}, **place)
    recorder.add("point", "rpc.reply", values={"serial": serial, "status": status}, **place)
    recorder.add("exit", name, span=call, call=call, values={"result": 0})


def test_a_message_belongs_to_the_call_that_it_became() -> None:
    """Of two clients' calls that wait, each to its own; keepalive is none."""
    recorder = samples.Recorder()
    first, second, alive = (message(recorder, 7), message(recorder, 8), message(recorder, 8, 2))
    dispatch(recorder, 8, 1)
    dispatch(recorder, 7, 0)
    nodes = list(CallBuilder().everything(recorder.events))
    point, *calls = nodes
    assert isinstance(point, Point)
    assert point.event is alive
    assert all(isinstance(call, Call) for call in calls)
    assert [call.received for call in calls if isinstance(call, Call)] == [second, first]
    assert [call.failed for call in calls if isinstance(call, Call)] == [True, False]
    failed, good = calls
    assert isinstance(failed, Call)
    assert (failed.procedure, failed.client) == ("remoteDispatchX", IDENTITY)
    assert failed.queued_ns == failed.root.t_enter_ns - second.t_ns
    [line, *_] = text.call_tree(failed, Style(width=200))
    assert line == "failed, and no error was seen"
    assert isinstance(good, Call)
    [line, *_] = text.call_tree(good, Style(width=200))
    assert " remoteDispatchX of process 4242 = 0 in 852 us after 1.7 ms of waiting" in line


def test_a_message_that_no_worker_took_up_waits() -> None:
    recorder = samples.Recorder()
    lost = message(recorder, 7)
    message(recorder, 8)
    dispatch(recorder, 8, 0)
    whole = trace(recorder.events, t_ns=lost.t_ns + 61_000_000_000)
    [one] = found(whole)
    assert (one.call, one.ns) == (None, 61_000_000_000)
    told = " ".join(shown(whole))
    assert "1 min 1 s rpc.received" in told
    assert "picked up by no worker" in " ".join(told.split())
    lines = document.document_lines(whole, CallBuilder().everything(whole.events))
    shape = json.loads("\n".join(lines))
    assert [row["ns"] for row in shape["waiting"]] == [61_000_000_000]
    assert shape["waiting"][0]["for"]["name"] == "rpc.received"
    assert shape["calls"][0]["received"]["values"]["serial"] == 8
