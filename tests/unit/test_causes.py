"""Each cause on events built for it, and its words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import cases, samples
from tests.support.cases import GIB, Disk, call, causes, explained, host_facts, numbers
from virtrace.analysis.explain.disks import EXPLAINER
from virtrace.report.explanation import answer, fill_text
from virtrace.trace.format import unavailable

MIB = 1 << 20
CAUSES = EXPLAINER.causes.causes
DEVICE: dict[str, Any] = {"protocol": "host_device", "file": "/dev/vg/lv", "usage": 0}
QCOW2: dict[str, Any] = {"format": "qcow2", "usage": 200 * MIB}
BACKING = {"full-backing-filename": "/images/base.qcow2"}


def running(disk: Disk, allocation: int, physical: int) -> Any:
    return call(numbers(disk.capacity, allocation, physical), [disk], stats=disk.libvirts())


@pytest.mark.parametrize(
    ("disk", "allocation", "physical", "expected"),
    [
        (Disk(usage=8192, offset=GIB), GIB, 8192, ["high-water-mark"]),
        (Disk(usage=GIB, offset=5 * MIB), 5 * MIB, GIB, ["high-water-mark"]),
        (Disk(usage=8192, offset=8192), 8192, GIB, ["mark-equals-usage"]),
        (Disk(**DEVICE, offset=5 * MIB), 5 * MIB, GIB, ["device-high-water-mark"]),
        (Disk(**DEVICE, offset=GIB), GIB, GIB, ["device-written-at-end"]),
        (Disk(**DEVICE, offset=0), 0, GIB, ["nothing-written"]),
        (Disk(**DEVICE, offset=None), 0, GIB, ["no-high-water-mark-on-device"]),
        (Disk(usage=0, offset=0), 0, GIB, ["nothing-written"]),
        (Disk(usage=0, offset=None), 0, GIB, ["nothing-written"]),
        (Disk(usage=8192, offset=None), 8192, GIB, ["no-high-water-mark"]),
        (Disk(usage=8192, offset=0), 8192, GIB, ["restarted"]),
        (Disk(usage=GIB, offset=0), GIB, GIB, ["fully-allocated", "restarted"]),
        (Disk(usage=GIB, offset=GIB), GIB, GIB, ["fully-allocated", "mark-equals-usage"]),
        # The file system counts a block more than the size.
        (
            Disk(usage=GIB + 4096, offset=0),
            GIB + 4096,
            GIB,
            ["fully-allocated-and-more", "restarted"],
        ),
        (Disk(usage=GIB + 4096, offset=GIB), GIB, GIB + 4096, ["allocated-and-written-at-end"]),
        (
            Disk(usage=None, offset=5 * MIB, protocol="nbd"),
            5 * MIB,
            GIB,
            ["no-actual-size", "mark-without-usage"],
        ),
        (
            Disk(**{**DEVICE, "format": "qcow2"}, capacity=MIB, offset=2 * MIB),
            2 * MIB,
            GIB,
            ["qcow2-on-device"],
        ),
        (
            Disk(usage=8192, offset=GIB, stats={"unmap_operations": 3}),
            GIB,
            8192,
            ["discarded", "high-water-mark"],
        ),
        (Disk(usage=8192, offset=0, stats={"unmap_operations": 3}), 8192, GIB, ["restarted"]),
        (Disk(usage=None, offset=0, protocol="nbd"), GIB, GIB, ["no-actual-size"]),
        (Disk(usage=None, offset=None, protocol="rbd"), GIB, GIB, ["no-actual-size"]),
        (Disk(**QCOW2, offset=900 * MIB), 200 * MIB, 201 * MIB, ["qcow2"]),
        (
            Disk(**QCOW2, offset=MIB, image=BACKING),
            200 * MIB,
            201 * MIB,
            ["external-snapshot", "qcow2"],
        ),
        (
            Disk(**QCOW2, capacity=100 * MIB, image={"snapshots": [{"name": "before"}]}),
            200 * MIB,
            201 * MIB,
            ["internal-snapshot", "qcow2"],
        ),
        (Disk(**DEVICE, format="qcow2", offset=9 * MIB), 9 * MIB, GIB, ["qcow2-on-device"]),
        (Disk(**DEVICE, format="qcow2", offset=0), 0, GIB, ["qcow2-on-device"]),
    ],
)
def test_a_running_guest(disk: Disk, allocation: int, physical: int, expected: list[str]) -> None:
    assert causes(running(disk, allocation, physical)) == expected
    # The same where libvirt's struct could not be read.
    one = call(numbers(disk.capacity, allocation, physical), [disk])
    assert causes(one) == expected


@pytest.mark.parametrize(
    ("info", "expected", "possible"),
    [
        (numbers(GIB, GIB, GIB), ["stopped-on-device", "stopped-on-file"], True),
        (numbers(GIB, 0, GIB), ["stopped-on-file", "stopped-image-on-device"], True),
        (numbers(GIB, 4096, GIB), ["stopped-on-file"], False),
        (numbers(GIB, 200 * MIB, 201 * MIB), ["stopped-on-file"], False),
    ],
)
def test_a_guest_that_is_shut_off(info: Any, expected: list[str], possible: bool) -> None:
    one = call(info, None)
    assert causes(one) == expected
    assert {finding.possible for finding in explained(one).findings} == {possible}
    assert answer(explained(one)).startswith("The trace alone cannot tell") == possible


@pytest.mark.parametrize(
    ("kind", "info", "expected"),
    [
        ("file", numbers(GIB, GIB, GIB), "stopped-on-file"),
        ("block device", numbers(GIB, GIB, GIB), "stopped-on-device"),
        ("file", numbers(GIB, 0, GIB), "stopped-on-file"),
        ("block device", numbers(GIB, 0, GIB), "stopped-image-on-device"),
    ],
)
def test_host_facts_tell_file_from_device(kind: str, info: Any, expected: str) -> None:
    stat = {"type": kind, "size_bytes": GIB, "allocated_bytes": 0}
    explanation = explained(call(info, None), host_facts(stat=stat))
    [finding] = explanation.findings
    assert finding.cause.name == expected
    assert not finding.possible
    assert any("host: size of the" in each.text for each in finding.evidence)


def test_host_facts_are_quoted() -> None:
    facts = host_facts(
        stat={"type": "file", "size_bytes": GIB, "allocated_bytes": 4096}, file_system="btrfs"
    )
    disk = Disk(usage=8192, offset=GIB)
    [finding] = explained(running(disk, GIB, 8192), facts).findings
    texts = [each.text for each in finding.evidence]
    assert "host: file system btrfs, which delays, compresses or shares blocks" in texts
    thin = host_facts(
        stat={"type": "block device", "size_bytes": GIB, "allocated_bytes": 0},
        lvm={"segtype": "thin", "data_percent": "12.50"},
    )
    [finding] = explained(running(Disk(**DEVICE, offset=GIB), GIB, GIB), thin).findings
    texts = [each.text for each in finding.evidence]
    assert "host: a thin logical volume, of which 12.50 % are used" in texts


@pytest.mark.parametrize(
    ("changes", "info", "driver_info", "expected"),
    [
        ({}, numbers(GIB, GIB, 8192), numbers(GIB, GIB, 4096), "than qemuDomainGetBlockInfo"),
        ({}, numbers(GIB, 8192, GIB), None, f"allocation should be {GIB}"),
        ({}, numbers(GIB, GIB, GIB), None, "physical should be 8192"),
        ({}, numbers(GIB + 1, GIB, 8192), None, "the virtual size"),
        ({"physical": 4096}, numbers(GIB, GIB, 4096), None, "what QEMU reported"),
        ({"rd_req": 99}, numbers(GIB, GIB, 8192), None, "what QEMU reported"),
        ({"wr_highest_offset_valid": False}, numbers(GIB, 8192, GIB), None, "what QEMU reported"),
    ],
)
def test_a_contradiction_comes_first(
    changes: dict[str, Any], info: Any, driver_info: Any, expected: str
) -> None:
    disk = Disk(usage=8192, offset=GIB)
    assert causes(running(disk, GIB, 8192))[0] != "contradiction"
    stats = {**disk.libvirts(), **changes}
    explanation = explained(call(info, [disk], stats=stats, driver_info=driver_info))
    assert explanation.contradicts
    quoted = " ".join(each.text for each in explanation.findings[0].evidence)
    assert expected in quoted


def test_the_numbers_of_another_disk_are_a_contradiction() -> None:
    mine, other = Disk(), Disk(usage=8192, offset=GIB, alias="virtio-disk1", file="/b")
    one = call(numbers(GIB, GIB, 8192), [mine, other], stats=other.libvirts())
    explanation = explained(one)
    assert explanation.contradicts
    assert "vda should not be /machine/peripheral/virtio-disk1" in str(explanation.findings[0])


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("invalid argument: invalid path vda not assigned to domain", "unknown-disk"),
        ("invalid argument: disk 'vda' does not currently have a source assigned", "empty-drive"),
        ("Timed out during operation: cannot acquire state change lock", "error"),
        ("argument invalide : le chemin vda", "error"),
        (unavailable("outside of memory"), "error"),
    ],
)
def test_an_error(message: Any, expected: str) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder, error="replaced")
    error = next(event for event in recorder.events if event.name == "error")
    error.values["message"] = message
    explanation = explained(cases.built(recorder))
    assert [finding.cause.name for finding in explanation.findings] == [expected]
    assert explanation.lineages == ()
    if isinstance(message, str):
        assert message in explanation.findings[0].evidence[0].text


def test_qemu_that_ended_in_the_call() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    [at] = [at for at, event in enumerate(recorder.events) if event.name == "qmp.reply"]
    del recorder.events[at]
    for event in recorder.events[at:]:
        event.values["result"] = -1
    explanation = explained(cases.built(recorder))
    assert [finding.cause.name for finding in explanation.findings] == ["qemu-gone"]
    assert answer(explanation) == (
        "There is no number because QEMU did not answer query-blockstats: it ended, or vm1 was "
        "destroyed, while libvirt waited."
    )


def test_an_error_that_was_not_seen() -> None:
    one = call(numbers(0, 0, 0), None, result=-1)
    assert causes(one) == ["error-not-seen"]


def test_a_call_that_did_not_return() -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    del recorder.events[-1]
    explanation = explained(cases.built(recorder))
    assert [finding.cause.name for finding in explanation.findings] == ["incomplete"]
    assert "return of virDomainGetBlockInfo was not seen" in str(explanation.findings)


def test_nothing_is_made_up_where_the_trace_has_too_little() -> None:
    """Without QMP text and struct: neither running nor shut off can be told."""
    [explanation] = cases.explain([call(numbers(GIB, GIB, GIB), None)], [])
    assert [finding.cause.name for finding in explanation.findings] == ["unknown"]
    assert explanation.case.block.running is None
    assert all(lineage.answer.sources[0].sources == () for lineage in explanation.lineages)


# The words


def test_the_words_use_known_names_only() -> None:
    case = explained(call(numbers(GIB, 4096, GIB), None)).case
    for cause in CAUSES:
        for text in (cause.says, cause.means, *(command for command, _ in cause.do)):
            fill_text(text, case)
            fill_text(text, case, command=True)
        # One sentence.
        assert not re.search(r"[.] [A-Z]", cause.says), cause.name
        assert cause.says.endswith(".")
        assert "{" not in "".join(shows for _, shows in cause.do)


def test_hostile_names_stay_text() -> None:
    disk = Disk(usage=8192, offset=GIB, file="/images/$(reboot) {usage}.img")
    one = call(numbers(GIB, GIB, 8192), [disk])
    explanation = explained(one)
    typed = [
        fill_text(command, explanation.case, command=True)
        for command, _ in explanation.findings[0].cause.do
    ]
    assert typed[0] == "du -B1 -- '/images/$(reboot) {usage}.img'"
