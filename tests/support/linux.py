"""A guest with Linux and programs of Debian, which does on its disks what a test asks for."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.support.downloads import ensure_downloaded
from tests.support.initramfs import Archive
from tests.support.toolchain import build
from tests.support.waiting import wait_until
from virtrace.lab.stage import GUEST_NAME, Stage

SUITE = "bookworm"
# Programs that partition and format, with their libraries.
PACKAGES = (
    *("busybox-static", "libc6", "libblkid1", "libuuid1", "libudev1"),
    *("gdisk", "libpopt0", "libstdc++6", "libgcc-s1"),
    *("e2fsprogs", "libext2fs2", "libcom-err2"),
    *("xfsprogs", "libinih1", "liburcu8", "ntfs-3g", "libntfs-3g89", "mdadm"),
    *("cryptsetup-bin", "libcryptsetup12", "libdevmapper1.02.1", "libssl3", "libargon2-1"),
    *("libjson-c5", "libselinux1", "libpcre2-8-0"),
)
# Drivers of disks, ciphers, RAID.
_MODULES = (
    "drivers/virtio drivers/block/virtio_blk.ko drivers/scsi drivers/ata drivers/md crypto lib"
)
# The kernel for virtual machines has all drivers of disks but that of AHCI. Its metapackage is
# empty, and depends on the real one. usr/bin/busybox can run here: it needs no library.
_DOWNLOAD = f"""\
set -eux; cd "$1"; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; \
kernel="$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^  Depends: //p')"; \
apt-get download "$kernel" {" ".join(PACKAGES)}; \
mkdir all guest; for file in ./*.deb; do dpkg-deb -x "$file" all; done; \
cd all; cp -r --parents bin sbin lib lib64 usr/bin usr/sbin usr/lib etc ../guest; \
cp boot/vmlinuz-* ../guest/vmlinuz; cd ../guest; rm -rf lib/modules usr/lib/python* usr/share; \
modules="$(cd ../all; echo lib/modules/*)"; mkdir -p "$modules"; \
for part in {_MODULES}; do (cd ../all; cp -r --parents "$modules/kernel/$part" ../guest); done; \
cp ../all/"$modules"/modules.* "$modules"; \
bin/busybox depmod -b . "${{modules##*/}}"
"""
_MEMORY_MIB = 384
# For the kernel to boot, where the processor is emulated and others use the machine.
_BOOT_SECONDS = 600.0
_ANSWER_SECONDS = 300.0
_STATUS = b"status: "


def initramfs(folder: Path, output: Path) -> None:
    """Write the archive with what the guest runs. folder: from ensure_linux."""
    here = Path(__file__).parent
    io = build((here / "linux_io.c").read_text(), output.parent / "io", "-O2", "-static")
    with output.open("wb") as file:
        archive = Archive(file)
        archive.add("/init", (here / "linux_init.sh").read_bytes(), 0o100755)
        archive.add("/bin/io", io.read_bytes(), 0o100755)
        archive.add_tree(folder, without="vmlinuz")
        archive.end()


def ensure_linux() -> Path:
    """The folder with a kernel, `vmlinuz`, and all else that the guest has.

    Raises:
        LabError: it could not be downloaded; the log is then in the cache
    """
    return ensure_downloaded("guests", SUITE, _DOWNLOAD, "/guest")


def definition(stage: Stage, devices: str, more: str, *, kvm: bool) -> str:
    """The XML of the guest. devices: its disks and controllers; more: beside <devices>."""
    folder = stage.images
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{GUEST_NAME}</name>
  <memory unit='MiB'>{_MEMORY_MIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>{escape(str(folder / "vmlinuz"))}</kernel>
    <initrd>{escape(str(folder / "initramfs"))}</initrd>
    <cmdline>console=ttyS0 loglevel=4 panic=-1</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{stage.lab.system.emulator}</emulator>{devices}
    <serial type='file'><source path='{folder / "console"}'/></serial>
    <serial type='unix'>
      <source mode='bind' path='{folder / "port"}'/><target port='1'/>
    </serial>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>{more}
</domain>
"""


@dataclass
class Linux:
    """A guest that runs. port: its second serial port."""

    port: socket.socket
    console: Path

    def run(self, command: str, status: int = 0) -> str:
        """Have it run a command, and return its output. Raises: AssertionError."""
        self.port.sendall(command.encode() + b"\n")
        output, found = self._answer()
        assert found == str(status), f"{command}: {found}: {output}"
        return output

    def wait(self) -> None:
        """Wait until it has booted."""
        self.port.settimeout(_BOOT_SECONDS)
        output, found = self._answer()
        assert found == "ready", output
        self.port.settimeout(_ANSWER_SECONDS)

    def _answer(self) -> tuple[str, str]:
        received = b""
        while not (received.endswith(b"\n") and _STATUS in received):
            try:
                data = self.port.recv(1 << 16)
            except TimeoutError:
                data = b""
            assert data, f"no answer: {received!r}\n{self.console.read_text(errors='replace')}"
            received += data
        output, _, found = received.decode(errors="replace").rpartition(_STATUS.decode())
        return output, found.strip()


@contextmanager
def linux(stage: Stage, devices: str, more: str = "") -> Iterator[Linux]:
    """Boot the guest, with KVM where the daemon's user may open it; the stage ends it."""
    made = ensure_linux()
    initramfs(made, stage.folder / "initramfs")
    for file in (made / "vmlinuz", stage.folder / "initramfs"):
        shutil.copy(file, stage.images)
    kvm = stage.lab.virsh("domcapabilities", "--virttype", "kvm").returncode == 0
    xml = stage.folder / f"{GUEST_NAME}.xml"
    xml.write_text(definition(stage, devices, more, kvm=kvm))
    stage.virsh("define", str(xml))
    stage.virsh("start", GUEST_NAME)
    with closing(socket.socket(socket.AF_UNIX)) as port:
        path = stage.images / "port"
        wait_until(lambda: os.path.exists(path), "the guest's serial port")
        port.connect(str(path))
        running = Linux(port, stage.images / "console")
        running.wait()
        yield running
