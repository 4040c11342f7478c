"""Every scenario of the lab, traced and explained: the cause that surprises is named first."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import jsonschema
import pytest

from virtrace.analysis.explain import Explanation, explain
from virtrace.lab.daemon import Lab
from virtrace.lab.scenarios import SCENARIOS, Scenario
from virtrace.lab.stage import Stage
from virtrace.report.explanation_document import schema
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace

from .conftest import bring_up
from .tracing import as_measured, calls_of, printed_info, record, virtrace, whole_trace

# The first cause; where the trace alone leaves two open, both.
Named = tuple[str, ...]
Causes = dict[tuple[int, ...], Named]


def always(*names: str) -> Causes:
    return {(7, 0, 0): names}


def mark_or_none(before: str, after: str = "no-high-water-mark") -> Causes:
    """Of raw disks libvirt 11.3 and later know no highest offset."""
    return {(7, 0, 0): (before,), (11, 3, 0): (after,)}


TOP_LAYER, SPARSE = always("external-snapshot"), always("nothing-written")
FULL, LAST_SECTOR = always("fully-allocated"), mark_or_none("high-water-mark")
ON_FILE = always("stopped-on-file")
FULL_OR_DEVICE = always("stopped-on-device", "stopped-on-file")

# By scenario, for each of its disks, by the versions of libvirt that this was measured on.
EXPECTED: dict[str, list[Causes]] = {
    "disks": [TOP_LAYER, SPARSE, FULL, LAST_SECTOR],
    "qcow2": [TOP_LAYER],
    "sparse": [SPARSE],
    "allocated": [FULL],
    "last-sector": [LAST_SECTOR],
    "restarted": [mark_or_none("restarted")],
    "discarded": [mark_or_none("discarded")],
    "device-end": [mark_or_none("device-written-at-end", "no-high-water-mark-on-device")],
    "stopped-device": [FULL_OR_DEVICE],
    "qcow2-device": [always("qcow2-on-device")],
    "external-snapshot": [TOP_LAYER],
    "internal-snapshot": [always("internal-snapshot")],
    "network": [always("no-actual-size")],
    "empty-cdrom": [always("empty-drive")],
    "error": [always("unknown-disk")],
    "stopped-qcow2": [ON_FILE],
    "legacy-drive": [LAST_SECTOR],
    "stopped": [
        ON_FILE,
        always("stopped-on-file", "stopped-image-on-device"),
        FULL_OR_DEVICE,
        ON_FILE,
    ],
}
# What the host facts make of those that the trace leaves open.
DECIDED = {"stopped-device": "stopped-on-device", "stopped": "stopped-on-file"}


def test_every_scenario_is_expected() -> None:
    assert list(EXPECTED) == list(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_scenario(scenario: Scenario, lab: Lab, stage: Stage, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    asked = "; ".join(" ".join(command) for command in scenario.commands)
    done = record(lab, output, "--host-facts", command=lab.virsh_command(asked))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    printed = iter(printed_info(done.stdout))
    expected = [as_measured(each, lab.libvirt_version) for each in EXPECTED[scenario.name]]

    alone = explain(calls_of(trace), trace.header["probes"])
    assert [named(each) for each in alone] == expected
    for explanation, disk in zip(alone, scenario.disks):
        block = explanation.case.block
        assert (block.domain, block.disk) == disk
        numbers = {each.number: each.answer.value for each in explanation.lineages}
        if block.answered:
            assert numbers == next(printed)
        assert ends_where_libvirt_can_know(explanation)

    with_host = explain(calls_of(trace), trace.header["probes"], trace.host)
    for explanation, names in zip(with_host, expected):
        decided = names if len(names) == 1 else (DECIDED[scenario.name],)
        assert named(explanation) == decided
        facts_are_true(explanation, trace)

    done = virtrace("explain", "--json", str(output))
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    jsonschema.Draft202012Validator(schema()).validate(document)
    firsts = [case["causes"][0]["name"] for case in document["cases"]]
    assert firsts == [named(each)[0] for each in with_host]


def named(explanation: Explanation) -> Named:
    return tuple(finding.cause.name for finding in explanation.answers)


def ends_where_libvirt_can_know(explanation: Explanation) -> bool:
    """Every chain of a running guest goes down to QEMU or the kernel, and not by guess."""
    ends = [
        step for lineage in explanation.lineages for step in lineage.steps() if not step.sources
    ]
    return all(
        step.kind == "host" or (step.kind == "qmp" and step.value is not None) for step in ends
    )


def facts_are_true(explanation: Explanation, trace: Trace) -> None:
    host = explanation.case.host
    if host is None:
        # Nothing is asked of a disk that libvirt does not know.
        assert not explanation.case.block.answered
        return
    assert f'target dev="{explanation.case.block.disk}"' in host.record["xml"]
    if host.path is None:
        assert all(is_unavailable(host.record[name]) for name in ("stat", "image_info"))
        return
    file = os.stat(host.path)
    if host.is_block_device:
        with open(host.path, "rb") as device:
            assert host.size == device.seek(0, os.SEEK_END)
    else:
        assert (host.size, host.allocated) == (file.st_size, file.st_blocks * 512)
        assert host.record["image_info"]["actual-size"] == host.allocated
    # Libvirt's own look, which only the host can check.
    looked = [
        (lineage.answer.value, step.value)
        for lineage in explanation.lineages[2:]
        for step in lineage.steps()
        if step.kind == "host"
    ]
    assert all(answered == seen for answered, seen in looked)


def test_host_facts_of_a_daemon_that_died(tmp_path: Path) -> None:
    lab = bring_up()
    try:
        output = tmp_path / "trace.jsonl"
        asked = subprocess.list2cmdline(lab.virsh_command("domblkinfo", "vm1", "vdd"))
        killing = ["sh", "-c", f"{asked}; kill -KILL {lab.pid}"]
        done = record(lab, output, "--host-facts", command=killing)
        assert done.returncode == 4, done.stderr
        [facts] = whole_trace(output).host
        assert is_unavailable(facts["xml"])
        # The file is as QEMU told, and is still there.
        assert facts["path"] == str(lab.disk_file("vdd"))
        assert facts["stat"]["size_bytes"] == lab.disk_file("vdd").stat().st_size
    finally:
        lab.down()
