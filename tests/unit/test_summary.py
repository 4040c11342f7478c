"""Many calls at once: what is counted, and how it reads."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.support import samples
from tests.support.paths import DATA
from virtrace.analysis.spans import CallBuilder
from virtrace.analysis.spent import TimeSpent
from virtrace.analysis.summary import Statistics, Summary, histograms, summarize
from virtrace.report import summary as many
from virtrace.report.highlight import Style, cells
from virtrace.trace.format import Event, unavailable
from virtrace.trace.reader import read_trace

SAMPLE = DATA / "sample-blockinfo.jsonl"


def of(events: list[Event]) -> Summary:
    return summarize(CallBuilder().calls(events))


def lines_of(summary: Summary, style: Style) -> list[str]:
    return [*many.summary_lines(summary, TimeSpent(read_trace(SAMPLE)), style)]


def statistics(durations: list[int]) -> Statistics:
    row = Statistics("f")
    row.durations_ns = durations
    return row


@pytest.mark.parametrize(
    ("durations", "median", "p90", "p99"),
    [
        ([7], 7, 7, 7),
        ([1, 2], 1, 2, 2),
        ([3, 1, 2], 2, 3, 3),
        (list(range(1, 201)), 100, 180, 198),
        (list(range(1000, 0, -1)), 500, 900, 990),
    ],
)
def test_percentiles(durations: list[int], median: int, p90: int, p99: int) -> None:
    row = statistics(durations)
    assert [row.percentile_ns(each) for each in (50, 90, 99)] == [median, p90, p99]


def test_percentiles_are_what_their_definition_says() -> None:
    chance = random.Random(5)
    for number in range(1, 60):
        durations = [chance.randrange(40) for _ in range(number)]
        for percent in (50, 90, 99):
            told = statistics(durations).percentile_ns(percent)
            # The least value of them that so many percent do not exceed.
            enough = [
                value
                for value in durations
                if 100 * sum(other <= value for other in durations) >= percent * number
            ]
            assert told == min(enough)
    assert statistics([]).percentile_ns(50) is None


def raw_durations() -> dict[str, list[int]]:
    """By function and QMP command, from the lines of the file and nothing else."""
    durations: dict[str, list[int]] = {}
    open_: dict[Any, tuple[str, int]] = {}
    for line in SAMPLE.read_text().splitlines():
        event = json.loads(line)
        if event["type"] == "enter":
            open_[event["span"]] = event["name"], event["t_ns"]
        elif event["type"] == "exit":
            name, start = open_[event["span"]]
            durations.setdefault(name, []).append(event["t_ns"] - start)
        elif event.get("name") == "qmp.send":
            sent = event["values"]["json"]
            open_[sent["id"]] = sent["execute"], event["t_ns"]
        elif event.get("name") == "qmp.reply":
            name, start = open_[event["values"]["json"]["id"]]
            durations.setdefault(name, []).append(event["t_ns"] - start)
    return durations


def test_a_real_trace_counted_a_second_way() -> None:
    summary = of(read_trace(SAMPLE).events)
    rows = {**summary.functions, **summary.commands}
    raw = raw_durations()
    assert set(rows) == set(raw)
    for name, row in rows.items():
        assert sorted(row.durations_ns) == sorted(raw[name])
        assert (row.count, row.errors, row.unfinished) == (len(raw[name]), 0, 0)
        assert row.max_ns == max(raw[name])
    assert summary.calls.count == 4


def test_every_duration_is_in_its_bucket() -> None:
    chance = random.Random(7)
    for longest in (5, 100, 10**4, 10**6, 10**11):
        durations = [[chance.randrange(longest) for _ in range(50)] for _ in range(3)]
        rulers = histograms([statistics(row) for row in durations])
        for row, ruler in zip(durations, rulers):
            for bucket in ruler:
                held = [ns for ns in row if bucket.from_ns <= ns < bucket.to_ns]
                assert len(held) == bucket.count
            assert sum(bucket.count for bucket in ruler) == len(row)
            bounds = [(bucket.from_ns, bucket.to_ns) for bucket in ruler]
            assert [end for _, end in bounds[:-1]] == [start for start, _ in bounds[1:]]
            assert bounds == [(bucket.from_ns, bucket.to_ns) for bucket in rulers[0]]
            assert len(bounds) <= 40
    assert histograms([statistics([])]) == [[]]


def test_the_steps_of_the_buckets_are_round() -> None:
    [ruler] = histograms([statistics([1_000_000, 9_999_999])])
    starts = [bucket.from_ns // 100_000 for bucket in ruler]
    assert starts == [10, 12, 15, 20, 25, 30, 40, 50, 60, 80]
    [ruler] = histograms([statistics([1_000, 9_999_999])])
    assert [bucket.from_ns for bucket in ruler][:4] == [1_000, 2_000, 5_000, 10_000]


def test_errors_and_what_did_not_end() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    samples.blockinfo(recorder, error="no such disk", number=13)
    last = samples.blockinfo(recorder, number=14)
    # The trace ends while QEMU is asked.
    del recorder.events[-len(last) + 6 :]
    summary = of(recorder.events)
    assert (summary.calls.count, summary.calls.errors, summary.calls.unfinished) == (3, 1, 1)
    assert summary.incomplete == 1
    assert summary.functions["qemuDomainGetBlockInfo"].errors == 1
    assert summary.functions["qemuDomainBlocksStatsGather"].unfinished == 1
    assert summary.commands["query-blockstats"].unfinished == 1
    text = "\n".join(lines_of(summary, Style(width=160)))
    assert text.startswith("3 calls, 1 failed, 1 incomplete, median")
    assert "1 of them not seen to end; the times are of the others" in text


def test_an_error_of_qemu_is_one() -> None:
    recorder = samples.Recorder()
    events = samples.blockinfo(recorder)
    reply = next(event for event in events if event.name == "qmp.reply")
    reply.values["json"] = {"id": "libvirt-12", "error": {"class": "GenericError", "desc": "no"}}
    assert of(events).commands["query-blockstats"].errors == 1


def info(recorder: samples.Recorder, values: Any, **how: Any) -> None:
    for event in samples.blockinfo(recorder, **how):
        if "info" in event.values:
            event.values["info"] = values


def test_how_the_numbers_of_a_disk_moved() -> None:
    recorder = samples.Recorder()
    for allocation in (4096, 4096, 65536, 0, 8192):
        info(recorder, {**samples.INFO, "allocation": allocation})
    samples.blockinfo(recorder, error="gone")
    info(recorder, unavailable("cannot read"))
    info(recorder, {**samples.INFO, "allocation": 1}, disk="vdb")
    summary = of(recorder.events)
    vda, vdb = summary.disks.values()
    assert (vda.domain, vda.disk, vda.calls, vda.failed) == ("vm1", "vda", 7, 1)
    moved = vda.numbers["allocation"]
    # The zeros of the call that failed are no answer.
    assert moved.values == [4096, 65536, 0, 8192]
    assert (moved.told, moved.unavailable) == (5, 1)
    assert [move.call.id for move in moved.moves] == [1, 11, 16, 21]
    assert vda.numbers["capacity"].values == [samples.GIB2]
    assert vdb.numbers["allocation"].values == [1]
    lines = lines_of(summary, Style(width=160, unicode=True))
    assert "vm1 vda, 7 calls, 1 failed" in lines
    assert (
        "  allocation 4096 (4.000 KiB) -> 8192 (8.000 KiB) +4,096, 3 changes, lowest 0, "
        "highest 65536 (64.000 KiB) unavailable in 1 call"
    ) in lines
    assert "  capacity   2147483648 (2.000 GiB) throughout unavailable in 1 call" in lines
    assert "  allocation 1" in lines


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("unicode", [False, True])
def test_it_fits_the_terminal(width: int, unicode: bool) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain="vm\u4e16\u754c" * 20)
    samples.blockinfo(recorder, error="no", number=13)
    summary = of([*recorder.events, *read_trace(SAMPLE).events])
    lines = lines_of(summary, Style(width=width, unicode=unicode))
    assert max(map(cells, lines)) <= width
    if not unicode:
        assert all(line.isascii() for line in lines)


def test_latencies_of_a_real_trace_in_a_wide_terminal() -> None:
    lines = lines_of(of(read_trace(SAMPLE).events), Style(width=120, unicode=True))
    assert lines[0] == (
        "4 calls, none failed, median 13.1 ms, slowest 74.1 ms (the call at +0.017 s)"
    )
    row = next(line for line in lines if line.startswith("virDomainGetBlockInfo"))
    assert row.split()[:7] == ["virDomainGetBlockInfo", "4", "-", "13.1", "ms", "74.1", "ms"]
    assert row.split()[-1] == "·······█▄·····▄"


def test_no_calls() -> None:
    assert lines_of(of([]), Style())[0] == "no calls"
