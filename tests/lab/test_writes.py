"""A guest with Linux writes in many ways, and so do jobs: which write raised each mark is known.

One recording has all of it. `make test-guests` runs it on the other releases of QEMU.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.linux import Linux, linux
from tests.support.mounts import mounted
from tests.support.stages import staged
from tests.support.waiting import wait_until
from virtrace.analysis.explain.marks import MarkCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, MIB, SECTOR, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, Stage
from virtrace.targets import QEMU
from virtrace.targets.qemu import guests
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

RELEASES = [
    # Not with the quick tests: what the guest runs is downloaded, by the tools of the slow ones.
    pytest.param(None, id="7.2", marks=pytest.mark.matrix),
    *(
        pytest.param(release, id=version, marks=pytest.mark.guests)
        for release, version in (("bullseye", "5.2"), ("trixie", "10.0"), ("sid", "11.1"))
    ),
]
BLOCK, CLUSTER = 4096, 1 << 16
# What --classify-writes says of data that a test makes up.
NOT_KNOWN = "none of the known formats"
RAW, QCOW2 = "type='raw'", "type='qcow2'"
# The file system of the disk that cannot be written is smaller than one write.
FULL = 32 << 10


@dataclass
class World:
    """A guest that is traced. nodes: of each disk, by layer. marks: QMP's, by node."""

    stage: Stage
    linux: Linux
    marks: dict[str, int] = field(default_factory=dict)
    compared: int = 0

    @property
    def lab(self) -> Lab:
        return self.stage.lab

    def virsh(self, *args: str) -> str:
        return self.lab.virsh_checked(*args)

    def qmp(self, command: str, **arguments: object) -> None:
        reply = self.lab.qmp({"execute": command, "arguments": arguments}, GUEST_NAME)
        assert "return" in reply, reply

    def disk_of_size(self, size: int) -> str:
        """The name of a SCSI or IDE disk in the guest: it depends on which one is found first."""
        line = f"for d in /sys/block/sd*; do grep -lx {size // SECTOR} $d/size; done"
        return "/dev/" + self.linux.run(line + "; true").split("/")[3]

    def compare(self) -> None:
        """Compare the marks in memory with those that QEMU itself reports, of all nodes."""
        command = {"execute": "query-blockstats", "arguments": {"query-nodes": True}}
        nodes = self.lab.qmp(command, GUEST_NAME)["return"]
        marks = {node["node-name"]: node["stats"]["wr_highest_offset"] for node in nodes}
        pid, guest = guests.qemu_of(self.lab.pid, GUEST_NAME)
        standing = QEMU.knowledge.standing("block-nodes", inspect(pid), guest)
        assert {one.key: one.value for one in standing} == marks
        self.marks.update(marks)
        self.compared += len(marks)


@dataclass(frozen=True)
class Disk:
    """target: its name for the guest and for virsh. driver: attributes of its <driver>."""

    target: str
    driver: str = RAW
    size: int = GIB
    bus: str = "virtio"

    def xml(self, file: Path) -> str:
        xml = disk_xml("file", file_source(file), self.target, self.driver)
        return xml.replace("bus='virtio'", f"bus='{self.bus}'")


@dataclass(frozen=True)
class Scenario:
    """What raises the mark of a node.

    node: `disk layer`, a node's own name, or `copy of disk`. offset, size: of the last write that
    raised it; None where that is for the programs or for QEMU to choose. content: what
    --classify-writes says of it; None where that differs. before_6: the cause on QEMU 5.2, if
    it is another one
    """

    name: str
    act: Callable[[World], object]
    node: str
    cause: str
    offset: int | None = None
    size: int | None = None
    content: str | None = NOT_KNOWN
    before_6: str | None = None


DISKS = (
    Disk("vda"),
    Disk("vdb"),
    Disk("vdc", f"{RAW} iothread='1'"),
    Disk("vdd", f"{RAW} discard='unmap'"),
    Disk("vde", QCOW2),
    Disk("vdf", QCOW2),
    Disk("sda", size=512 * MIB, bus="scsi"),
    Disk("hda", size=256 * MIB, bus="ide"),
    Disk("vdh", size=64 * MIB),
    Disk("vdi", size=64 * MIB),
    Disk("vdj", QCOW2, 64 * MIB),
    Disk("vdk", QCOW2, 64 * MIB),
)
# A disk of each format, and one with the beginnings of all.
FORMATTING, FORMATTED = Disk("vdl", size=320 * MIB), Disk("vdm")
FORMATS = {
    "mkfs.ext4 -q -F": "an ext superblock",
    "mkfs.xfs -q -f": "an XFS superblock",
    "mkntfs -q -Q -F": "an NTFS boot sector",
    "mdadm --create /dev/md0 -e 1.1 -l 1 -n 2 --run missing": "an md superblock",
    "echo 1 | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000": "a LUKS header",
}


@dataclass(frozen=True)
class MadeUp:
    """Data of a format, or nearly. at: where in it the bytes are, from 0 or from its end."""

    content: str
    offset: int
    size: int
    at: int
    data: bytes


def gpt(sector: int) -> bytes:
    """The beginning of a header of a GPT that is in this sector."""
    return struct.pack("<8sIIIIQ", b"EFI PART", 0x10000, 92, 0, 0, sector)


# Each is higher than the one before, by so much that it is recorded.
MADE_UP = (
    MadeUp("a GPT header", 0, BLOCK, SECTOR, gpt(1)),
    MadeUp("an ext superblock", MIB, CLUSTER, 0x438, b"\x53\xef\1\0\1\0\0\0"),
    MadeUp("an ext superblock", 2 * MIB, BLOCK, 0x38, b"\x53\xef\0\0\2\0\0\0"),
    MadeUp(NOT_KNOWN, 3 * MIB, BLOCK, 0x38, b"\x53\xef\0\1\2\0\0\0"),
    MadeUp("an XFS superblock", 4 * MIB, BLOCK, 0, b"XFSB\0\0\x10\0"),
    MadeUp("an NTFS boot sector", 8 * MIB, BLOCK, 3, b"NTFS    "),
    MadeUp("an NTFS boot sector", 16 * MIB, BLOCK, 3 - SECTOR, b"NTFS    "),
    MadeUp("a LUKS header", 32 * MIB, BLOCK, 0, b"LUKS\xba\xbe\0\2"),
    MadeUp(NOT_KNOWN, 64 * MIB, BLOCK, 0, b"LUKS\xba\xbe\0\3"),
    MadeUp("an md superblock", 128 * MIB, BLOCK, 0, struct.pack("<II", 0xA92B4EFC, 1)),
    MadeUp("zeroes", 192 * MIB, CLUSTER, 0, bytes(CLUSTER)),
    MadeUp(NOT_KNOWN, 256 * MIB, CLUSTER, 0, bytes(CLUSTER - 1)),
    MadeUp(NOT_KNOWN, 512 * MIB, BLOCK, -SECTOR, gpt(77)),
    MadeUp("a GPT backup header", GIB - 40 * SECTOR, 40 * SECTOR, -SECTOR, gpt(GIB // SECTOR - 1)),
)

# Its file is on a file system that is full.
FAILING = Disk("vdg", f"{RAW} error_policy='report'", 64 * MIB)


def runs(*commands: str, status: int = 0) -> Callable[[World], None]:
    """Have the guest run commands."""

    def act(world: World) -> None:
        for command in commands:
            world.linux.run(command, status)

    return act


def writes(disk: str, offset: int, size: int) -> Callable[[World], None]:
    return runs(f"io write /dev/{disk} {offset} {size} 7")


def writes_by_size(size: int, offset: int) -> Callable[[World], None]:
    def act(world: World) -> None:
        world.linux.run(f"io write {world.disk_of_size(size)} {offset} {2 * BLOCK} 7")

    return act


def copies(world: World) -> None:
    world.linux.run(f"io write /dev/vdh {4 * MIB} {CLUSTER} 7")
    copy = str(world.stage.images / "copy.raw")
    options = ("--format", "raw", "--transient-job", "--wait")
    world.virsh("blockcopy", GUEST_NAME, "vdh", copy, *options)


def backs_up(world: World) -> None:
    """Push a disk to a file, slowly, so that its node is there when it is looked at."""
    world.linux.run(f"io write /dev/vdi {4 * MIB} {CLUSTER} 7")
    node = {"node-name": "target", "driver": "raw"}
    target = world.stage.image("backup.raw", 64 * MIB)
    world.qmp("blockdev-add", **node, file={"driver": "file", "filename": str(target)})
    device = storage_of(world, "vdi").replace("storage", "format")
    names = {one["node-name"] for one in named_nodes(world)}
    source = device if device in names else device.replace("format", "storage")
    job = {"job-id": "backup", "device": source, "target": "target", "sync": "full"}
    world.qmp("blockdev-backup", **job, **{"auto-dismiss": False})
    wait_for_job(world, "backup")
    world.qmp("job-dismiss", id="backup")


def named_nodes(world: World) -> list[Mapping[str, str]]:
    found: list[Mapping[str, str]] = world.lab.qmp(
        {"execute": "query-named-block-nodes", "arguments": {"flat": True}}, GUEST_NAME
    )["return"]
    return found


def wait_for_job(world: World, job: str) -> None:
    def is_concluded() -> bool:
        jobs = world.lab.qmp({"execute": "query-jobs"}, GUEST_NAME)["return"]
        return any(one["id"] == job and one["status"] == "concluded" for one in jobs)

    wait_until(is_concluded, "the job")


def storage_of(world: World, disk: str) -> str:
    _, guest = guests.qemu_of(world.lab.pid, GUEST_NAME)
    noted = guests.disks_of(guest)
    return next(
        node
        for node, known in noted.items()
        if (known["disk"], known["layer"], known["is"]) == (disk, "storage", "disk")
    )


def overlays(world: World, disk: str) -> None:
    """Take an external snapshot of one disk."""
    others = [one.target for one in (*DISKS, FAILING, FORMATTING, FORMATTED) if one.target != disk]
    specs = [f"{disk},file={world.stage.images / disk}.overlay"]
    specs += [f"{other},snapshot=no" for other in others]
    options = ("--disk-only", "--no-metadata")
    listed = [word for spec in specs for word in ("--diskspec", spec)]
    world.virsh("snapshot-create-as", GUEST_NAME, *options, *listed)


def commits(world: World) -> None:
    world.linux.run(f"io write /dev/vdj {4 * MIB} {CLUSTER} 7")
    overlays(world, "vdj")
    world.linux.run(f"io write /dev/vdj {8 * MIB} {CLUSTER} 7")
    world.virsh("blockcommit", GUEST_NAME, "vdj", "--active", "--wait", "--pivot")


def pulls(world: World) -> None:
    world.linux.run(f"io write /dev/vdk {4 * MIB} {CLUSTER} 7")
    overlays(world, "vdk")
    world.virsh("blockpull", GUEST_NAME, "vdk", "--wait")


def exports(world: World) -> None:
    """A client of QEMU's NBD server writes."""
    file, path = world.stage.image("exported.raw", GIB), world.stage.images / "nbd.sock"
    node = {"driver": "file", "node-name": "exported", "filename": str(file)}
    world.qmp("blockdev-add", **node)
    world.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    export = {"type": "nbd", "id": "export", "node-name": "exported", "writable": True}
    world.qmp("block-export-add", **export)
    client = ("qemu-io", "-f", "raw", "-c", f"write {5 * MIB} {BLOCK}")
    world.lab.system.run(*client, f"nbd+unix:///exported?socket={path}", as_daemon=True)
    world.qmp("nbd-server-stop")


def by_monitor(world: World) -> None:
    file = world.stage.image("monitor.raw", GIB)
    world.qmp("blockdev-add", driver="file", **{"node-name": "monitor", "filename": str(file)})
    command = f'qemu-io monitor "write {6 * MIB} {BLOCK}"'
    world.virsh("qemu-monitor-command", GUEST_NAME, "--hmp", command)


def formats(world: World) -> None:
    """Write the beginning of each format, each 16 MiB after the one before; then zeroes."""
    source, disk = f"/dev/{FORMATTING.target}", f"/dev/{FORMATTED.target}"
    for at, command in enumerate((*FORMATS, "true")):
        made = f"io zero {source} 0 {MIB} && {command} {source}"
        world.linux.run(f"{made} && (mdadm -q --stop /dev/md0; true)")
        world.linux.run(f"io copy {disk} {at << 24} {CLUSTER} {source} 0")


def pattern(world: World) -> int:
    """Fill a part of a disk with a pattern; return how many bytes are not as they were written."""
    part = f"/dev/{FORMATTING.target} 0 {64 * MIB}"
    world.linux.run(f"io fill {part}")
    return int(world.linux.run(f"io check {part}"))


def made_up(world: World) -> None:
    """Have QEMU itself write data that is made up."""
    images = world.stage.images
    file = world.stage.image("made-up.raw", GIB)
    world.qmp("blockdev-add", driver="file", **{"node-name": "made-up", "filename": str(file)})
    for one in MADE_UP:
        data = bytearray(b"\7" * one.size)
        at = one.at % one.size
        data[at : at + len(one.data)] = one.data
        (images / "data").write_bytes(data)
        command = f'qemu-io made-up "write -s {images / "data"} {one.offset} {one.size}"'
        world.virsh("qemu-monitor-command", GUEST_NAME, "--hmp", command)


SCENARIOS = (
    Scenario(
        "a partition table",
        runs("sgdisk -n 1:2048:+64M /dev/vda"),
        *("vda storage", "by-guest", GIB - 40 * SECTOR, 40 * SECTOR, "a GPT backup header"),
    ),
    Scenario(
        "a file system", runs("mkfs.ext4 -q /dev/vdb"), "vdb storage", "by-guest", content=None
    ),
    Scenario(
        "an iothread",
        writes("vdc", 4 * MIB, BLOCK),
        *("vdc storage", "by-guest", 4 * MIB, BLOCK),
    ),
    Scenario(
        "zeroes, and a discard behind them",
        runs(f"io zero /dev/vdd {MIB} {CLUSTER}", f"io discard /dev/vdd {8 * MIB} {MIB}"),
        *("vdd storage", "by-guest", MIB, CLUSTER, "zeroes"),
    ),
    Scenario(
        "a disk of qcow2",
        writes("vde", 96 * MIB, BLOCK),
        *("vde format", "by-guest", 96 * MIB, BLOCK),
    ),
    Scenario("the file of qcow2", lambda _: None, "vde storage", "by-guest", content=None),
    # Its middle has a place in the file already.
    Scenario(
        "a write that qcow2 splits",
        runs(
            f"io write /dev/vdf {8 * MIB} {CLUSTER} 7",
            f"io write /dev/vdf {8 * MIB - CLUSTER} {3 * CLUSTER} 7",
        ),
        *("vdf storage", "by-task"),
        content=None,
    ),
    Scenario(
        "a write that fails",
        runs(f"io write /dev/vdg {8 * MIB} {2 * FULL} 7", status=1),
        *("vdg storage", "by-guest", 8 * MIB, 2 * FULL),
    ),
    Scenario(
        "virtio-scsi",
        writes_by_size(512 * MIB, 4 * MIB),
        *("sda storage", "by-guest", 4 * MIB, 2 * BLOCK),
    ),
    Scenario(
        "IDE",
        writes_by_size(256 * MIB, 4 * MIB),
        *("hda storage", "by-guest", 4 * MIB, 2 * BLOCK),
    ),
    Scenario(
        "NVMe",
        runs(f"io write /dev/nvme0n1 {4 * MIB} {2 * BLOCK} 7"),
        *("nvme-storage", "by-guest", 4 * MIB, 2 * BLOCK),
    ),
    Scenario("a blockcopy", copies, "copy of vdh", "by-copy", content=None),
    Scenario("a backup", backs_up, "target", "by-task", content=None, before_6="by-job"),
    Scenario("a commit", commits, "vdj format", "by-qemu", 8 * MIB, CLUSTER),
    Scenario("a pull", pulls, "vdk storage", "by-job", content=None),
    Scenario("a client of an export", exports, "exported", "by-qemu", 5 * MIB, BLOCK),
    Scenario("the monitor", by_monitor, "monitor", "by-main-thread", 6 * MIB, BLOCK),
)


@dataclass(frozen=True)
class Written:
    """What came of all scenarios. wrong: bytes of a pattern that were read back as others."""

    world: World
    output: Path
    trace: Trace
    explained: Mapping[str, Explanation[MarkCase]]
    wrong: int

    def node(self, named: str) -> str:
        """The node that a scenario names, as libvirt noted it at the end, or at the beginning."""
        disk, _, layer = named.partition(" ")
        role = "disk"
        if disk == "copy":
            disk, layer, role = layer.split()[-1], "storage", "copy"
        noted = [event for event in self.trace.events if event.name == "mark.standing"]
        for event in reversed(noted):
            values = event.values
            if (values.get("disk"), values.get("is")) == (disk, role) and layer in (
                values.get("layer"),
                "" if values.get("layer") else layer,
            ):
                return str(values["node"])
        return named


@contextmanager
def traced(stage: Stage, output: Path) -> Iterator[None]:
    """Record high-water of vm2 meanwhile."""
    fifo = stage.folder / "end"
    os.mkfifo(fifo)
    options = ("-p", str(stage.lab.pid), "--domain", GUEST_NAME, "-o", str(output))
    command = (*VIRTRACE, "record", "high-water", "--classify-writes", *options)
    ending = ("sh", "-c", f"read line <{shlex.quote(str(fifo))}")
    with subprocess.Popen([*command, "--", *ending], stdout=subprocess.PIPE, text=True) as tracing:
        assert tracing.stdout is not None
        next(line for line in tracing.stdout if "running" in line)
        try:
            yield
        finally:
            fifo.write_text("\n")
            tracing.communicate(timeout=60)
    assert tracing.returncode == 0


@contextmanager
def guest(stage: Stage) -> Iterator[Linux]:
    """The guest of all scenarios."""
    lab, small = stage.lab, stage.images / "small"
    small.mkdir()
    xml = ""
    for disk in (*DISKS, FORMATTING, FORMATTED):
        format_ = "qcow2" if disk.driver == QCOW2 else "raw"
        xml += disk.xml(stage.image(f"{disk.target}.{format_}", disk.size, format_))
    nvme = stage.image("nvme.raw", GIB)
    node = "driver=raw,node-name=nvme-format,file.driver=file,file.node-name=nvme-storage"
    more = f"""
  <iothreads>1</iothreads>
  <qemu:commandline>
    <qemu:arg value='-blockdev'/><qemu:arg value='{node},file.filename={nvme}'/>
    <qemu:arg value='-device'/><qemu:arg value='nvme,drive=nvme-format,serial=1,addr=0x1e'/>
  </qemu:commandline>"""
    options = ("-t", "tmpfs", "-o", f"size={FULL},uid={lab.system.uid}", "tmpfs")
    with mounted(lab.pid, small, *options):
        file = small / f"{FAILING.target}.raw"
        space = f"--mount=/proc/{lab.pid}/ns/mnt"
        place = os.readlink(f"/proc/{lab.pid}/root").rstrip("/") + str(file)
        made = f"truncate -s {FAILING.size} {place}; chown {lab.system.uid} {place}"
        subprocess.run(["nsenter", space, "sh", "-c", made], check=True)
        xml += FAILING.xml(file) + "<controller type='scsi' model='virtio-scsi'/>"
        with linux(stage, xml, more) as running:
            yield running
            lab.virsh("destroy", GUEST_NAME)


@pytest.fixture(scope="module", params=RELEASES)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    output = tmp_path_factory.mktemp("written") / "t.jsonl"
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    lab = Lab(folder, release=request.param)
    with ExitStack() as stack:
        stack.callback(lab.down)
        lab.up()
        stage = stack.enter_context(staged(lab))
        world = World(stage, stack.enter_context(guest(stage)))
        with traced(stage, output):
            for scenario in SCENARIOS:
                scenario.act(world)
                world.compare()
            made_up(world)
            if request.param is not None:
                # Not in each run of all tests: it takes a while.
                formats(world)
            wrong = pattern(world)
            world.compare()
        pid, _ = guests.qemu_of(lab.pid, GUEST_NAME)
        assert_untraced_and_intact(pid)
        trace = read_trace(output)
        explained = {each.case.node: each for each in explain_trace(trace, "trace")}
        print(f"{world.compared} marks compared")
        yield Written(world, output, trace, explained, wrong)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_the_write_that_raised_it_is_named(written: Written, scenario: Scenario) -> None:
    node = written.node(scenario.node)
    explanation = written.explained[node]
    last = explanation.case.last
    assert last is not None
    offset, size = last.values["offset"], last.values["bytes"]
    if scenario.offset is not None:
        assert (offset, size) == (scenario.offset, scenario.size)
    assert isinstance(offset, int)
    assert isinstance(size, int)
    assert offset + size == last.values["mark"] == written.world.marks[node]
    cause = scenario.cause
    if scenario.before_6 is not None and written.world.lab.release == "bullseye":
        cause = scenario.before_6
    assert [finding.cause.name for finding in explanation.findings] == [cause]
    if scenario.content is not None:
        assert last.values["content"] == scenario.content


def test_formats_are_known(written: Written) -> None:
    events = written.explained["made-up"].case.events
    known = [(event.values["offset"], event.values["content"]) for event in events]
    assert known == [(one.offset, one.content) for one in MADE_UP]


@pytest.mark.parametrize("written", RELEASES[1:], indirect=True)
def test_formats_of_real_programs_are_known(written: Written) -> None:
    """A disk on which one write after the other has the beginning of a format."""
    node = written.node(f"{FORMATTED.target} storage")
    events = [e for e in written.explained[node].case.events if e.values["bytes"] == CLUSTER]
    assert [event.values["content"] for event in events] == [*FORMATS.values(), "zeroes"]


def test_the_guests_data_is_as_it_was_written(written: Written) -> None:
    assert written.wrong == 0


def test_no_byte_of_the_guest_is_in_the_trace(written: Written) -> None:
    said = written.output.read_bytes()
    assert b"EFI PART" not in said
    assert written.trace.header["recipe"]["points"][1]["contents"].startswith("int bdrv_co_pwritev")


def test_all_marks_are_those_that_qemu_reports(written: Written) -> None:
    """Each time that something had written, of all nodes; those of the trace are the last ones."""
    assert written.world.compared > 20 * len(SCENARIOS)
    events: Sequence[Event] = written.trace.events
    standing = {e.values["node"]: e.values["mark"] for e in events if e.name == "mark.standing"}
    assert standing.items() <= written.world.marks.items()
    assert written.trace.footer is not None
    assert written.trace.footer["dropped"] == 0
