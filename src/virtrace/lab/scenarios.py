"""The scenarios of `virtrace lab run`: the ways in which the answer of domblkinfo can surprise.

A scenario that changes nothing asks for disks of the lab's guest. Every other one has a guest and a
disk of its own, so that many scenarios can run in one lab, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from virtrace.errors import LabError
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, GUEST, MIB, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage

SIZE = 64 * MIB
BLOCK = 4096
LEGACY_DRIVE = """
  <qemu:capabilities xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:del capability='blockdev'/>
  </qemu:capabilities>"""


def _nothing(_stage: Stage) -> None:
    pass


@dataclass(frozen=True)
class Scenario:
    """A situation to set up and trace.

    about: what is set up
    answer: what domblkinfo answers then, in words
    prepare: sets it up
    disks: guest and disk of each domblkinfo, in this order
    until: the first version of libvirt in which it no longer exists
    """

    name: str
    about: str
    answer: str
    prepare: Callable[[Stage], None] = _nothing
    disks: tuple[tuple[str, str], ...] = ((GUEST_NAME, TARGET),)
    until: tuple[int, ...] | None = None

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """Arguments of virsh."""
        return [("domblkinfo", guest, disk) for guest, disk in self.disks]

    def set_up(self, lab: Lab) -> Stage:
        """Set it up in a lab that is up and that nothing else uses until the stage is cleared.

        Raises:
            LabError: this libvirt does not have it, or only root can set it up
        """
        if self.until and lab.libvirt_version >= self.until:
            first, running = (".".join(map(str, v)) for v in (self.until, lab.libvirt_version))
            raise LabError(
                f"the scenario {self.name} needs libvirt before {first}, and this is {running}",
                "add --release bullseye, which has libvirt 7.0.0",
            )
        stage = Stage(lab)
        try:
            self.prepare(stage)
        except BaseException:
            stage.clear()
            raise
        return stage


def _block_source(device: Path) -> str:
    return f"<source dev={quoteattr(str(device))}/>"


def _device_end(stage: Stage) -> None:
    device = stage.block_device(SIZE)
    stage.start(disk_xml("block", _block_source(device), TARGET))
    stage.write(SIZE - BLOCK, BLOCK, device)


def _stopped_device(stage: Stage) -> None:
    device = stage.block_device(SIZE)
    stage.start(disk_xml("block", _block_source(device), TARGET))
    stage.virsh("destroy", GUEST_NAME)


def _qcow2_device(stage: Stage) -> None:
    device = stage.block_device(SIZE)
    stage.qemu_img("create", "-q", "-f", "qcow2", str(device), str(GIB))
    stage.start(disk_xml("block", _block_source(device), TARGET, "type='qcow2'"))
    stage.write(0, MIB)


def _restarted(stage: Stage) -> None:
    file = stage.image("vda.raw", SIZE)
    stage.start(disk_xml("file", file_source(file), TARGET))
    stage.write(SIZE - BLOCK, BLOCK, file)
    stage.virsh("destroy", GUEST_NAME)
    stage.virsh("start", GUEST_NAME)


def _discarded(stage: Stage) -> None:
    file = stage.image("vda.raw", SIZE)
    stage.start(disk_xml("file", file_source(file), TARGET, "type='raw' discard='unmap'"))
    stage.write(0, BLOCK, file)
    stage.write(SIZE - MIB, MIB, file)
    stage.discard(SIZE - MIB, MIB)


def _external_snapshot(stage: Stage) -> None:
    file = stage.image("vda.qcow2", SIZE, "qcow2")
    stage.start(disk_xml("file", file_source(file), TARGET, "type='qcow2'"))
    stage.write(0, 16 * MIB)
    overlay = f"{TARGET},file={stage.images / 'overlay.qcow2'}"
    snapshot = ("snapshot-create-as", GUEST_NAME, "--disk-only", "--no-metadata")
    stage.virsh(*snapshot, "--diskspec", overlay)


def _internal_snapshot(stage: Stage) -> None:
    size = 8 * MIB
    file = stage.image("vda.qcow2", size, "qcow2")
    stage.start(disk_xml("file", file_source(file), TARGET, "type='qcow2'"))
    stage.write(0, size)
    stage.virsh("snapshot-create-as", GUEST_NAME, "before")
    stage.write(0, size)


def _network(stage: Stage) -> None:
    socket = stage.serve(stage.image("vda.raw", SIZE))
    host = f"<host transport='unix' socket={quoteattr(str(socket))}/>"
    stage.start(disk_xml("network", f"<source protocol='nbd'>{host}</source>", TARGET))


def _empty_cdrom(stage: Stage) -> None:
    stage.start("\n    <disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>")


def _stopped_qcow2(stage: Stage) -> None:
    file = stage.image("vda.qcow2", GIB, "qcow2")
    stage.start(disk_xml("file", file_source(file), TARGET, "type='qcow2'"))
    stage.write(0, MIB)
    stage.virsh("destroy", GUEST_NAME)


def _legacy_drive(stage: Stage) -> None:
    file = stage.image("vda.raw", SIZE)
    stage.start(disk_xml("file", file_source(file), TARGET), LEGACY_DRIVE)
    stage.write(SIZE - BLOCK, BLOCK, file)


def _stop_the_labs_guest(stage: Stage) -> None:
    stage.virsh("destroy", GUEST.name)


def _unchanged(name: str, target: str, answer: str) -> Scenario:
    about = f"{target} of {GUEST.name}: {GUEST.disk(target).about}"
    return Scenario(name, about, answer, disks=((GUEST.name, target),))


_EVERY_DISK = tuple((GUEST.name, disk.target) for disk in GUEST.disks)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "disks",
            f"every disk of {GUEST.name}, one after the other",
            "like qcow2, sparse, allocated and last-sector",
            disks=_EVERY_DISK,
        ),
        _unchanged("qcow2", "vda", "allocation is what the file occupies, physical its size"),
        _unchanged("sparse", "vdb", "allocation is 0, physical the size of the file"),
        _unchanged("allocated", "vdc", "all three are equal"),
        _unchanged(
            "last-sector",
            "vdd",
            "allocation is the capacity, physical the little that is occupied; on libvirt "
            "11.3.0 and 12.8.0 the other way round",
        ),
        Scenario(
            "restarted",
            "raw, written at its end before QEMU was restarted",
            "allocation is the little that is occupied: the high-water mark starts at 0 again",
            _restarted,
        ),
        Scenario(
            "discarded",
            "raw, written at its end, then discarded there",
            "allocation stays the capacity, physical is what is still occupied; on libvirt "
            "11.3.0 and 12.8.0 the other way round",
            _discarded,
        ),
        Scenario(
            "device-end",
            "raw block device, written at its end (root only)",
            "all three are equal; on libvirt 11.3.0 and 12.8.0 allocation is 0",
            _device_end,
        ),
        Scenario(
            "stopped-device",
            "raw block device of a guest that is shut off (root only)",
            "all three are equal",
            _stopped_device,
        ),
        Scenario(
            "qcow2-device",
            "1 GiB qcow2 on a block device of 64 MiB (root only)",
            "allocation is how far the device was written, metadata included; physical its size",
            _qcow2_device,
        ),
        Scenario(
            "external-snapshot",
            "qcow2 with 16 MiB written, then an external snapshot",
            "allocation and physical are those of the new, empty layer alone",
            _external_snapshot,
        ),
        Scenario(
            "internal-snapshot",
            "8 MiB qcow2, filled before and after an internal snapshot",
            "allocation and physical are more than the capacity",
            _internal_snapshot,
        ),
        Scenario(
            "network",
            "sparse raw, never written, served over NBD",
            "all three are equal: QEMU does not report what is occupied, libvirt uses the capacity",
            _network,
        ),
        Scenario(
            "empty-cdrom",
            "CD-ROM drive without a medium",
            "an error: the disk has no source",
            _empty_cdrom,
            disks=((GUEST_NAME, "hda"),),
        ),
        Scenario(
            "error",
            f"a disk that {GUEST.name} does not have",
            "an error: there is no such disk",
            disks=((GUEST.name, "vdz"),),
        ),
        Scenario(
            "stopped-qcow2",
            "1 GiB qcow2 with 1 MiB written, of a guest that is shut off",
            "allocation is what the file occupies, physical its size, capacity as in its header",
            _stopped_qcow2,
        ),
        Scenario(
            "legacy-drive",
            "raw, written at its end, with QEMU started by -drive (libvirt before 7.9)",
            "like last-sector; libvirt asks QEMU by query-block",
            _legacy_drive,
            until=(7, 9),
        ),
        Scenario(
            "stopped",
            f"every disk of {GUEST.name}, shut off",
            "allocation is what each file occupies, physical its size",
            _stop_the_labs_guest,
            disks=_EVERY_DISK,
        ),
    )
}
