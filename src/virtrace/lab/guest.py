"""The lab's guest: a disk for each way in which domblkinfo can answer, and its definition.

The guest has no operating system. Its firmware reads one sector of the boot disk and
halts, and the block layer answers as it does for any guest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

MIB = 1 << 20
GIB = 1 << 30
SECTOR = 512


@dataclass(frozen=True)
class Disk:
    """A disk of a guest.

    target: its name for virsh
    format: qcow2 or raw
    capacity: bytes
    """

    target: str
    format: str
    capacity: int
    about: str

    def file(self, folder: Path) -> Path:
        return folder / f"{self.target}.{self.format}"


@dataclass(frozen=True)
class Guest:
    """name: of the domain; disks: in the order of the guest's virtio disks."""

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


# Runs a program of the lab's system; raises LabError where it fails.
Run = Callable[..., str]


def make_disks(folder: Path, run: Run, uid: int, gid: int) -> None:
    """Make the images of GUEST in an existing folder, owned by the user who runs QEMU."""
    base = folder / "base.qcow2"
    files = [base]
    run("qemu-img", "create", "-q", "-f", "qcow2", str(base), str(GUEST.disks[0].capacity))
    for disk in GUEST.disks:
        file = disk.file(folder)
        files.append(file)
        if disk.format == "qcow2":
            backing = ("-b", str(base.name), "-F", "qcow2")
            run("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(file))
            continue
        with file.open("xb") as image:
            if disk.target == "vdc":
                os.posix_fallocate(image.fileno(), 0, disk.capacity)
            else:
                image.truncate(disk.capacity)
    for file in files:
        os.chown(file, uid, gid)


def disk_xml(kind: str, source: str, target: str, driver: str = "type='raw'") -> str:
    """The definition of a disk.

    kind: `file`, `block` or `network`
    source: the <source> element
    driver: attributes of the <driver> element
    """
    return f"""
    <disk type='{kind}' device='disk'>
      <driver name='qemu' {driver}/>
      {source}
      <target dev='{target}' bus='virtio'/>
    </disk>"""


def file_source(file: Path) -> str:
    return f"<source file={quoteattr(str(file))}/>"


def guest_disks(folder: Path) -> str:
    """The definitions of the disks of GUEST, whose images are in the folder."""
    return "".join(
        disk_xml("file", file_source(disk.file(folder)), disk.target, f"type='{disk.format}'")
        for disk in GUEST.disks
    )


def domain_xml(name: str, emulator: str, kvm: bool, disks: str, more: str = "") -> str:
    """The definition of a guest.

    disks: as from disk_xml
    more: elements beside <devices>
    """
    # rebootTimeout: the firmware halts for good, and no counter changes afterwards.
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}'>
  <name>{name}</name>
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
  </devices>{more}
</domain>
"""


def backend(disk: int) -> str:
    """QEMU's name for a guest's virtio disk, counted from 0."""
    return f"/machine/peripheral/virtio-disk{disk}/virtio-backend"
