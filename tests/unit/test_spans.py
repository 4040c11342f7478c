from __future__ import annotations

import itertools
import random

import pytest

from tests.support import samples
from virtrace.analysis.qmp import Exchange, size
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.trace.format import Event, unavailable


def built(events: list[Event]) -> tuple[list[Call], CallBuilder]:
    builder = CallBuilder()
    calls = [call for event in events if (call := builder.feed(event)) is not None]
    return calls + builder.finish(), builder


def shape(node: object) -> object:
    if isinstance(node, Span):
        return (node.name, [shape(child) for child in node.children])
    if isinstance(node, Exchange):
        return (node.command, node.id, node.reply is not None)
    assert isinstance(node, Point)
    return node.event.name


def test_one_call() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    builder = CallBuilder()
    handed_out = [builder.feed(event) for event in events]
    assert handed_out[:-1] == [None] * (len(events) - 1)
    call = handed_out[-1]
    assert call is not None
    assert call.complete
    assert not call.failed
    assert shape(call.root) == (
        "virDomainGetBlockInfo",
        [
            (
                "qemuDomainGetBlockInfo",
                [
                    (
                        "qemuDomainBlocksStatsGather",
                        [
                            (
                                "qemuMonitorGetAllBlockStatsInfo",
                                [
                                    (
                                        "qemuMonitorJSONQueryBlockstats",
                                        [("query-blockstats", "libvirt-12", True)],
                                    )
                                ],
                            )
                        ],
                    )
                ],
            )
        ],
    )
    assert call.root.arguments == {"domain": "vm1", "disk": "vda", "flags": 0}
    assert call.root.returned == {"result": 0, "info": samples.INFO}
    assert call.root.duration_ns == events[-1].t_ns - events[0].t_ns
    assert builder.finish() == []
    assert vars(builder.tally) == {
        **{"calls": 1, "apart": 0},
        **{"failed": 0, "incomplete": 0, "outside": 0},
    }


@pytest.mark.parametrize("seed", range(20))
def test_eight_threads_never_mix(seed: int) -> None:
    """Any interleaving of the threads gives the trees that each alone would give."""
    recorder = samples.Recorder()
    threads = [
        [
            samples.blockinfo(recorder, f"vd{name}", f"vm{name}", 100 + thread, 10 * thread + turn)
            for turn, name in enumerate("abcde")
        ]
        for thread in range(8)
    ]
    alone = {}
    for events in itertools.chain.from_iterable(threads):
        (call,), _ = built(events)
        alone[call.id] = call
    queues = [list(itertools.chain.from_iterable(calls)) for calls in threads]
    chance = random.Random(seed)
    mixed = []
    while any(queues):
        mixed.append(chance.choice([queue for queue in queues if queue]).pop(0))
    together, builder = built(mixed)
    assert {call.id: call for call in together} == alone
    assert builder.tally.calls == 40
    assert builder.tally.incomplete == builder.tally.outside == 0


def test_thread_ids_do_not_decide() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    scattered = [event._replace(tid=event.seq) for event in events]
    (call,), _ = built(scattered)
    assert call.complete
    assert len(list(call.nodes())) == 6


def test_failed_call_knows_its_errors() -> None:
    recorder = samples.Recorder()
    (call,), builder = built(samples.blockinfo(recorder, error="no such disk"))
    assert call.failed
    assert [event.values["message"] for event in call.errors()] == ["no such disk"]
    assert builder.tally.failed == 1


def test_error_that_was_got_over_is_no_failure() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    error = recorder.add("point", "error", parent=1, call=1, values={"code": 1})
    (call,), _ = built([*events[:-1], error, events[-1]])
    assert call.errors() == [error]
    assert not call.failed


def test_null_result_fails_only_with_an_error() -> None:
    recorder = samples.Recorder()
    enter = recorder.add("enter", "virDomainGetXMLDesc", span=1, call=1)
    error = recorder.add("point", "error", parent=1, call=1, values={"code": 1})
    leave = recorder.add("exit", "virDomainGetXMLDesc", span=1, call=1, values={"result": "0x0"})
    (call,), _ = built([enter, error, leave])
    assert call.failed
    (call,), _ = built([enter, leave])
    assert not call.failed


def test_open_calls_come_out_incomplete_at_the_end() -> None:
    recorder = samples.Recorder()
    whole = samples.blockinfo(recorder)
    for length in range(1, len(whole)):
        calls, builder = built(whole[:length])
        assert len(calls) == 1
        assert not calls[0].complete
        assert "the return of virDomainGetBlockInfo was not seen" in calls[0].problems
        assert builder.tally.incomplete == 1


def test_lost_return_inside_a_call() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    index = next(i for i, event in enumerate(events) if event.type == "exit")
    why = {"why": "stack was unwound"}
    events[index] = events[index]._replace(type="lost", values=why)
    (call,), _ = built(events)
    assert call.root.returned is not None
    assert call.problems == [
        "the return of qemuMonitorJSONQueryBlockstats was not seen: stack was unwound"
    ]


def test_lost_return_of_the_outermost_span_ends_its_tree() -> None:
    recorder = samples.Recorder()
    enter = recorder.add("enter", "virDomainGetBlockInfo", span=1, call=1)
    lost = recorder.add("lost", "virDomainGetBlockInfo", span=1, call=1, values={"why": "ended"})
    builder = CallBuilder()
    assert builder.feed(enter) is None
    call = builder.feed(lost)
    assert call is not None
    assert call.root.lost == "ended"
    assert not call.complete


@pytest.mark.parametrize("missing", range(12))
def test_any_event_missing_is_told_and_moves_nothing_to_another_tree(missing: int) -> None:
    recorder = samples.Recorder()
    damaged = samples.blockinfo(recorder)
    sound = samples.blockinfo(recorder, domain="vm2", tid=78, number=50)
    kind = damaged.pop(missing)
    mixed = [event for pair in zip(damaged, sound) for event in pair] + sound[len(damaged) :]
    calls, builder = built(mixed)
    (alone,), _ = built(sound)
    assert [call for call in calls if call.id == alone.id] == [alone]
    if kind.type in ("enter", "exit"):
        assert builder.tally.incomplete >= 1
    for call in calls:
        if call.id != alone.id:
            assert {node.name for node in call.nodes() if isinstance(node, Span)} <= {
                event.name for event in damaged
            }


def test_what_happens_outside_of_calls_is_handed_out_as_it_ends() -> None:
    recorder = samples.Recorder()
    sent, received = samples.qmp("query-status", 1, {})
    later, _ = samples.qmp("query-block", 2, {})
    send, unanswered, error, reply = (
        recorder.add("point", name, values=values)
        for name, values in (
            ("qmp.send", sent),
            ("qmp.send", later),
            ("error", {"code": 38}),
            ("qmp.reply", received),
        )
    )
    builder = CallBuilder()
    point, answered, open_ = builder.everything([send, unanswered, error, reply])
    assert isinstance(point, Point)
    assert isinstance(answered, Exchange)
    assert isinstance(open_, Exchange)
    assert point.event is error
    assert (answered.send, answered.reply) == (send, reply)
    assert (open_.send, open_.reply) == (unanswered, None)
    assert (builder.tally.calls, builder.tally.apart, builder.tally.outside) == (0, 3, 0)
    assert builder.pop_outside_calls() == []


def test_events_of_calls_that_are_not_in_the_trace_are_counted() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    builder = CallBuilder()
    points = [event for event in events if event.type == "point"]
    assert list(builder.everything(points)) == []
    assert builder.tally.outside == len(points)


def test_a_span_that_begins_twice_does_not_break_its_tree() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    (call,), _ = built([events[0], events[0], *events[1:]])
    assert call.problems == ["span 1 begins twice"]


def test_builder_keeps_nothing_of_finished_calls() -> None:
    recorder = samples.Recorder()
    builder = CallBuilder()
    for number in range(50):
        for event in samples.blockinfo(recorder, number=number):
            if event.name != "qmp.reply":
                builder.feed(event)
    assert builder.tally.calls == 50
    assert not builder._open
    assert not builder._requests


def _exchanges(*points: tuple[str, dict[str, object]]) -> list[tuple[int, int | None]]:
    """`seq` of each command, and of its reply: points outside of calls, as version 1 has them."""
    recorder = samples.Recorder()
    for name, values in points:
        recorder.add("point", name, values=values)
    nodes = CallBuilder().everything(recorder.events)
    exchanges = [node for node in nodes if isinstance(node, Exchange)]
    assert len(exchanges) == sum(name == "qmp.send" for name, _ in points)
    return sorted((one.send.seq, one.reply.seq if one.reply else None) for one in exchanges)


def test_replies_go_by_monitor_and_id() -> None:
    sent, received = samples.qmp("query-block", 1, [])
    assert _exchanges(
        ("qmp.send", sent),
        ("qmp.send", {**sent, "mon": "0x1"}),
        ("qmp.reply", {**received, "mon": "0x1"}),
        ("qmp.reply", received),
        ("qmp.reply", received),
    ) == [(0, 3), (1, 2)]


@pytest.mark.parametrize(
    "change",
    [
        {"json": {"return": []}},
        {"json": {"return": [], "id": 1}},
        {"json": unavailable("the text was cut")},
        {"json": "text"},
        {"mon": unavailable("optimized out")},
    ],
)
def test_where_an_id_is_missing_nothing_is_guessed(change: dict[str, object]) -> None:
    sent, received = samples.qmp("query-block", 1, [])
    assert _exchanges(
        ("qmp.send", sent),
        ("qmp.reply", {**received, **change}),
        ("qmp.send", {**sent, **change}),
    ) == [(0, None), (2, None)]


def test_size_of_texts() -> None:
    assert size("größer") == 8
    assert size({"text": "abc", "length": 10_000_000}) == 10_000_000
    assert size({"bytes": "/w=="}) == 1
    assert size({"bytes": "/w==", "length": 20}) == 20
    assert size({"bytes": "x"}) is None
    assert size(unavailable("unmapped")) is None
