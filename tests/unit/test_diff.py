"""``virtrace diff`` on traces of the lab, and on what is built from them."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import jsonschema_rs
import pytest

from tests.support import mutations, samples
from tests.support.command import ENVIRONMENT, virtrace
from tests.support.documents import documented_names, keys, lacking
from tests.support.paths import DATA, DOCS
from virtrace.analysis.compare.align import longest_common
from virtrace.analysis.compare.model import Comparison, Pair
from virtrace.analysis.compare.traces import compare_traces as compare
from virtrace.report import difference, difference_document
from virtrace.report.difference import sentence
from virtrace.report.highlight import Style, cells
from virtrace.trace.format import MAX_DEPTH, Event, unavailable
from virtrace.trace.reader import Trace, read_trace

OLD = DATA / "diff" / "last-sector-7.0.0.jsonl"
NEW = DATA / "diff" / "last-sector-12.8.0.jsonl"
SAMPLE = DATA / "sample-blockinfo.jsonl"
DISCARDED = DATA / "explain" / "discarded-9.0.0.jsonl"
# Those with calls.
TRACES = [file for file in sorted(DATA.rglob("*.jsonl")) if b'"enter"' in file.read_bytes()]
VALIDATOR = jsonschema_rs.Draft202012Validator(difference_document.difference_schema())
ANSWER = (
    "`parent` is missing in B, so the high-water mark is not used there: "
    "allocation 2.000 GiB against 4.000 KiB, physical the other way round."
)

Edit = Callable[[dict[str, Any]], None]


def edited(path: Path, *edits: Edit) -> Trace:
    """A trace of which every record went through the edits."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        for edit in edits:
            edit(record)
    with NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl") as file:
        file.writelines(f"{json.dumps(record)}\n" for record in records)
        file.flush()
        return read_trace(file.name)


def text_of(found: Comparison, *, full: bool = False, width: int = 10**6) -> str:
    style = Style(width, unicode=True, full=full)
    return "\n".join(difference.difference_lines(found, style, paths=("a", "b")))


def only(found: Comparison) -> Pair:
    [pair] = found.pairs
    return pair


def kinds(pair: Pair) -> set[tuple[str, str, str]]:
    return {(each.kind, each.place.where, each.path) for each in pair.differences}


def other_daemon(record: dict[str, Any]) -> None:
    if record["type"] == "header":
        record["target"]["pid"] += 1


def in_text(old: str, new: str) -> Edit:
    """Replaced wherever it stands in a record."""

    def edit(record: dict[str, Any]) -> None:
        replaced = json.loads(json.dumps(record).replace(old, new))
        record.clear()
        record.update(replaced)

    return edit


def in_values(name: str, change: Callable[[dict[str, Any]], None], kind: str = "") -> Edit:
    """Of the events of one probe, where they have what is changed."""

    def edit(record: dict[str, Any]) -> None:
        if record.get("name") == name and record["type"].startswith(kind):
            change(record["values"])

    return edit


def in_disk(change: Callable[[dict[str, Any]], None]) -> Edit:
    """What query-blockstats says of the one disk of a trace."""

    def reply(values: dict[str, Any]) -> None:
        for entry in values["json"]["return"]:
            if "qdev" in entry:
                change(entry)

    return in_values("qmp.reply", reply)


# The showcase


def test_the_same_disk_and_the_same_write_on_two_versions() -> None:
    found = compare(read_trace(OLD), read_trace(NEW))
    pair = only(found)
    assert sentence(pair) == ANSWER
    assert kinds(pair) >= {
        ("value", "virDomainGetBlockInfo", ".info.allocation"),
        ("value", "qemuDomainBlocksStatsGather", ".stats.wr_highest_offset_valid"),
        ("only-a", "query-blockstats", ".parent"),
        ("only-b", "query-named-block-nodes", ".flat"),
        ("value", "query-named-block-nodes", ".drv"),
    }
    [step] = pair.steps
    assert (step.side, step.kind, step.name) == ("b", "qmp", "query-blockstats")
    assert step.arguments == {"query-nodes": True}
    assert {each.name: each.side for each in found.hidden} == {
        "qemuMonitorJSONQueryBlockstats": "b",
        "qemuMonitorBlockStatsUpdateCapacityBlockdev": "b",
    }


def test_the_answer_is_first_and_fits_a_screen() -> None:
    found = compare(read_trace(OLD), read_trace(NEW))
    first, *rest = text_of(found).splitlines()
    assert first == f"vm1 vdd: {ANSWER}"
    assert "  cause    high-water-mark in A, no-high-water-mark in B" in rest
    shown = text_of(found, width=100).splitlines()
    assert len(shown) <= 40
    assert "zone_append_bytes" not in text_of(found)
    full = text_of(found, full=True)
    assert "query-blockstats .stats.zone_append_bytes 0 only in B" in full
    # What is only handed on stands in the whole list alone.
    handed_on = "qemuDomainGetBlockInfo .info.allocation 2147483648 (2.000 GiB) -> 4096"
    assert handed_on in full
    assert handed_on not in text_of(found)


def test_the_other_way_round() -> None:
    forth, back = (
        compare(read_trace(OLD), read_trace(NEW)),
        compare(read_trace(NEW), read_trace(OLD)),
    )
    assert sentence(only(back)) == (
        "`parent` is missing in A, so the high-water mark is not used there: "
        "allocation 4.000 KiB against 2.000 GiB, physical the other way round."
    )
    turned = {"only-a": "only-b", "only-b": "only-a"}
    assert kinds(only(back)) == {
        (turned.get(kind, kind), *place) for kind, *place in kinds(only(forth))
    }


EXPLAIN = DATA / "explain"


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (
            "discarded-9.0.0",
            "restarted-9.0.0",
            "nothing was written in B since QEMU opened the image, so the high-water mark is not "
            "used there: allocation 64.000 MiB against 8.000 KiB, physical 4.000 KiB against "
            "64.000 MiB.",
        ),
        (
            "copy-on-read-7.0.0",
            "copy-on-read-12.8.0",
            "QEMU reported no highest offset in A, so the high-water mark is not used there: "
            "allocation 8.000 KiB against 64.000 MiB, physical the other way round.",
        ),
        (
            "device-end-9.0.0",
            "device-end-12.8.0",
            "`parent` is missing in B, so the high-water mark is not used there: allocation "
            "64.000 MiB against 0.",
        ),
        (
            "legacy-drive-7.0.0",
            "discarded-9.0.0",
            "the space used on the host differs: physical 8.000 KiB against 4.000 KiB.",
        ),
        (
            "discarded-9.0.0",
            "internal-snapshot-12.8.0",
            "the size of the disk differs: capacity 64.000 MiB against 8.000 MiB, allocation "
            "64.000 MiB against 17.016 MiB, physical 4.000 KiB against 17.188 MiB.",
        ),
        (
            "external-snapshot-9.0.0",
            "restarted-9.0.0",
            "the disk is qcow2 on QEMU's driver file in A, raw on QEMU's driver file in B: ",
        ),
    ],
)
def test_why_answers_differ(a: str, b: str, expected: str) -> None:
    first, second = (read_trace(EXPLAIN / f"{name}.jsonl") for name in (a, b))
    assert sentence(only(compare(first, second))).startswith(expected)


def test_a_guest_that_runs_against_one_that_is_shut_off() -> None:
    told = sentence(
        only(
            compare(
                read_trace(EXPLAIN / "device-end-9.0.0.jsonl"),
                edited(EXPLAIN / "stopped-device-9.0.0.jsonl", in_values(API, grow, "exit")),
            )
        )
    )
    assert told.startswith(
        "the guest runs in A but not in B, where libvirt reads the image itself: allocation "
    )


API = "virDomainGetBlockInfo"


def grow(values: dict[str, Any]) -> None:
    values["info"]["allocation"] += 512


# Equal


@pytest.mark.parametrize("file", TRACES, ids=lambda file: file.stem)
def test_a_trace_is_equal_to_itself(file: Path) -> None:
    found = compare(read_trace(file), read_trace(file))
    assert found.equal
    assert found.pairs
    assert all(not pair.differences and not pair.steps for pair in found.pairs)
    assert (found.alone, found.hidden, found.notes, found.timings) == ((), (), (), ())
    assert text_of(found).startswith("Equal: ")


def test_what_must_differ_is_passed_over() -> None:
    def moved(record: dict[str, Any]) -> None:
        if record["type"] == "header":
            record["started"] = "2027-01-01T00:00:00+00:00"
            record["target"]["modules"][0]["base"] = "0x7f0000000000"
        if "seq" in record:
            record["tid"] += 5
            record["t_ns"] += 1_000
            for key in ("span", "parent", "call"):
                record[key] = record[key] and record[key] + 100

    def pointer(values: dict[str, Any]) -> None:
        if "mon" in values:
            values["mon"] = "0x7fff12345678"

    monitor = [in_values(name, pointer) for name in ("qmp.send", "qmp.reply")]
    b = edited(DISCARDED, moved, other_daemon, in_text('"libvirt-4', '"libvirt-9'), *monitor)
    found = compare(read_trace(DISCARDED), b)
    assert found.equal
    assert not only(found).differences
    assert only(found).calls == [(1, 101)]


def test_numbers_in_node_names_are_passed_over_and_counted() -> None:
    b = edited(DISCARDED, in_text("libvirt-1-", "libvirt-7-"))
    found = compare(read_trace(DISCARDED), b)
    assert not only(found).differences
    assert found.passed.ignored["numbers in node names"] > 2
    assert "numbers in node names (" in text_of(found)
    b = edited(DISCARDED, in_text("libvirt-1-format", "libvirt-1-storage"))
    assert not compare(read_trace(DISCARDED), b).equal


def test_folders_are_passed_over_of_other_daemons_alone() -> None:
    folder = re.search(r"/var/tmp/virtrace-lab-\w+", DISCARDED.read_text())
    assert folder is not None
    moved = in_text(folder[0], "/srv/elsewhere")
    found = compare(read_trace(DISCARDED), edited(DISCARDED, moved, other_daemon))
    assert found.equal
    assert f"{folder[0]}/stage/ -> /srv/elsewhere/stage/" in text_of(found)
    found = compare(read_trace(DISCARDED), edited(DISCARDED, moved))
    assert not found.equal
    renamed = in_text("vda.raw", "vdb.raw")
    assert not compare(read_trace(DISCARDED), edited(DISCARDED, renamed, other_daemon)).equal


def test_the_host_of_a_url_is_no_folder() -> None:
    def at(host: str, *edits: Edit) -> Trace:
        url = f"nbd://{host}:10809/export"
        return edited(DISCARDED, in_disk(lambda entry: entry.update(filename=url)), *edits)

    assert compare(at("one"), at("one", other_daemon)).equal
    assert not compare(at("one"), at("two", other_daemon)).equal


def test_places_in_the_source_of_two_builds_are_passed_over() -> None:
    error = DATA / "explain" / "error-9.0.0.jsonl"

    def moved(values: dict[str, Any]) -> None:
        values["line"] += 100
        values["file"] = "src/qemu/qemu_driver.c"

    edit = in_values("error.raised", moved)
    assert compare(read_trace(error), edited(error, edit, other_build)).equal
    assert not compare(read_trace(error), edited(error, edit)).equal


def test_null_is_no_address() -> None:
    name = "qemuMonitorJSONQueryBlockstats"

    def null(values: dict[str, Any]) -> None:
        values["result"] = "0x0"

    found = compare(read_trace(DISCARDED), edited(DISCARDED, in_values(name, null, "exit")))
    assert kinds(only(found)) == {("value", name, ".result")}


# Counters


def counted(by: int) -> Edit:
    def grow(entry: dict[str, Any]) -> None:
        entry["stats"]["wr_operations"] = 10 + by
        entry["stats"]["idle_time_ns"] = 10**6 + by

    return in_disk(grow)


def test_counters_that_grew_leave_traces_equal() -> None:
    found = compare(edited(DISCARDED, counted(0)), edited(DISCARDED, counted(3)))
    assert found.equal
    assert {each.kind for each in only(found).differences} == {"counter"}
    assert found.passed.ignored["QEMU's idle times and latencies"] == 1
    text = text_of(found)
    assert text.startswith("Equal: 1 call in both, but for counters.")
    assert "  grew     vm2 vda: wr_operations 10 -> 13\n" in text


def test_a_counter_that_fell_on_the_same_daemon_is_a_difference() -> None:
    a, b = edited(DISCARDED, counted(3)), edited(DISCARDED, counted(0))
    found = compare(a, b)
    assert not found.equal
    assert sentence(only(found)) == "the same answer, but not the same 1 counter."
    # Of another guest it says nothing, and neither where the later trace is named first.
    assert compare(a, edited(DISCARDED, counted(0), other_daemon)).equal
    a.header["clock"]["start_ns"] += 1
    assert compare(a, b).equal


def test_offsets_and_sizes_are_no_counters() -> None:
    def write(entry: dict[str, Any]) -> None:
        entry["parent"]["stats"]["wr_highest_offset"] += 4096

    found = compare(read_trace(DISCARDED), edited(DISCARDED, in_disk(write)))
    assert ("value", "query-blockstats", ".parent.stats.wr_highest_offset") in kinds(only(found))


# Values


def test_true_is_not_one_and_nan_is_itself() -> None:
    def told(value: Any) -> Trace:
        return edited(DISCARDED, in_disk(lambda entry: entry.update(odd=value)))

    assert not compare(told(True), told(1)).equal
    assert compare(told(float("nan")), told(float("nan"))).equal
    assert not compare(told(None), told(0)).equal
    assert not compare(told(2**64), told(2**64 + 1)).equal
    assert not compare(told([]), told({})).equal
    assert not compare(told([1, 2]), told([1])).equal


def test_null_is_not_absent() -> None:
    with_null = edited(DISCARDED, in_disk(lambda entry: entry.update(odd=None)))
    found = compare(read_trace(DISCARDED), with_null)
    assert kinds(only(found)) == {("only-b", "query-blockstats", ".odd")}


def test_what_one_side_could_not_read_is_no_difference_of_values() -> None:
    def unread(values: dict[str, Any]) -> None:
        values["stats"] = unavailable("optimized out")
        del values["result"]

    name = "qemuDomainBlocksStatsGather"
    found = compare(read_trace(DISCARDED), edited(DISCARDED, in_values(name, unread, "exit")))
    assert found.equal
    assert kinds(only(found)) == {("unseen-b", name, ".stats"), ("unseen-b", name, ".result")}
    assert f"{name} .stats (B: optimized out)" in text_of(found)
    assert f"{name} .result (B: not recorded)" in text_of(found)


def test_the_beginning_of_a_text_is_no_other_text() -> None:
    name = "error.raised"

    def cut(values: dict[str, Any]) -> None:
        whole = values["function"]
        values["function"] = {"text": whole[:5], "length": len(whole)}

    whole = DATA / "explain" / "error-9.0.0.jsonl"
    found = compare(read_trace(whole), edited(whole, in_values(name, cut)))
    assert found.equal
    assert kinds(only(found)) == {("unseen-b", name, ".function")}
    other = edited(whole, in_text("qemuDomainGetBlockInfo", "qemuDomain"), in_values(name, cut))
    assert not compare(read_trace(whole), other).equal


def test_of_other_disks_only_the_number_counts() -> None:
    def busy(values: dict[str, Any]) -> None:
        for entry in values["json"]["return"]:
            if "virtio-disk0" in entry.get("qdev", ""):
                entry["stats"]["account_failed"] = "other"

    found = compare(read_trace(OLD), edited(OLD, in_values("qmp.reply", busy)))
    assert found.equal

    def unplugged(values: dict[str, Any]) -> None:
        entries = values["json"]["return"]
        entries[:] = [each for each in entries if "virtio-disk0" not in each.get("qdev", "")]

    pair = only(compare(read_trace(OLD), edited(OLD, in_values("qmp.reply", unplugged))))
    [count] = pair.differences
    assert (count.place.part, count.a, count.b) == ("entries", 4, 3)


def test_an_error_of_qemu_against_an_answer() -> None:
    def refuse(values: dict[str, Any]) -> None:
        values["json"].pop("return")
        values["json"]["error"] = {"class": "GenericError", "desc": "no"}

    found = compare(read_trace(DISCARDED), edited(DISCARDED, in_values("qmp.reply", refuse)))
    told = {(each.kind, each.path) for each in only(found).differences}
    assert {("only-a", ".return"), ("only-b", ".error")} <= told


# Calls


def test_a_failure_against_numbers() -> None:
    def fail(record: dict[str, Any]) -> None:
        if record["type"] == "exit" and "info" in record["values"]:
            record["values"]["result"] = -1

    pair = only(compare(read_trace(DISCARDED), edited(DISCARDED, fail)))
    assert sentence(pair).startswith("numbers in A, none in B: There is no number because")
    text = text_of(compare(read_trace(DISCARDED), edited(DISCARDED, fail)))
    assert "  cause    discarded in A, error-not-seen in B" in text


def test_calls_are_paired_by_what_they_asked_for() -> None:
    turned = in_text("vdb", "vdx")
    found = compare(read_trace(SAMPLE), edited(SAMPLE, turned))
    assert [pair.calls for pair in found.pairs] == [[(1, 1)], [(15, 15)], [(22, 22)]]
    assert [(each.side, each.call.root.arguments["disk"]) for each in found.alone] == [
        ("a", "vdb"),
        ("b", "vdx"),
    ]
    assert not found.equal
    first, second, third, *_ = text_of(found).splitlines()
    assert first == "only in A: virDomainGetBlockInfo(vm1, vdb) (1 call)"
    assert second == "only in B: virDomainGetBlockInfo(vm1, vdx) (1 call)"
    assert third == "equal: 3 other calls"


def test_a_path_in_another_folder_is_the_same_disk() -> None:
    a = edited(DISCARDED, in_text('"disk": "vda"', '"disk": "/one/vda.raw"'))
    b = edited(DISCARDED, in_text('"disk": "vda"', '"disk": "/two/vda.raw"'), other_daemon)
    assert compare(a, b).equal


def test_a_domain_that_one_side_could_not_read_is_no_other_domain() -> None:
    def unread(values: dict[str, Any]) -> None:
        values["domain"] = unavailable("unknown layout")

    b = edited(SAMPLE, in_values("virDomainGetBlockInfo", unread, "enter"))
    found = compare(read_trace(SAMPLE), b)
    assert found.equal
    assert [pair.calls for pair in found.pairs] == [[(1, 1)], [(8, 8)], [(15, 15)], [(22, 22)]]
    assert "virDomainGetBlockInfo .domain (B: unknown layout)" in text_of(found)


def many(count: int, **changes: Any) -> Trace:
    recorder = samples.Recorder()
    for number in range(count):
        samples.blockinfo(recorder, number=number, **changes)
    return Trace(copy.deepcopy(samples.HEADER), recorder.events, samples.footer(recorder.events))


def test_equal_pairs_are_one_and_calls_left_over_stand_alone() -> None:
    found = compare(many(300), many(302))
    assert len(only(found).calls) == 300
    assert [each.side for each in found.alone] == ["b", "b"]
    assert "only in B: virDomainGetBlockInfo(vm1, vda) (2 calls)" in text_of(found)


def test_many_pairs_that_differ_are_folded() -> None:
    def moving(trace: Trace) -> Trace:
        for event in trace.events:
            info = event.values.get("info")
            if info:
                event.values["info"] = {**info, "allocation": event.seq}
        return trace

    found = compare(many(20), moving(many(20)))
    assert len(found.pairs) == 20
    assert "16 more pairs of calls differ" in text_of(found)
    assert "more pairs" not in text_of(found, full=True)


# The way


def without(name: str) -> Edit:
    """As if the function had not been called: what it called is its caller's."""
    span: dict[int, int | None] = {}

    def edit(record: dict[str, Any]) -> None:
        if record.get("name") == name and record["type"] == "enter":
            span[record["span"]] = record["parent"]
        if record.get("name") == name and "seq" in record:
            record.update(type="point", name="nothing", parent=None, call=None, span=None)
        elif record.get("parent") in span:
            record["parent"] = span[record["parent"]]

    return edit


def test_a_function_that_one_side_did_not_call() -> None:
    name = "qemuMonitorBlockStatsUpdateCapacityBlockdev"
    pair = only(compare(read_trace(DISCARDED), edited(DISCARDED, without(name))))
    [step] = pair.steps
    assert (step.side, step.kind, step.name) == ("a", "function", name)
    assert step.within == "qemuDomainBlocksStatsGather"
    assert sentence(pair) == "the same answer, but not the same 1 function."


def test_the_way_is_told_in_its_order() -> None:
    a, b = EXPLAIN / "legacy-drive-7.0.0.jsonl", DISCARDED
    steps = only(compare(read_trace(a), read_trace(b))).steps
    assert [(step.side, step.kind, step.name) for step in steps] == [
        ("b", "function", "qemuMonitorJSONQueryBlockstats"),
        ("b", "function", "qemuMonitorBlockStatsUpdateCapacityBlockdev"),
        ("a", "qmp", "query-block"),
        ("b", "qmp", "query-blockstats"),
        ("b", "qmp", "query-named-block-nodes"),
    ]


def test_a_reply_whose_command_was_not_seen_is_no_step() -> None:
    b = read_trace(DISCARDED)
    b.events.remove(next(event for event in b.events if event.name == "qmp.send"))
    [step] = only(compare(read_trace(DISCARDED), b)).steps
    assert (step.side, step.kind, step.name) == ("a", "qmp", "query-blockstats")


def test_a_function_that_one_side_could_not_see() -> None:
    name = "qemuMonitorGetAllBlockStatsInfo"

    def missing(record: dict[str, Any]) -> None:
        for probe in record.get("probes", []):
            if probe["name"] == name:
                probe.update(level="missing", why="not exported")

    found = compare(read_trace(DISCARDED), edited(DISCARDED, without(name), missing))
    assert found.equal
    [hidden] = found.hidden
    assert (hidden.side, hidden.name, hidden.why) == ("b", name, "not exported")
    assert f"  unseen   {name} (B: not exported)" in text_of(found)


def test_without_qmp_on_one_side_only_that_is_said() -> None:
    def unseen(record: dict[str, Any]) -> None:
        for probe in record.get("probes", []):
            if probe["name"].startswith("qmp."):
                probe.update(level="missing", why="no static probes")

    b = edited(DISCARDED, unseen)
    b.events[:] = [event for event in b.events if not event.name.startswith("qmp.")]
    found = compare(read_trace(DISCARDED), b)
    assert found.equal
    assert "qmp.send (B: no static probes)" in text_of(found)


def lined(trace: Trace, numbers: list[int], texts: list[str] | None = None) -> Trace:
    enter = next(each for each in trace.events if each.name == "qemuDomainGetBlockInfo")
    lines = []
    for index, number in enumerate(numbers):
        values = {"file": "qemu_driver.c", "line": number, "changed": {}}
        if texts:
            values["text"] = texts[index]
        lines.append(
            Event("line", 0, enter.t_ns, 1, enter.name, None, enter.span, enter.call, values)
        )
    at = trace.events.index(enter) + 1
    trace.events[at:at] = lines
    return trace


def builds(record: dict[str, Any]) -> None:
    if record["type"] == "header":
        for module in record["target"]["modules"]:
            module["build_id"] = "ab" * 20


def other_build(record: dict[str, Any]) -> None:
    other_daemon(record)
    if record["type"] == "header":
        record["target"]["modules"][0]["build_id"] = "cd" * 20


def test_lines_that_one_side_took() -> None:
    a = lined(edited(DISCARDED, builds), [1, 2, 3, 9])
    b = lined(edited(DISCARDED, builds), [1, 2, 5, 9])
    assert [(step.side, step.name) for step in only(compare(a, b)).steps] == [
        ("a", "3"),
        ("b", "5"),
    ]


def test_lines_of_a_loop_are_aligned_one_by_one() -> None:
    loop = [1, 2, 3] * 150
    a = lined(edited(DISCARDED, builds), [0, *loop])
    b = lined(edited(DISCARDED, builds), [0, *loop[:200], 7, *loop[200:], 8])
    steps = [(step.side, step.name) for step in only(compare(a, b)).steps]
    assert steps == [("b", "7"), ("b", "8")]


def test_lines_of_which_too_many_differ() -> None:
    a = lined(edited(DISCARDED, builds), [0, *range(1000, 3000)])
    b = lined(edited(DISCARDED, builds), [0, *range(3000, 5000)])
    begun = time.process_time()
    steps = only(compare(a, b)).steps
    assert len(steps) == 4000
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("seed", range(20))
def test_alignment_is_the_shortest_there_is(seed: int) -> None:
    chance = random.Random(seed)
    a, b = ([chance.randrange(4) for _ in range(chance.randrange(12))] for _ in range(2))
    matches = longest_common(a, b)
    assert all(a[one] == b[other] for one, other in matches)
    assert sorted(matches) == matches
    assert len({one for one, _ in matches}) == len({other for _, other in matches}) == len(matches)
    longest = max(
        size
        for size in range(min(len(a), len(b)) + 1)
        if set(itertools.combinations(a, size)) & set(itertools.combinations(b, size))
    )
    assert len(matches) == longest


def test_lines_of_two_builds_are_compared_by_their_text_alone() -> None:
    texts = ["if (a)", "b = 1;"]
    a = lined(edited(DISCARDED, builds), [1, 2], texts)
    b = lined(edited(DISCARDED, other_build), [11, 12], texts)
    assert compare(a, b).equal
    a, b = lined(edited(DISCARDED, builds), [1]), lined(edited(DISCARDED, other_build), [11])
    found = compare(a, b)
    assert found.equal
    assert "of two builds and have no text: not compared" in text_of(found)
    found = compare(a, edited(DISCARDED, builds))
    assert found.equal
    assert "only A has the source lines of qemuDomainGetBlockInfo" in text_of(found)


# The traces as a whole


def test_calls_that_did_not_return_are_told_on_their_side() -> None:
    b = many(2)
    b.events.pop()
    found = compare(many(1), b)
    [lost] = found.problems("b")
    assert lost == "the return of virDomainGetBlockInfo was not seen"
    assert not found.problems("a")


def test_other_recipes_and_other_versions_of_the_tool_are_said() -> None:
    def changed(record: dict[str, Any]) -> None:
        if record["type"] == "header":
            record["tool"]["virtrace"] = "0.2.0"
            record["recipe"]["name"] = "mine"
            record["recipe"]["points"] = []
            record["probes"] = [p for p in record["probes"] if p["name"] != "qmp.send"]

    b = edited(DISCARDED, changed)
    b.events[:] = [event for event in b.events if not event.name.startswith("qmp.")]
    found = compare(read_trace(DISCARDED), b)
    assert found.equal
    text = text_of(found)
    assert "A was recorded by virtrace 0.1.0, B by 0.2.0" in text
    assert "the recipes (blockinfo and mine) differ: only what both trace is compared" in text
    assert "qmp.send (B: its recipe does not trace it)" in text


def test_only_large_differences_of_time_are_told() -> None:
    def slower(factor: int, plus_ns: int) -> Trace:
        trace = many(3)
        trace.events[:] = [
            each._replace(t_ns=each.t_ns * factor + plus_ns) for each in trace.events
        ]
        return trace

    assert not compare(many(3), slower(1, 10**9)).timings
    assert not compare(many(3), slower(2, 0)).timings
    # A QMP exchange of 0.2 ms is not told: so many times as long, but not so much longer.
    told = {each.name for each in compare(many(3), slower(3, 0)).timings}
    assert "virDomainGetBlockInfo" in told
    assert "query-blockstats" not in told
    found = compare(many(3), slower(10, 0))
    assert found.equal
    assert {each.name for each in found.timings} >= {"virDomainGetBlockInfo"}
    for each in found.timings:
        assert each.b_ns == 10 * each.a_ns
        assert each.b_ns - each.a_ns >= 1_000_000
    assert "10.0 times as long in B" in text_of(found).splitlines()[-1]


def test_host_facts() -> None:
    file = DATA / "explain" / "stopped-device-with-host-facts-9.0.0.jsonl"

    def grown(record: dict[str, Any]) -> None:
        if record["type"] == "host":
            record["stat"]["size_bytes"] += 512

    found = compare(read_trace(file), edited(file, grown))
    assert kinds(only(found)) == {("value", "host", ".stat.size_bytes")}
    alone = compare(read_trace(DATA / "explain" / "stopped-device-9.0.0.jsonl"), read_trace(file))
    assert alone.equal
    assert "only B has facts of the host" in text_of(alone)


# Reports


def every_comparison() -> Iterator[Comparison]:
    traces = [read_trace(file) for file in TRACES]
    for a, b in zip(traces, traces[1:]):
        yield compare(a, b)
    yield compare(read_trace(OLD), read_trace(NEW))


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("full", [False, True])
def test_text_keeps_to_the_width(width: int, full: bool) -> None:
    for found in every_comparison():
        for line in text_of(found, width=width, full=full).splitlines():
            assert cells(line) <= width or line.startswith("  all "), line


def test_text_says_what_the_document_says() -> None:
    for found in every_comparison():
        text = text_of(found, full=True)
        for pair in difference_document.difference_record(found, ("a", "b"))["pairs"]:
            assert pair["equal"] or pair["says"] in text


def test_hostile_names_do_not_reach_the_terminal() -> None:
    hostile = "\x1b[2J\u202e\n"

    def named(entry: dict[str, Any]) -> None:
        entry[hostile] = hostile

    b = edited(DISCARDED, in_disk(named), other_daemon)
    c = edited(DISCARDED, in_text('"vda"', json.dumps(hostile)))
    for found in (compare(read_trace(DISCARDED), b), compare(c, b), compare(c, c)):
        for full in (False, True):
            text = text_of(found, full=full, width=80)
            assert "\x1b" not in text
            assert "\u202e" not in text
            assert all(cells(line) <= 80 for line in text.splitlines()[:-1])
    assert r"\u001b[2J" in text_of(compare(read_trace(DISCARDED), b))


def test_json_follows_its_schema() -> None:
    for found in every_comparison():
        VALIDATOR.validate(json.loads(difference_document.difference_json(found, ("a", "b"))))


def test_the_schema_is_closed_to_mistakes() -> None:
    jsonschema_rs.meta.validate(difference_document.difference_schema())
    found = compare(read_trace(OLD), read_trace(NEW))
    document = json.loads(difference_document.difference_json(found, ("a", "b")))
    for path in (
        ("version",),
        ("b", "program", "version"),
        ("pairs", 0, "differences", 0, "kind"),
        ("pairs", 0, "explained", "a", "causes"),
        ("hidden", 0, "why"),
    ):
        assert not VALIDATOR.is_valid(lacking(document, path)), path


def test_every_key_of_the_document_is_documented() -> None:
    assert set(keys(difference_document.difference_schema())) <= documented_names("diff.md")


# Whatever a trace has


@pytest.mark.parametrize("seed", range(40))
def test_never_fails_whatever_is_missing(seed: int) -> None:
    chance = random.Random(seed)
    for file in (DISCARDED, OLD, DATA / "explain" / "legacy-drive-7.0.0.jsonl"):
        traces = []
        for _ in range(2):
            trace = read_trace(file)
            mutations.take_away(trace, chance)
            traces.append(trace)
        found = compare(traces[0], traces[1])
        assert text_of(found, full=True)
        VALIDATOR.validate(json.loads(difference_document.difference_json(found, ("a", "b"))))
        assert compare(traces[0], traces[0]).equal


# The command


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return virtrace("diff", *words, env=ENVIRONMENT)


def test_exit_status_and_forms() -> None:
    done = run(OLD, NEW)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("vm1 vdd: `parent` is missing in B")
    done = run(OLD, OLD)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("--json", OLD, NEW)
    assert done.returncode == 1
    assert json.loads(done.stdout)["pairs"][0]["says"] == ANSWER
    assert run("--full", OLD, NEW).stdout.count("zone_append") > 4


def test_the_page_shows_what_the_command_prints() -> None:
    page = (DOCS / "diff.md").read_text(encoding="utf-8")
    found = compare(read_trace(OLD), read_trace(NEW))
    lines = difference.difference_lines(found, Style(100, unicode=True), paths=(OLD.name, NEW.name))
    assert "\n".join(f"    {line}".rstrip() for line in lines) in page


def test_what_is_no_trace(tmp_path: Path) -> None:
    done = run(OLD, tmp_path / "none.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot open the trace" in done.stderr
    empty = samples.write(tmp_path / "t.jsonl", [samples.HEADER, samples.footer([])])
    done = run(empty, empty)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has a call to compare" in done.stderr
    assert run(OLD, empty).returncode == 1


def test_a_trace_that_was_cut_between_calls(tmp_path: Path) -> None:
    """Of which each call is whole: what is missing is known at the end alone."""
    file = tmp_path / "t.jsonl"
    file.write_bytes(b"".join(DISCARDED.read_bytes().splitlines(keepends=True)[:-1]))
    for a, b in ((DISCARDED, file), (file, DISCARDED)):
        done = run(a, b)
        assert done.returncode == 4
        assert f"{file}: no footer" in done.stderr


def test_a_trace_that_was_cut_short(tmp_path: Path) -> None:
    lines = DISCARDED.read_bytes().splitlines(keepends=True)
    file = tmp_path / "t.jsonl"
    file.write_bytes(b"".join(lines[:-2]))
    done = run(DISCARDED, file)
    assert done.returncode == 4
    assert "no footer" in done.stderr
    assert "the return of virDomainGetBlockInfo was not seen" in done.stderr
    assert json.loads(run("--json", DISCARDED, file).stdout)["b"]["problems"]


def test_json_as_deep_as_a_trace_can_have_it(tmp_path: Path) -> None:
    # Of the line, in which it stands some levels deep.
    depth = MAX_DEPTH - 10
    deep = '{"deep": ' * depth + "1" + "}" * depth
    file = tmp_path / "t.jsonl"
    text = "".join(json.dumps(json.loads(line)) + "\n" for line in DISCARDED.open())
    file.write_text(text.replace('"qdev": ', f'"deep": {deep}, "qdev": '))
    for form in ((), ("--full",), ("--json",)):
        done = run(*form, DISCARDED, file)
        assert (done.returncode, done.stderr) == (1, "")
    assert run(file, file).returncode == 0


def test_of_two_clocks_the_dates_tell_which_trace_is_later() -> None:
    """The one of uprobes goes on while the host sleeps; that of GDB does not."""
    a, b = edited(DISCARDED, counted(3)), edited(DISCARDED, counted(0))
    b.header["clock"] = {"source": "CLOCK_BOOTTIME", "start_ns": a.header["clock"]["start_ns"] - 1}
    a.header["started"] = "2026-01-01T00:00:00+00:00"
    b.header["started"] = "2026-01-02T00:00:00+00:00"
    assert not compare(a, b).equal, "it fell"
    a.header["started"] = "2026-01-03T00:00:00+00:00"
    assert compare(a, b).equal


def test_answers_with_another_cause_come_first(tmp_path: Path) -> None:
    """Of every explainer: here, of an interface whose counters libvirt swaps, or not."""
    a = DATA / "numbers" / "cgroup-9.0.0.jsonl"
    b = tmp_path / "b.jsonl"
    b.write_text(a.read_text().replace('"swapped":true', '"swapped":false'))
    done = virtrace("diff", a, b)
    assert (done.returncode, done.stderr) == (1, "")
    first = " ".join(done.stdout.split())
    assert first.startswith("pv ptap1: in A: The counters are those of the host's device ptap1 as ")
    assert "pv ptap1: in B: The counters are those of the host's device ptap1 as the host " in first
    document = json.loads(virtrace("diff", "--json", a, b).stdout)
    [apart] = document["answers"]
    assert (apart["explainer"], apart["subject"]) == ("network", ["pv", "ptap1"])
    assert [apart[side]["causes"] for side in ("a", "b")] == [["guest-view"], ["host-view"]]
    same = virtrace("diff", a, a)
    assert (same.returncode, same.stdout.partition("\n")[0][:6]) == (0, "Equal:")
