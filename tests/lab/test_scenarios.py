"""Every scenario of the lab, traced: three numbers that surprise, QEMU's reasons, the cause."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import jsonschema_rs
import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_lab import assert_nothing_left, crash_daemon
from tests.lab.tracing import (
    as_measured,
    calls_of,
    exchanges,
    printed_info,
    record,
    span,
    whole_trace,
)
from tests.support.cases import explain
from tests.support.command import virtrace
from tests.support.waiting import wait_until
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.errors import LabError
from virtrace.image.process import read_status
from virtrace.lab import loop
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, GUEST, MIB
from virtrace.lab.scenarios import SCENARIOS, Scenario
from virtrace.lab.stage import Stage
from virtrace.report.explanation_document import explanation_schema
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace

# A number of bytes, or what a file says of itself: `occupied` on the host, its `size`.
Size = Union[int, str, None]
OCCUPIED, FILE_SIZE = "occupied", "size"
SHUT_OFF = "no QEMU runs"


@dataclass(frozen=True)
class Answer:
    """The three numbers, and of QEMU's answers what they come from.

    mark: wr_highest_offset of `parent` in query-blockstats; None where there is no `parent`.
    actual_size: of the disk's own node; None where the key is missing.
    """

    capacity: int
    allocation: Size
    physical: Size
    mark: Size = SHUT_OFF
    actual_size: Size = SHUT_OFF


Outcome = Union[Answer, str]
Outcomes = dict[tuple[int, ...], Outcome]


def mark_decides(capacity: int) -> Outcomes:
    """Raw, written at its end: since libvirt left out the `raw` node, nobody knows the mark."""
    return {
        (7, 0, 0): Answer(capacity, capacity, OCCUPIED, mark=capacity, actual_size=OCCUPIED),
        (11, 3, 0): Answer(capacity, OCCUPIED, FILE_SIZE, mark=None, actual_size=OCCUPIED),
    }


def mark_is_nought(capacity: int) -> Outcomes:
    """Raw, not written since QEMU opened it: the same numbers with a `raw` node and without."""
    return {
        (7, 0, 0): Answer(capacity, OCCUPIED, FILE_SIZE, mark=0, actual_size=OCCUPIED),
        (11, 3, 0): Answer(capacity, OCCUPIED, FILE_SIZE, mark=None, actual_size=OCCUPIED),
    }


def qcow2(capacity: int, mark: Size) -> Outcomes:
    return {(7, 0, 0): Answer(capacity, OCCUPIED, FILE_SIZE, mark=mark, actual_size=OCCUPIED)}


def shut_off(capacity: int) -> Outcomes:
    return {(7, 0, 0): Answer(capacity, OCCUPIED, FILE_SIZE)}


VDA, VDB = qcow2(GIB, mark=0), mark_is_nought(2 * GIB)
VDC, VDD = mark_is_nought(64 * MIB), mark_decides(2 * GIB)
DEVICE = 64 * MIB
# By the versions of libvirt that this was measured on, for each domblkinfo of a scenario.
EXPECTED: dict[str, list[Outcomes]] = {
    "disks": [VDA, VDB, VDC, VDD],
    "qcow2": [VDA],
    "sparse": [VDB],
    "allocated": [VDC],
    "last-sector": [VDD],
    "restarted": [mark_is_nought(64 * MIB)],
    "discarded": [mark_decides(64 * MIB)],
    "device-end": [
        {
            (7, 0, 0): Answer(DEVICE, DEVICE, DEVICE, mark=DEVICE, actual_size=0),
            (11, 3, 0): Answer(DEVICE, 0, DEVICE, mark=None, actual_size=0),
        }
    ],
    "stopped-device": [{(7, 0, 0): Answer(DEVICE, DEVICE, DEVICE)}],
    # 1 MiB of data, and five clusters of metadata before it.
    "qcow2-device": [
        {(7, 0, 0): Answer(GIB, 1376256, DEVICE, mark=MIB + 5 * 65536, actual_size=0)}
    ],
    "external-snapshot": [qcow2(64 * MIB, mark=FILE_SIZE)],
    "internal-snapshot": [qcow2(8 * MIB, mark=FILE_SIZE)],
    "network": [
        {
            (7, 0, 0): Answer(64 * MIB, 64 * MIB, 64 * MIB, mark=0, actual_size=None),
            (11, 3, 0): Answer(64 * MIB, 64 * MIB, 64 * MIB, mark=None, actual_size=None),
        }
    ],
    "empty-cdrom": [{(7, 0, 0): "disk 'hda' does not currently have a source assigned"}],
    "error": [{(7, 0, 0): "invalid path vdz not assigned to domain"}],
    "stopped-qcow2": [shut_off(GIB)],
    "legacy-drive": [mark_decides(64 * MIB)],
    "stopped": [shut_off(GIB), shut_off(2 * GIB), shut_off(64 * MIB), shut_off(2 * GIB)],
}


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

# As of EXPECTED.
CAUSES: dict[str, list[Causes]] = {
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
    assert list(EXPECTED) == list(CAUSES) == list(SCENARIOS)


@pytest.fixture(scope="module", params=SCENARIOS.values(), ids=list(SCENARIOS))
def scenario(request: pytest.FixtureRequest) -> Scenario:
    scenario: Scenario = request.param
    return scenario


@pytest.fixture(scope="module")
def lab(stock_lab: Lab, scenario: Scenario) -> Iterator[Lab]:
    """The one daemon for all; another for what ends the guest of the others."""
    if scenario.name != "stopped":
        yield stock_lab
        return
    lab = bring_up()
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def stage(lab: Lab, scenario: Scenario) -> Iterator[Stage]:
    """What the scenario set up; where it cannot be, that it says so has been checked."""
    if scenario.until and lab.libvirt_version >= scenario.until:
        # Not a skip, which CI would take for a tool that is missing.
        pytest.xfail(refused(scenario, lab, "needs libvirt before"))
    if "(root only)" in scenario.about and os.geteuid() != 0:
        pytest.skip(refused(scenario, lab, "which only root can"))
    stage = scenario.set_up(lab)
    yield stage
    stage.clear()
    assert not stage.folder.exists()
    assert list(loop.of_lab(lab.folder)) == []


def refused(scenario: Scenario, lab: Lab, why: str) -> str:
    with pytest.raises(LabError, match=why) as caught:
        scenario.set_up(lab)
    return caught.value.what


@dataclass(frozen=True)
class Traced:
    """The trace in `file`, with host facts. printed, told: virsh's output and errors."""

    file: Path
    trace: Trace
    printed: list[dict[str, int]]
    told: str


@pytest.fixture(scope="module")
def traced(
    scenario: Scenario, lab: Lab, stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> Traced:
    file = tmp_path_factory.mktemp(scenario.name) / "trace.jsonl"
    asked = "; ".join(" ".join(command) for command in scenario.commands)
    done = record(lab, file, "--host-facts", command=lab.virsh_command(asked))
    assert done.returncode == 0, done.stderr
    return Traced(file, whole_trace(file), printed_info(done.stdout), done.stderr)


def image_of(lab: Lab, stage: Stage, guest: str, disk: str) -> Path | None:
    """The file that is the disk's top layer; None for a device or none at all."""
    if guest == GUEST.name:
        return next(
            (lab.disk_file(each.target) for each in GUEST.disks if each.target == disk), None
        )
    names = ("overlay.qcow2", "vda.qcow2", "vda.raw")
    return next((stage.images / name for name in names if (stage.images / name).exists()), None)


def in_bytes(size: Size, image: Path | None) -> int | None:
    if not isinstance(size, str):
        return size
    assert image is not None
    return image.stat().st_blocks * 512 if size == OCCUPIED else image.stat().st_size


def qemu_says(lab: Lab, guest: str, disk: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Asked directly, of a disk: its entry of query-blockstats, and the image of its node."""
    number = ord(disk[-1]) - ord("a")
    entries = lab.qmp({"execute": "query-blockstats"}, guest)["return"]
    [entry] = [each for each in entries if f"/virtio-disk{number}/" in each["qdev"]]
    nodes = lab.qmp({"execute": "query-named-block-nodes"}, guest)["return"]
    [image] = [node["image"] for node in nodes if node["node-name"] == entry["node-name"]]
    return entry, image


def test_numbers(scenario: Scenario, lab: Lab, stage: Stage, traced: Traced) -> None:
    images = [image_of(lab, stage, *disk) for disk in scenario.disks]
    calls = calls_of(traced.trace)
    printed = iter(traced.printed)
    version = lab.libvirt_version
    assert len(calls) == len(scenario.disks) == len(EXPECTED[scenario.name])
    for disk, image, outcomes, call in zip(scenario.disks, images, EXPECTED[scenario.name], calls):
        expected = as_measured(outcomes, version)
        assert call.complete
        assert (call.root.arguments["domain"], call.root.arguments["disk"]) == disk
        assert call.root.returned is not None
        if isinstance(expected, str):
            assert expected in traced.told
            [error] = call.errors()
            assert expected in error.values["message"]
            assert call.root.returned["result"] == -1
            continue
        numbers = {
            "capacity": expected.capacity,
            "allocation": in_bytes(expected.allocation, image),
            "physical": in_bytes(expected.physical, image),
        }
        assert next(printed) == numbers
        assert call.root.returned == {"result": 0, "info": numbers}
        if expected.mark == SHUT_OFF:
            assert exchanges(call) == []
            continue
        entry, node = qemu_says(lab, *disk)
        mark, actual_size = (
            in_bytes(each, image) for each in (expected.mark, expected.actual_size)
        )
        assert ("parent" in entry) == (mark is not None)
        if mark is not None:
            assert entry["parent"]["stats"]["wr_highest_offset"] == mark
        assert node["virtual-size"] == expected.capacity
        assert node.get("actual-size") == actual_size
        asked_last = "query-block" if scenario.name == "legacy-drive" else "query-named-block-nodes"
        assert exchanges(call)[-1].command == asked_last
        returned = span(call, "qemuDomainBlocksStatsGather").returned
        assert returned is not None
        stats = returned["stats"]
        assert stats["capacity"] == expected.capacity
        # libvirt takes the capacity where QEMU cannot tell.
        assert stats["physical"] == (expected.capacity if actual_size is None else actual_size)
        assert stats["wr_highest_offset"] == (mark or 0)
        assert stats["wr_highest_offset_valid"] == (mark is not None)
    assert list(printed) == []


def test_causes(scenario: Scenario, lab: Lab, traced: Traced) -> None:
    """The one that surprises is named first."""
    trace, printed = traced.trace, iter(traced.printed)
    expected = [as_measured(each, lab.libvirt_version) for each in CAUSES[scenario.name]]

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

    done = virtrace("explain", "--json", str(traced.file))
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    jsonschema_rs.Draft202012Validator(explanation_schema()).validate(document)
    firsts = [case["causes"][0]["name"] for case in document["cases"]]
    assert firsts == [named(each)[0] for each in with_host]


def named(explanation: Explanation[DiskCase]) -> Named:
    return tuple(finding.cause.name for finding in explanation.answers)


def ends_where_libvirt_can_know(explanation: Explanation[DiskCase]) -> bool:
    """Every chain of a running guest goes down to QEMU or the kernel, and not by guess."""
    ends = [
        step for lineage in explanation.lineages for step in lineage.steps() if not step.sources
    ]
    return all(
        step.kind == "host" or (step.kind == "qmp" and step.value is not None) for step in ends
    )


def facts_are_true(explanation: Explanation[DiskCase], trace: Trace) -> None:
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


@pytest.mark.parametrize(
    "scenario", [SCENARIOS["legacy-drive"]], ids=["legacy-drive"], indirect=True
)
def test_threshold_on_the_legacy_path(lab: Lab, stage: Stage, tmp_path: Path) -> None:
    """What query-block says of it, libvirt leaves aside."""
    [drive] = lab.qmp({"execute": "query-block"}, "vm2")["return"]
    arguments = {"node-name": drive["inserted"]["node-name"], "write-threshold": MIB}
    lab.qmp({"execute": "block-set-write-threshold", "arguments": arguments}, "vm2")
    output = tmp_path / "trace.jsonl"
    done = record(lab, output, command=lab.virsh_command("domblkinfo", "vm2", "vda"))
    assert done.returncode == 0, done.stderr
    [call] = calls_of(whole_trace(output))
    reply = exchanges(call)[-1].reply
    assert reply is not None
    assert reply.values["json"]["return"][0]["inserted"]["write_threshold"] == MIB
    returned = span(call, "qemuDomainBlocksStatsGather").returned
    assert returned is not None
    assert returned["stats"]["write_threshold"] == 0


def stop(pid: int) -> None:
    """Until then it may write in a folder that is to be removed."""
    os.kill(pid, signal.SIGSTOP)
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]

    def all_stand_still() -> bool:
        found = [status for tid in threads if (status := read_status(tid))]
        return all(status["State"][0] == "T" for status in found)

    wait_until(all_stand_still, "every thread is stopped")


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices take root")
@pytest.mark.usefixtures("stock_lab")
def test_loop_devices_of_a_crashed_lab_are_found() -> None:
    """By a fresh `up` in its folder, and by `down` even when the folder is gone."""
    crashed = bring_up()
    SCENARIOS["device-end"].set_up(crashed)
    again = Lab(crashed.folder)
    try:
        crash_daemon(crashed)
        assert len(list(loop.of_lab(again.folder))) == 1
        again.up()
        assert list(loop.of_lab(again.folder)) == []
        SCENARIOS["stopped-device"].set_up(again)
        for pid in again.processes:
            stop(pid)
        shutil.rmtree(again.folder)
        assert len(list(loop.of_lab(again.folder))) == 1
    finally:
        assert again.down()
    assert list(loop.of_lab(again.folder)) == []
    assert_nothing_left(again)


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
        assert dict(facts["stat"])["size_bytes"] == lab.disk_file("vdd").stat().st_size
    finally:
        lab.down()
