"""The lab's guest: its disks, one for each way the three numbers can come out, and its XML.

The guest has no operating system. Its firmware reads one sector of the boot disk and
halts, and the block layer answers as it does for any guest.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from virtrace.errors import LabError

MIB = 1 << 20
GIB = 1 << 30
SECTOR = 512


@dataclass(frozen=True)
class Disk:
    """target: what domblkinfo calls it. format: qcow2 or raw. capacity: bytes."""

    target: str
    format: str
    capacity: int
    about: str

    def file(self, folder: Path) -> Path:
        return folder / f"{self.target}.{self.format}"


@dataclass(frozen=True)
class Guest:
    """name: the domain. disks: in the order of the guest's virtio disks."""

    name: str
    disks: tuple[Disk, ...]

    def disk(self, target: str) -> Disk:
        return next(disk for disk in self.disks if disk.target == target)


LAST_SECTOR_DISK = "vdd"

GUEST = Guest(
    name="vm1",
    disks=(
        Disk("vda", "qcow2", GIB, "qcow2 with a backing file"),
        Disk("vdb", "raw", 2 * GIB, "sparse raw, never written"),
        Disk("vdc", "raw", 64 * MIB, "fully allocated raw"),
        Disk(LAST_SECTOR_DISK, "raw", 2 * GIB, "sparse raw, written at its last sector"),
    ),
)


def make_disks(folder: Path, uid: int, gid: int) -> None:
    """Make the guest's images in an existing folder, owned by the user that runs QEMU."""
    base = folder / "base.qcow2"
    files = [base]
    _qemu_img("create", "-q", "-f", "qcow2", str(base), str(GUEST.disks[0].capacity))
    for disk in GUEST.disks:
        file = disk.file(folder)
        files.append(file)
        if disk.format == "qcow2":
            _qemu_img("create", "-q", "-f", "qcow2", "-b", base.name, "-F", "qcow2", str(file))
            continue
        with file.open("xb") as image:
            if disk.target == "vdc":
                os.posix_fallocate(image.fileno(), 0, disk.capacity)
            else:
                image.truncate(disk.capacity)
    for file in files:
        os.chown(file, uid, gid)


def _qemu_img(*args: str) -> None:
    done = subprocess.run(["qemu-img", *args], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise LabError(
            f"the lab's disks could not be made: {done.stderr.strip()}",
            "see that the folder's file system has 100 MB free",
        )


def domain_xml(folder: Path, emulator: str, kvm: bool) -> str:
    """The guest's definition; folder: where its images are."""
    disks = "".join(
        f"""
    <disk type='file' device='disk'>
      <driver name='qemu' type='{disk.format}'/>
      <source file={quoteattr(str(disk.file(folder)))}/>
      <target dev='{disk.target}' bus='virtio'/>
    </disk>"""
        for disk in GUEST.disks
    )
    # rebootTimeout: the firmware halts for good, so the counters stand still afterwards.
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}'>
  <name>{GUEST.name}</name>
  <memory unit='MiB'>16</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <boot dev='hd'/>
    <bios rebootTimeout='-1'/>
  </os>
  <devices>
    <emulator>{emulator}</emulator>{disks}
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def last_sector_write() -> str:
    """The monitor command (HMP) that has QEMU write the last sector of LAST_SECTOR_DISK."""
    index = [disk.target for disk in GUEST.disks].index(LAST_SECTOR_DISK)
    offset = GUEST.disk(LAST_SECTOR_DISK).capacity - SECTOR
    device = f"/machine/peripheral/virtio-disk{index}/virtio-backend"
    return f'qemu-io -d {device} "write -P 5 {offset} {SECTOR}"'
