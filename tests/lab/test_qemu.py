"""The QEMU of a guest is traced: which write raised the high-water mark, on all releases."""

from __future__ import annotations

import os
import shlex
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_explainers import cases_of
from tests.support.command import VIRTRACE, virtrace
from tests.support.hanging import qemu_of
from tests.support.intact import assert_untraced_and_intact
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from tests.support.waiting import wait_until
from virtrace.analysis.explain.marks import MarkCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.errors import BAD_INPUT, DONE, NOT_TRACED, Unavailable
from virtrace.image.model import Module
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, MIB, SECTOR, backend, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.targets import QEMU
from virtrace.targets.qemu import guests
from virtrace.targets.qemu.blocks import NodeLayout, node_layout
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

# What a partitioning tool writes last: a GPT's backup, 40 sectors at the end of the disk.
BACKUP = 40 * SECTOR
# Of a boot sector's code: where it is in memory, and where in it the disk address packet is.
LOADED_AT, PACKET = 0x7C00, 0x80


RELEASES = [
    pytest.param(None, id="7.2"),
    *(
        pytest.param(release, id=version, marks=pytest.mark.matrix)
        for release, version in (("bullseye", "5.2"), ("trixie", "10.0"), ("sid", "11.1"))
    ),
]


def lab_of(release: str | None) -> Iterator[Lab]:
    """A lab of its own: marks of its guest begin at 0. Its QEMU must be there at the end."""
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    lab = Lab(folder) if release is None else Lab(folder, release=release)
    try:
        lab.up()
        qemu = qemu_of(lab)
        yield lab
        assert qemu_of(lab) == qemu
        assert_untraced_and_intact(qemu)
    finally:
        lab.down()


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """By the version of QEMU."""
    yield from lab_of(request.param)


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    with staged(lab) as stage:
        yield stage
        assert lab.virsh_checked("domstate", GUEST_NAME).strip() in ("running", "paused")


def writing_boot_sector(lba: int, sectors: int) -> bytes:
    """A boot sector that writes its own memory to the boot disk, by the BIOS, and halts."""
    code = bytes.fromhex("fa31c08ed88ed0bc007cfb")  # cli; ds, ss = 0; sp = 0x7c00; sti
    code += b"\xbe" + struct.pack("<H", LOADED_AT + PACKET)  # mov si, PACKET
    code += bytes.fromhex("b280b80043cd13")  # mov dl, 0x80; mov ax, 0x4300; int 0x13
    code += bytes.fromhex("faf4ebfd")  # cli; hlt; jmp to hlt
    packet = struct.pack("<BBHHHQ", 16, 0, sectors, LOADED_AT, 0, lba)
    return code.ljust(PACKET, b"\0") + packet.ljust(SECTOR - 2 - PACKET, b"\0") + b"\x55\xaa"


def paused_guest(stage: Stage, format_: str = "raw") -> Path:
    """Define and start a guest, paused, that will write at the end of its disk."""
    raw = stage.image("boot.raw", GIB)
    with raw.open("r+b") as file:
        file.write(writing_boot_sector((GIB - BACKUP) // SECTOR, BACKUP // SECTOR))
    image = raw
    if format_ != "raw":
        image = stage.images / f"boot.{format_}"
        stage.qemu_img("convert", "-f", "raw", "-O", format_, str(raw), str(image))
    xml = disk_xml("file", file_source(image), TARGET, f"type='{format_}'")
    stage.lab.define(GUEST_NAME, stage.folder / "vm2.xml", xml)
    stage.virsh("start", "--paused", GUEST_NAME)
    return image


def until_written(lab: Lab) -> Sequence[str]:
    """A command that lets the guest run, and ends when it has written."""
    virsh = shlex.join(lab.virsh_command())
    asks = f"{virsh} domblkstat {GUEST_NAME} {TARGET} | grep -q 'wr_req [1-9]'"
    return ["sh", "-c", f"{virsh} resume {GUEST_NAME}; until {asks}; do sleep 0.1; done"]


def record(lab: Lab, domain: str, output: Path, *command: str) -> Trace:
    options = ("-p", lab.pid, "--domain", domain, "-o", output)
    done = virtrace("record", "high-water", *options, "--", *command)
    assert done.returncode == DONE, done.stdout + done.stderr
    assert "tracing by the kernel's probes" in done.stdout
    trace = read_trace(output)
    assert trace.problems == []
    return trace


def explained(trace: Trace) -> dict[str, Explanation[MarkCase]]:
    """The explanations, by node."""
    found = explain_trace(trace, "trace")
    assert not found.contradicts
    return {each.case.node: each for each in found}


def causes(explanation: Explanation[MarkCase]) -> list[str]:
    return [finding.cause.name for finding in explanation.findings]


def assert_told(lab: Lab, output: Path, told: Mapping[str, Explanation[MarkCase]]) -> None:
    """What the command line says of these."""
    cases = {tuple(case["subject"]): case for case in cases_of(output)}
    assert_answers(
        output,
        [cases[each.case.subject] for each in told.values()],
        {
            scenario: (" ".join(each.case.subject), causes(each)[0])
            for scenario, each in told.items()
        },
        ".".join(map(str, lab.libvirt_version)),
    )


def of_node(trace: Trace, node: str, name: str = "mark.raised") -> list[Event]:
    return [event for event in trace.events if (event.name, event.values["node"]) == (name, node)]


def marks_by_qmp(lab: Lab, guest: str) -> dict[str, int]:
    """What QEMU itself says of all of its nodes."""
    command = {"execute": "query-blockstats", "arguments": {"query-nodes": True}}
    nodes: list[dict[str, Any]] = lab.qmp(command, guest)["return"]
    return {node["node-name"]: node["stats"]["wr_highest_offset"] for node in nodes}


def marks_by_memory(lab: Lab, guest: str) -> dict[str, int]:
    pid, found = guests.qemu_of(lab.pid, guest)
    standing = QEMU.knowledge.standing("block-nodes", inspect(pid), found)
    return {one.key: one.value for one in standing}


def storage_of(trace: Trace, disk: str) -> str:
    """The node whose mark libvirt reports for a disk."""
    return next(
        str(event.values["node"])
        for event in trace.events
        if (event.values.get("disk"), event.values.get("layer")) == (disk, "storage")
        and event.values["is"] == "disk"
    )


def test_a_guests_write_at_the_end_of_its_disk(stage: Stage, tmp_path: Path) -> None:
    image = paused_guest(stage)
    trace = record(stage.lab, GUEST_NAME, tmp_path / "t.jsonl", *until_written(stage.lab))
    node = storage_of(trace, TARGET)
    (event,) = of_node(trace, node)
    values = {name: event.values[name] for name in ("offset", "bytes", "mark", "was", "rises")}
    assert values == {"offset": GIB - BACKUP, "bytes": BACKUP, "mark": GIB, "was": 0, "rises": 1}
    # The one answer is about the storage: the format above it met the same write.
    ((found, explanation),) = explained(trace).items()
    assert found == node
    assert causes(explanation) == ["by-guest"]
    assert explanation.case.subject == (GUEST_NAME, TARGET, node)
    told = {"the guest writes at the end of a raw disk": explanation}
    assert_told(stage.lab, tmp_path / "t.jsonl", told)
    if len(marks_by_qmp(stage.lab, GUEST_NAME)) == 2:
        # Newer libvirt gives a raw disk one node, and reports no mark then.
        printed = stage.lab.virsh_checked("domblkinfo", GUEST_NAME, TARGET)
        assert f"Allocation:     {GIB}" in printed
    with image.open("rb") as file:
        sector = file.read(SECTOR)
        file.seek(GIB - BACKUP)
        assert file.read(SECTOR) == sector
    # Each node as it began, and as it ended.
    standing = {
        name: of_node(trace, name, "mark.standing")
        for name in marks_by_memory(stage.lab, GUEST_NAME)
    }
    for name, (before, after) in standing.items():
        assert before.values["mark"] == 0, name
        assert after.values["mark"] == GIB, name
    assert marks_by_memory(stage.lab, GUEST_NAME) == marks_by_qmp(stage.lab, GUEST_NAME)


def test_qcow2_writes_its_own_tables(stage: Stage, tmp_path: Path) -> None:
    paused_guest(stage, "qcow2")
    trace = record(stage.lab, GUEST_NAME, tmp_path / "t.jsonl", *until_written(stage.lab))
    node = storage_of(trace, TARGET)
    by_memory = marks_by_memory(stage.lab, GUEST_NAME)
    assert by_memory == marks_by_qmp(stage.lab, GUEST_NAME)
    events = of_node(trace, node)
    assert [event.values["rises"] for event in events] == [*range(1, len(events) + 1)]
    tables = [
        event for event in events if any("qcow2_" in str(one) for one in event.values["stack"])
    ]
    assert tables, "no table was written"
    # The guest's own data is the last.
    assert tables != events
    assert events[-1].values["mark"] == by_memory[node]
    found = explained(trace)
    assert causes(found[node]) == ["by-guest"]
    above = next(each for name, each in found.items() if name != node)
    assert causes(above) == ["by-guest"]
    assert above.case.numbers["offset"] == GIB - BACKUP
    told = {"the guest writes at the end of a qcow2 disk, whose file grows": found[node]}
    assert_told(stage.lab, tmp_path / "t.jsonl", told)


def write(lab: Lab, disk: int, command: str) -> Sequence[str]:
    hmp = f'qemu-io -d {backend(disk)} "{command}"'
    return lab.virsh_command("qemu-monitor-command", "vm1", "--hmp", hmp)


def test_a_command_of_the_monitor_writes(lab: Lab, tmp_path: Path) -> None:
    before = marks_by_qmp(lab, "vm1")
    command = write(lab, 1, f"write -P 7 {5 * MIB} 4096")
    trace = record(lab, "vm1", tmp_path / "t.jsonl", *command)
    node = storage_of(trace, "vdb")
    (event,) = of_node(trace, node)
    assert (event.values["was"], event.values["mark"]) == (before[node], 5 * MIB + 4096)
    found = explained(trace)
    assert causes(found[node]) == ["by-main-thread"]
    # The lab wrote to the last sector of this disk when it was made.
    last = storage_of(trace, "vdd")
    assert causes(found[last]) == ["before"]
    told = {
        "a command to QEMU's monitor writes": found[node],
        "nothing writes; the mark was there before": found[last],
    }
    assert_told(lab, tmp_path / "t.jsonl", told)
    assert found[last].case.mark == before[last] == 2 * GIB
    assert lab.qmp({"execute": "query-status"})["return"]["status"] == "running"
    with lab.disk_file("vdb").open("rb") as file:
        file.seek(5 * MIB)
        assert file.read(4096) == b"\x07" * 4096


def test_a_write_that_raises_nothing_is_not_recorded(lab: Lab, tmp_path: Path) -> None:
    command = write(lab, 3, "write -P 9 0 4096")
    trace = record(lab, "vm1", tmp_path / "t.jsonl", *command)
    assert {event.name for event in trace.events} == {"mark.standing"}
    assert trace.footer is not None
    assert trace.footer["hits"]["mark.raised"] == 0


def test_many_writes_are_counted(lab: Lab, tmp_path: Path) -> None:
    begin, count = 16 * MIB, 60
    virsh = shlex.join(lab.virsh_command())
    each = f'qemu-io -d {backend(1)} \\"write -P 1 $(({begin} + 4096 * $i)) 4096\\"'
    line = (
        f'for i in $(seq 0 {count - 1}); do {virsh} qemu-monitor-command vm1 --hmp "{each}"; done'
    )
    trace = record(lab, "vm1", tmp_path / "t.jsonl", "sh", "-c", line)
    node = storage_of(trace, "vdb")
    events = of_node(trace, node)
    assert len(events) < 8
    assert events[0].values["rises"] == 1
    assert events[-1].values["rises"] == count
    assert events[-1].values["mark"] == begin + 4096 * count == marks_by_qmp(lab, "vm1")[node]
    assert trace.footer is not None
    assert trace.footer["hits"]["mark.raised"] >= count
    assert trace.footer["dropped"] == 0


def test_a_copy_raises_the_mark_of_its_target(stage: Stage, tmp_path: Path) -> None:
    lab = stage.lab
    paused_guest(stage)
    copy = stage.images / "copy.raw"
    virsh = shlex.join(lab.virsh_command())
    begin = f"blockcopy {GUEST_NAME} {TARGET} {copy} --format raw --transient-job --wait"
    end = f"blockjob {GUEST_NAME} {TARGET} --abort"
    line = f"{virsh} {begin} && {virsh} {end}"
    trace = record(lab, GUEST_NAME, tmp_path / "t.jsonl", "sh", "-c", line)
    found = explained(trace)
    assert found
    assert {cause for each in found.values() for cause in causes(each)} == {"by-qemu"}
    told = {"a block job copies to an image": next(iter(found.values()))}
    assert_told(lab, tmp_path / "t.jsonl", told)
    # The guest's own disk was not written.
    assert storage_of(trace, TARGET) not in found


def test_a_write_that_fails_raises_the_mark(lab: Lab, tmp_path: Path) -> None:
    """QEMU's own blkdebug lets it fail."""
    injected = {
        "driver": "blkdebug",
        "node-name": "failing",
        "image": {"driver": "null-co", "size": GIB, "node-name": "below"},
        "inject-error": [{"event": "none", "iotype": "write", "errno": 5}],
    }
    assert "return" in lab.qmp({"execute": "blockdev-add", "arguments": injected})
    command = lab.virsh_command(
        "qemu-monitor-command", "vm1", "--hmp", f'qemu-io failing "write {MIB} 4096"'
    )
    try:
        trace = record(lab, "vm1", tmp_path / "t.jsonl", *command)
        (event,) = of_node(trace, "failing")
        assert (event.values["was"], event.values["mark"]) == (0, MIB + 4096)
        assert of_node(trace, "below") == []
        assert marks_by_qmp(lab, "vm1")["failing"] == MIB + 4096
    finally:
        lab.qmp({"execute": "blockdev-del", "arguments": {"node-name": "failing"}})


def test_a_killed_tracer_leaves_the_guest_as_it_was(lab: Lab, tmp_path: Path) -> None:
    qemu = qemu_of(lab)
    options = ("-p", str(lab.pid), "--domain", "vm1", "-o", str(tmp_path / "t.jsonl"))
    command = [*VIRTRACE, "record", "high-water", *options, "--", "sh", "-c", "echo; sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracing:
        assert tracing.stdout is not None
        next(line for line in tracing.stdout if "running" in line)
        tracing.send_signal(signal.SIGKILL)
    # The kernel removes the probe when it has time.
    wait_until(lambda: is_intact(qemu), "the probe is removed")
    lab.virsh_checked(*write(lab, 1, "write -P 3 0 4096")[len(lab.virsh_command()) :])


def is_intact(pid: int) -> bool:
    try:
        assert_untraced_and_intact(pid)
    except AssertionError:
        return False
    return True


def layout_of(file: Path) -> NodeLayout:
    return node_layout(Module(str(file), file, 1 << 40, 2 << 40, 0, False))


def test_a_build_that_answers_from_elsewhere_is_refused(tmp_path: Path) -> None:
    """The code by which QEMU answers query-blockstats reads the mark, or it is none."""
    stock = Path("/usr/bin/qemu-system-x86_64")
    code = stock.read_bytes()
    reads = b"\x48\x8b\x93" + layout_of(stock).mark.to_bytes(4, "little")
    assert reads in code
    changed = tmp_path / "changed"
    changed.write_bytes(code.replace(reads, reads[:3] + b"\x28" + reads[4:]))
    with pytest.raises(Unavailable, match="does not show that QMP reports"):
        layout_of(changed)


ENTRIES = """\
virtrace: 1
name: entries
about: Entries of a function of QEMU.
try: none
points:
  - name: statistics
    of: qemu
    module: qemu-system-x86_64
    prototype: void *qmp_query_blockstats(bool has_query_nodes, bool query_nodes)
    anywhere: true
    capture: {given: has_query_nodes}
"""


WRITES = """\
  - name: {name}
    of: qemu
    module: qemu-system-x86_64
    prototype: void bdrv_set_dirty(BlockDriverState *bs, long offset, long bytes){when}
    anywhere: true
    capture: {{node: bs->node_name, bytes: bytes, mark: bs->wr_highest_offset}}
"""
# By the condition of a point: what of an event is one of its values, and what has its own ones.
CHANGES: Mapping[str, tuple[str, Sequence[str]]] = {
    "changes: bytes": ("bytes", ()),
    "changes: bytes, per: bs": ("bytes", ("node",)),
    "changes: bytes, per: bs->node_name": ("bytes", ("node",)),
    "changes: bs->wr_highest_offset, per: bs": ("mark", ("node",)),
}


def test_only_changes_are_recorded(lab: Lab, tmp_path: Path) -> None:
    """By a condition of each form, beside a point without one."""
    recipe = tmp_path / "changes.yaml"
    conditions = ["", *(f"\n    when: {{{when}}}" for when in CHANGES)]
    points = [WRITES.format(name=f"p{at}", when=when) for at, when in enumerate(conditions)]
    recipe.write_text(ENTRIES.partition("  - ")[0] + "".join(points))
    done = [
        shlex.join(write(lab, disk, f"write {offset} {size}"))
        for disk, offset, size in (
            *((1, 0, 512), (1, 512, 512), (1, 0, 1024), (1, 0, 512), (1, 512, 1024)),
            *((2, 0, 1024), (1, 0, 1024), (2, 0, 512), (2, 0, 512)),
        )
    ]
    options = ("-p", lab.pid, "--domain", "vm1", "-o", tmp_path / "t.jsonl")
    ended = virtrace("record", recipe, *options, "--", "sh", "-ec", "; ".join(done))
    assert ended.returncode == DONE, ended.stdout + ended.stderr
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.problems == []
    every = of_point(trace, "p0")
    assert len(every) >= len(done)
    for at, (value, per) in enumerate(CHANGES.values(), 1):
        last: dict[tuple[object, ...], object] = {}
        expected = []
        for values in every:
            key = tuple(values[name] for name in per)
            if key not in last or last[key] != values[value]:
                expected.append(values)
            last[key] = values[value]
        assert of_point(trace, f"p{at}") == expected
        assert len(expected) < len(every)


def of_point(trace: Trace, name: str) -> list[Mapping[str, Any]]:
    return [event.values for event in trace.events if event.name == name]


def test_gdb_traces_qemu_only_if_chosen(lab: Lab, tmp_path: Path) -> None:
    recipe, output = tmp_path / "entries.yaml", tmp_path / "t.jsonl"
    recipe.write_text(ENTRIES)
    target = (recipe, "-p", lab.pid, "--domain", "vm1", "-o")
    command = ("--", *lab.virsh_command("domblkinfo", "vm1", "vdb"))
    done = virtrace("record", *target, tmp_path / "kernel.jsonl", *command)
    assert done.returncode == DONE, done.stderr
    assert done.stderr == ""
    done = virtrace("record", *target, output, "--engine", "gdb", *command)
    assert done.returncode == DONE, done.stderr
    assert "GDB stops the guest's processors, its disks and its monitor" in done.stderr
    by_gdb, by_kernel = (read_trace(file) for file in (output, tmp_path / "kernel.jsonl"))
    assert [event.values for event in by_gdb.events] == [event.values for event in by_kernel.events]
    assert by_gdb.events
    assert by_gdb.header["tool"]["engine"]["name"] == "gdb"
    assert lab.qmp({"execute": "query-status"})["return"]["status"] == "running"


def test_gdb_does_not_decide_conditions(lab: Lab, tmp_path: Path) -> None:
    options = ("-p", lab.pid, "--domain", "vm1", "-o", tmp_path / "t.jsonl", "--engine", "gdb")
    done = virtrace("record", "high-water", *options)
    assert done.returncode == NOT_TRACED
    assert "which only probes of the kernel record" in done.stderr
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "status", "what"),
    [
        (("high-water", "--domain", "nobody"), NOT_TRACED, "runs no guest nobody"),
        (("high-water", "--domain", "../vm1"), NOT_TRACED, "runs no guest ../vm1"),
        (("high-water",), NOT_TRACED, "try: trace the QEMU of a guest: --domain NAME"),
        (("blockinfo", "--domain", "vm1"), BAD_INPUT, "--domain has no meaning here"),
    ],
)
def test_a_guest_that_cannot_be_found(
    lab: Lab, tmp_path: Path, options: tuple[str, ...], status: int, what: str
) -> None:
    done = virtrace("record", *options, "-p", lab.pid, "-o", tmp_path / "t.jsonl")
    assert done.returncode == status
    assert what in done.stderr
