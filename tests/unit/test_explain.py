"""``virtrace explain`` on traces of the lab: what it answers, and the way of every number."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support import cases, mutations, samples
from tests.support.cases import GIB, Disk, call, explain, numbers
from tests.support.command import ENVIRONMENT, virtrace
from tests.support.documents import documented_names, keys, lacking
from tests.support.paths import DATA
from virtrace.analysis.blockinfo import NUMBERS
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import Explained
from virtrace.analysis.lineage import Origin
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import CallBuilder
from virtrace.report import explanation, explanation_document
from virtrace.report.highlight import Style, cells
from virtrace.trace.format import unavailable
from virtrace.trace.json_text import to_line, without_quotes
from virtrace.trace.reader import Trace, read_trace

TRACES = {file.stem: file for file in sorted((DATA / "explain").glob("*.jsonl"))}
VALIDATOR = jsonschema_rs.Draft202012Validator(explanation_document.explanation_schema())

# What each recorded trace is answered with first. All are of `virtrace lab run SCENARIO`; those
# with lines had --debug-info, and libvirt's source in VIRTRACE_SOURCE.
FIRST = {
    "copy-on-read-12.8.0": "high-water-mark",
    "copy-on-read-7.0.0": "filter-node",
    "copy-on-read-9.0.0": "high-water-mark",
    "device-end-12.8.0": "no-high-water-mark-on-device",
    "device-end-9.0.0": "device-written-at-end",
    "discarded-9.0.0": "discarded",
    "discarded-with-lines-9.0.0": "discarded",
    "empty-cdrom-9.0.0": "empty-drive",
    "error-9.0.0": "unknown-disk",
    "external-snapshot-9.0.0": "external-snapshot",
    "internal-snapshot-12.8.0": "internal-snapshot",
    "legacy-drive-7.0.0": "high-water-mark",
    "network-12.8.0": "no-actual-size",
    "qcow2-device-7.0.0": "qcow2-on-device",
    "restarted-9.0.0": "restarted",
    "stopped-device-9.0.0": "stopped-on-device",
    "stopped-device-with-host-facts-9.0.0": "stopped-on-device",
    "stopped-qcow2-with-lines-9.0.0": "stopped-on-file",
}
WITH_LINES = TRACES["discarded-with-lines-9.0.0"]


def explained(trace: Trace) -> Explained[DiskCase]:
    builder = CallBuilder()
    calls = [done for event in trace.events if (done := builder.feed(event))]
    return explain(calls + builder.finish(), trace.header["probes"], trace.host)


def test_no_recorded_trace_is_left_out() -> None:
    assert sorted(FIRST) == sorted(TRACES)


@pytest.mark.parametrize("name", FIRST)
def test_names_the_cause_first(name: str) -> None:
    [one] = explained(read_trace(TRACES[name]))
    assert one.findings[0].cause.name == FIRST[name]
    # A shut off guest's three equal numbers are a device or a full file, unless the host says.
    open_ = name == "stopped-device-9.0.0"
    assert one.findings[0].possible == open_
    assert len(one.answers) == (2 if open_ else 1)


def test_the_guest_of_the_lab() -> None:
    found = explained(read_trace(DATA / "sample-blockinfo.jsonl"))
    assert [[finding.cause.name for finding in each.findings] for each in found] == [
        ["external-snapshot", "qcow2"],
        ["nothing-written"],
        ["fully-allocated", "restarted"],
        ["high-water-mark"],
    ]


# Lineage


def leaves(step: Origin) -> Iterator[Origin]:
    if not step.sources:
        yield step
    for source in step.sources:
        yield from leaves(source)


def at(value: Any, path: str) -> Any:
    """What a path of ours leads to, by jq's rules."""
    for name, index, quoted in re.findall(r'\.(\w+)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]', path):
        value = value[int(index)] if index else value[name or json.loads(f'"{quoted}"')]
    return value


@pytest.mark.parametrize("name", FIRST)
def test_every_step_and_every_evidence_is_in_the_trace(name: str) -> None:
    trace = read_trace(TRACES[name])
    events = {event.seq: event for event in trace.events}
    quoted = 0
    for one in explained(trace):
        steps = [step for lineage in one.lineages for step in lineage.steps()]
        for seen in (each.now for lineage in one.lineages for each in lineage.rule.seen):
            assert at(events[seen.seq].values, seen.path) == seen.value
        evidence = [each for finding in one.findings for each in finding.evidence]
        quotes: list[Origin | Evidence] = [*steps, *evidence]
        for quote in quotes:
            if quote.seq is not None and quote.path is not None and quote.value is not None:
                assert at(events[quote.seq].values, quote.path) == quote.value
                quoted += 1
        for step in steps:
            assert (step.value is None) == (step.missing is not None)
    assert quoted or name in ("empty-cdrom-9.0.0", "error-9.0.0")


def test_the_way_of_each_number_down_to_qemu() -> None:
    *_, full = explained(read_trace(DATA / "sample-blockinfo.jsonl"))
    ways = {each.number: list(each.steps()) for each in full.lineages}
    assert list(ways) == list(NUMBERS)
    for number, steps in ways.items():
        assert [step.kind for step in steps] == ["api", "driver", "struct", "qmp"]
        assert {step.value for step in steps} == {full.case.block.number(number)}
    ends = {
        number: (steps[2].path, steps[3].where, steps[3].path) for number, steps in ways.items()
    }
    assert ends == {
        "capacity": (
            ".stats.capacity",
            "query-named-block-nodes libvirt-431",
            '.json.return[0].image["virtual-size"]',
        ),
        "allocation": (
            ".stats.wr_highest_offset",
            "query-blockstats libvirt-429",
            ".json.return[3].parent.stats.wr_highest_offset",
        ),
        "physical": (
            ".stats.physical",
            "query-named-block-nodes libvirt-431",
            '.json.return[0].image["actual-size"]',
        ),
    }


def way(disk: Disk, allocation: int, physical: int, number: str) -> list[list[Origin]]:
    """The ends of a number's chain, and the struct's fields before them."""
    one = call(numbers(disk.capacity, allocation, physical), [disk], stats=disk.libvirts())
    [lineage] = [each for each in cases.explained(one).lineages if each.number == number]
    driver = lineage.answer.sources[0]
    return [[source, *leaves(source)] for source in driver.sources]


def test_sources_that_hold_the_same_are_both_named() -> None:
    told = way(Disk(usage=8192, offset=8192), 8192, GIB, "allocation")
    assert [steps[0].path for steps in told] == [".stats.wr_highest_offset", ".stats.physical"]
    told = way(Disk(usage=GIB, offset=0), GIB, GIB, "physical")
    assert [steps[0].kind for steps in told] == ["host", "struct"]
    told = way(Disk(usage=8192, offset=GIB), GIB, 8192, "allocation")
    assert [steps[0].path for steps in told] == [".stats.wr_highest_offset"]


def test_libvirts_own_look_has_no_qmp_source() -> None:
    [[own, *_]] = way(Disk(usage=4096, offset=0), 4096, GIB, "physical")
    assert (own.kind, own.seq, own.value) == ("host", None, None)
    assert own.where == "read by libvirt from /images/vda.img"
    assert own.missing


def test_host_facts_fill_in_libvirts_own_look() -> None:
    stat = {"type": "file", "size_bytes": GIB, "allocated_bytes": 4096}
    disk = Disk(usage=4096, offset=0)
    one = call(numbers(GIB, 4096, GIB), [disk], stats=disk.libvirts())
    physical = cases.explained(one, cases.host_facts(stat=stat)).lineages[2]
    [own] = leaves(physical.answer)
    assert (own.value, own.missing) == (GIB, None)
    assert "host facts" in own.meaning


def test_a_struct_that_was_not_proven_is_said_to_be_missing() -> None:
    disk = Disk(usage=8192, offset=GIB)
    for lineage in cases.explained(call(numbers(GIB, GIB, 8192), [disk])).lineages:
        struct = lineage.answer.sources[0].sources[0]
        assert (struct.kind, struct.value, struct.missing) == ("struct", None, "not proven")
        assert struct.sources[0].kind == "qmp"
        assert struct.sources[0].value == lineage.answer.value


def test_without_qmp_text_the_struct_is_the_end() -> None:
    trace = read_trace(DATA / "sample-blockinfo.jsonl")
    trace.events[:] = [event for event in trace.events if not event.name.startswith("qmp.")]
    *_, full = explained(trace)
    assert full.findings[0].cause.name == "high-water-mark"
    for lineage in full.lineages:
        *_, struct, end = lineage.steps()
        assert struct.value == lineage.answer.value
        assert (end.kind, end.value, end.missing) == ("qmp", None, "the trace does not have it")


# Which device


def two(**changes: Any) -> list[Disk]:
    return [Disk(), Disk(alias="virtio-disk1", file="/images/vdb.img", **changes)]


@pytest.mark.parametrize(
    ("disk", "stats", "expected", "by"),
    [
        ("vdb", None, ["virtio-disk1"], "which libvirt makes from the target"),
        ("/images/vdb.img", None, ["virtio-disk1"], "which the caller named"),
        ("sda", two()[1].libvirts(), ["virtio-disk0", "virtio-disk1"], "nothing tells them apart"),
        ("sda", None, ["virtio-disk0", "virtio-disk1"], "nothing tells them apart"),
    ],
)
def test_the_device_is_told_by_what_the_trace_has(
    disk: str, stats: Any, expected: list[str], by: str
) -> None:
    one = call(numbers(GIB, 4096, GIB), two(), disk=disk, stats=stats)
    block = cases.explained(one).case.block
    assert [device.name.split("/")[3] for device in block.devices] == expected
    assert by in block.chosen_by
    lineage = cases.explained(one).lineages[0]
    assert len(list(leaves(lineage.answer))) == len(expected)


def test_the_device_is_told_by_libvirts_struct_and_by_the_answer() -> None:
    disks = two(usage=8192, offset=GIB)
    for stats in (disks[1].libvirts(), None):
        one = call(numbers(GIB, GIB, 8192), disks, disk="sda", stats=stats)
        block = cases.explained(one).case.block
        assert block.device is not None
        assert "virtio-disk1" in block.device.name
        assert ("struct" in block.chosen_by) == (stats is not None)


def test_the_device_is_told_by_the_xml_of_the_host_facts() -> None:
    one = call(numbers(GIB, 4096, GIB), two(), disk="sda")
    facts = cases.host_facts(xml="<disk><alias name='virtio-disk1'/></disk>", disk="sda")
    block = cases.explained(one, facts).case.block
    assert block.device is not None
    assert "virtio-disk1" in block.device.name
    assert "XML" in block.chosen_by


# Many calls


def seen_of(trace: Trace) -> dict[str, list[tuple[str, list[int]]]]:
    """Of each number: what the lines show, and by which events."""
    [one] = explained(trace)
    return {
        lineage.number: [(seen.text, seen.events) for seen in lineage.rule.seen]
        for lineage in one.lineages
    }


def with_changes(trace: Trace, changes: dict[int, dict[str, Any]]) -> Trace:
    """What the lines of these numbers say that changed is replaced."""
    for event in trace.events:
        if event.values.get("line") in changes:
            event.values["changed"] = changes[event.values["line"]]
    return trace


def test_between_which_lines_each_number_changed() -> None:
    driver = "src/qemu/qemu_driver.c"
    assert seen_of(read_trace(WITH_LINES)) == {
        "capacity": [(f"0 -> 67108864 between lines 10937 and 10939 of {driver}", [34, 35])],
        "allocation": [(f"0 -> 67108864 between lines 10909 and 10923 of {driver}", [32, 33])],
        "physical": [(f"0 -> 4096 between lines 10923 and 10937 of {driver}", [33, 34])],
    }
    # One place where two numbers change, which the source has on two lines.
    stopped = seen_of(read_trace(TRACES["stopped-qcow2-with-lines-9.0.0"]))
    [(capacity, events)] = stopped["capacity"]
    assert capacity == f"0 -> 1073741824 between lines 10892 and 10893 of {driver}"
    assert stopped["allocation"] == [
        (f"0 -> 1314816 between lines 10892 and 10893 of {driver}", events)
    ]


def test_the_text_of_the_line_stands_below() -> None:
    found = explained(read_trace(WITH_LINES))
    lines = list(explanation.explanation_lines(found, Style(120), path="t"))
    place = "between lines 10909 and 10923 of src/qemu/qemu_driver.c"
    at_ = lines.index(f"    #33  seen: 0 -> 67108864 {place}")
    assert lines[at_ + 1] == "         10909 info->allocation = entry->wr_highest_offset;"


def test_a_number_that_kept_its_value() -> None:
    trace = with_changes(read_trace(WITH_LINES), {10923: {}})
    for event in trace.events:
        if "info" in event.values:
            event.values["info"]["allocation"] = 0
    assert seen_of(trace)["allocation"] == [
        ("0 all the way between lines 10840 and 10845 of src/qemu/qemu_driver.c", [2, 39])
    ]


def test_a_change_after_the_last_line_is_seen_at_the_return() -> None:
    trace = read_trace(WITH_LINES)
    trace.events[:] = [event for event in trace.events if event.values.get("line", 0) < 10910]
    # That line is of the end, although its number is low.
    trace.events[:] = [event for event in trace.events if event.values.get("line") != 10845]
    place = "between line 10909 of src/qemu/qemu_driver.c and the return"
    assert seen_of(trace)["allocation"] == [(f"0 -> 67108864 {place}", [32, 40])]


def test_what_could_not_be_read_meanwhile_is_not_placed_between_two_lines() -> None:
    gone = unavailable("optimized out")
    file = "src/qemu/qemu_driver.c"
    trace = with_changes(read_trace(WITH_LINES), {10905: {"allocation": gone}})
    [(text, events)] = seen_of(trace)["allocation"]
    assert (text, events) == (f"0 -> 67108864 between lines 10902 and 10923 of {file}", [30, 33])
    trace = with_changes(read_trace(WITH_LINES), {10905: {"physical": gone}, 10937: {}})
    [(text, events)] = seen_of(trace)["physical"]
    assert (text, events) == (f"0 -> 4096 between line 10902 of {file} and the return", [30, 40])


def test_without_lines_nothing_is_seen() -> None:
    for name in set(FIRST) - {each for each in FIRST if "with-lines" in each}:
        for one in explained(read_trace(TRACES[name])):
            assert all(lineage.rule.seen == () for lineage in one.lineages)


def test_lines_that_contradict_the_rule(tmp_path: Path) -> None:
    """Libvirt takes the one number or the other, never one after the other."""
    trace = with_changes(
        read_trace(WITH_LINES),
        {
            10923: {"allocation": {"from": 0, "to": 4096}},
            10937: {
                "allocation": {"from": 4096, "to": 67108864},
                "physical": {"from": 0, "to": 4096},
            },
        },
    )
    [one] = explained(trace)
    assert one.contradicts
    rule = "QEMU reported a highest offset, and the source is no qcow2 file"
    assert [(each.text, each.value, each.seq) for each in one.findings[0].evidence] == [
        (
            f"allocation changed 2 times, not once ({rule}): between lines {lines} of "
            "src/qemu/qemu_driver.c",
            value,
            seq,
        )
        for lines, value, seq in (("10909 and 10923", 4096, 33), ("10923 and 10937", 67108864, 34))
    ]
    events = [event.to_record() for event in trace.events]
    done = run(samples.write(tmp_path / "t.jsonl", [trace.header, *events, trace.footer or {}]))
    assert done.returncode == 1


def test_equal_cases_are_one() -> None:
    recorder = samples.Recorder()
    for _ in range(3):
        samples.blockinfo(recorder)
    samples.blockinfo(recorder, disk="vdb")
    samples.blockinfo(recorder, error="no such disk")
    builder = CallBuilder()
    calls = [done for event in recorder.events if (done := builder.feed(event))]
    found = explain(calls, cases.FOUND)
    assert [(each.case.block.disk, len(each.calls)) for each in found] == [
        ("vda", 3),
        ("vdb", 1),
        ("vda", 1),
    ]


# Reports


def every_explanation() -> list[Explanation[DiskCase]]:
    return [one for file in TRACES.values() for one in explained(read_trace(file))]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("unicode", [False, True])
def test_text_keeps_to_the_width(width: int, unicode: bool) -> None:
    lines = list(
        explanation.explanation_lines(every_explanation(), Style(width, unicode=unicode), path="t")
    )
    assert len(lines) > 200
    for line in lines:
        copied = line.lstrip().startswith(("$ ", "#", "bug ")) or "http" in line
        assert copied or cells(line) <= width, line


def test_text_says_what_the_document_says() -> None:
    for one in every_explanation():
        shown = " ".join(
            " ".join(explanation.explanation_lines([one], Style(10**6), path="t")).split()
        )
        record = explanation_document.explanation_record(one)
        assert record["answer"] in shown
        for cause in record["causes"]:
            assert f"cause {cause['name']}" in shown
            for step in cause["do"]:
                assert step["command"] in shown


def test_hostile_names_do_not_reach_the_terminal() -> None:
    disk = Disk(usage=8192, offset=GIB, file="/images/\x1b[2J\u202e.img")
    one = cases.explained(call(numbers(GIB, GIB, 8192), [disk], disk="vda\x1b[1m"))
    text = "\n".join(explanation.explanation_lines([one], Style(80, unicode=True), path="t\x1b"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"\u001b[2J" in text


@pytest.mark.parametrize("name", FIRST)
def test_json_follows_its_schema(name: str) -> None:
    trace = read_trace(TRACES[name])
    document = json.loads(explanation_document.explanation_json(trace, explained(trace)))
    VALIDATOR.validate(document)
    assert document["program"] == trace.header["target"]["program"]
    assert document["program"]["name"] == "libvirt"
    assert document["cases"][0]["causes"][0]["name"] == FIRST[name]


def test_the_schema_is_closed_to_mistakes() -> None:
    jsonschema_rs.meta.validate(explanation_document.explanation_schema())
    trace = read_trace(TRACES["discarded-9.0.0"])
    document = json.loads(explanation_document.explanation_json(trace, explained(trace)))
    for path in (
        ("version",),
        ("cases", 0, "causes", 0, "evidence", 0, "seq"),
        ("cases", 0, "calls"),
    ):
        assert not VALIDATOR.is_valid(lacking(document, path)), path


def test_every_key_of_the_document_is_documented() -> None:
    assert set(keys(explanation_document.explanation_schema())) <= documented_names("explain.md")


# Whatever a trace has


@pytest.mark.parametrize("seed", range(40))
def test_never_fails_whatever_is_missing(seed: int) -> None:
    chance = random.Random(seed)
    for name in (
        "discarded-with-lines-9.0.0",
        "legacy-drive-7.0.0",
        "copy-on-read-7.0.0",
        "error-9.0.0",
    ):
        trace = read_trace(TRACES[name])
        mutations.take_away(trace, chance)
        found = explained(trace)
        assert list(explanation.explanation_lines(found, Style(80), path="t")) or not found
        VALIDATOR.validate(json.loads(explanation_document.explanation_json(trace, found)))


# The command


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return virtrace("explain", *words, env=ENVIRONMENT)


def test_the_answer_comes_first() -> None:
    done = run(DATA / "sample-blockinfo.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("vm1 vda: Allocation 196.000 KiB counts only the top image")
    answers = done.stdout.partition("\n\n")[0]
    assert all(f"vm1 {disk}: " in answers for disk in ("vda", "vdb", "vdc", "vdd"))


def test_one_call() -> None:
    done = run("--call", "22", DATA / "sample-blockinfo.jsonl")
    assert done.returncode == 0
    assert done.stdout.startswith("vm1 vdd: Allocation 2.000 GiB is the end of the farthest write")
    done = run("--call", "2", DATA / "sample-blockinfo.jsonl")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1] == "try: one of its calls: 1, 8, 15, 22"


def test_the_command_that_shows_an_event_shows_its_value(tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    old = DATA / "sample-blockinfo.jsonl"
    trace = read_trace(old)
    records = [event.to_record() for event in trace.events]
    as_texts = samples.write(tmp_path / "texts.jsonl", [trace.header, *records])
    beside = tmp_path / "beside.jsonl"
    for index, record in enumerate(records):
        if record["name"].startswith("qmp."):
            records[index] = without_quotes(record, "text")
    beside.write_bytes(b"".join(map(to_line, [trace.header, *records])))
    assert b',"json":{' in beside.read_bytes()
    for file in (old, as_texts, beside):
        done = run("--call", "22", file)
        [value] = re.findall(r"#\d+ highest offset [^#]*: (\d+) \(", " ".join(done.stdout.split()))
        command = done.stdout.splitlines()[-1].partition("jq ")
        shown = subprocess.run("".join(command[1:]), shell=True, stdout=subprocess.PIPE, check=True)
        assert shown.stdout.decode() == f"{value}\n"


def test_a_contradiction_is_a_no(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in TRACES["discarded-9.0.0"].read_text().splitlines()]
    for line in lines:
        info = line.get("values", {}).get("info")
        if info:
            info["allocation"] -= 1
    done = run(samples.write(tmp_path / "t.jsonl", lines))
    assert done.returncode == 1
    assert "does not follow from what QEMU said" in done.stdout


def test_a_trace_that_was_cut_short(tmp_path: Path) -> None:
    whole = (DATA / "sample-blockinfo.jsonl").read_bytes().splitlines(keepends=True)
    file = tmp_path / "t.jsonl"
    # The last call has not returned.
    file.write_bytes(b"".join(whole[:-3]))
    done = run(file)
    assert done.returncode == 4
    assert "vm1 vdd: The call cannot be explained, because its return is not in the trace." in (
        " ".join(done.stdout.split())
    )
    assert "no footer" in done.stderr
    assert json.loads(run("--json", file).stdout)["problems"]


def test_a_trace_with_nothing_to_explain(tmp_path: Path) -> None:
    empty = samples.write(tmp_path / "t.jsonl", [samples.HEADER, samples.footer([])])
    done = run(empty)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Nothing of what the recipe traces happened.")
    assert "next     virtrace snapshot" in done.stdout
    recorder = samples.Recorder()
    for call_, result in ((1, 0), (3, -1)):
        place = {"span": call_, "call": call_}
        recorder.add("enter", "virDomainGetState", **place)
        if result:
            values = {"code": 42, "message": "no domain\x1b[1m"}
            recorder.add("point", "error", values=values, call=call_, parent=call_)
        recorder.add("exit", "virDomainGetState", values={"result": result}, **place)
    recorder.add("enter", "virDomainSuspend", span=5, call=5)
    recorder.add("point", "qmp.event", values={})
    other = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    file = samples.write(tmp_path / "o.jsonl", [*other, samples.footer(recorder.events)])
    done = run(file)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        "Nothing that this trace has can be explained. It has:",
        "  virDomainGetState, 2 calls, 1 failed, the last with: no domain\\u001b[1m",
        "  qmp.event, 1 event",
        "  virDomainSuspend, 1 call, 1 not seen to end",
        f"  next     virtrace show {file}",
    ]
    document = json.loads(run("--json", file).stdout)
    VALIDATOR.validate(document)
    assert document["cases"] == []
    assert [row["count"] for row in document["seen"]] == [2, 1, 1]
