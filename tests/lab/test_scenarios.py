"""Every scenario of the lab, traced: three numbers that surprise, and QEMU's reasons for them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import pytest

from virtrace.lab import loop
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, GUEST, MIB
from virtrace.lab.scenarios import SCENARIOS, Scenario
from virtrace.lab.stage import Stage

from .conftest import bring_up
from .test_lab import assert_nothing_left, crash_daemon
from .tracing import as_measured, calls_of, exchanges, printed_info, record, span, whole_trace

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
    """Raw, not written since QEMU started: the same numbers with a `raw` node and without."""
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


def test_every_scenario_is_expected() -> None:
    assert list(EXPECTED) == list(SCENARIOS)


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


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_scenario(scenario: Scenario, lab: Lab, stage: Stage, tmp_path: Path) -> None:
    images = [image_of(lab, stage, *disk) for disk in scenario.disks]
    output = tmp_path / "trace.jsonl"
    asked = "; ".join(" ".join(command) for command in scenario.commands)
    done = record(lab, output, command=lab.virsh_command(asked))
    assert done.returncode == 0, done.stderr
    calls = calls_of(whole_trace(output))
    printed = iter(printed_info(done.stdout))
    version = lab.libvirt_version
    assert len(calls) == len(scenario.disks) == len(EXPECTED[scenario.name])
    for disk, image, outcomes, call in zip(scenario.disks, images, EXPECTED[scenario.name], calls):
        expected = as_measured(outcomes, version)
        assert call.complete
        assert (call.root.arguments["domain"], call.root.arguments["disk"]) == disk
        assert call.root.returned is not None
        if isinstance(expected, str):
            assert expected in done.stderr
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


@pytest.mark.parametrize("scenario", [SCENARIOS["legacy-drive"]], ids=["legacy-drive"])
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
        shutil.rmtree(again.folder)
        assert len(list(loop.of_lab(again.folder))) == 1
    finally:
        assert again.down()
    assert list(loop.of_lab(again.folder)) == []
    assert_nothing_left(again)
