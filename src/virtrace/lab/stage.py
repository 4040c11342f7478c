"""The second guest of a lab, with a disk for one scenario."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

from virtrace.errors import LabError
from virtrace.lab import loop, processes
from virtrace.lab.daemon import Lab

# Domain and disk of the second guest.
GUEST_NAME, TARGET = "vm2", "vda"


class Stage:
    """Steps that set up a second guest. Each is reported to `progress`, as a command if it is one.

    All files are in one folder of the lab, and are removed by `clear` or with the lab. The daemon's
    user can write only in `images`, so that it cannot replace a file that root makes.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "stage"
        self.images = self.folder / "images"
        for folder in (self.folder, self.images):
            folder.mkdir(mode=0o755)
        self._give_away(self.images)

    def image(self, name: str, size: int, format: str = "raw") -> Path:
        """Make an image with as little allocated as its format allows."""
        file = self.images / name
        self.qemu_img("create", "-q", "-f", format, str(file), str(size))
        return file

    def qemu_img(self, *args: str) -> None:
        self._run("qemu-img", *args)

    def block_device(self, size: int) -> Path:
        """Make a loop device, and return a device node that the daemon's user may open."""
        if os.geteuid() != 0:
            raise LabError(
                "this scenario makes a loop device, which only root can", "run this as root"
            )
        file = self.folder / "device.raw"
        self._say("truncate", f"--size={size}", str(file))
        with file.open("xb") as image:
            image.truncate(size)
        self._say("losetup", "--find", "--show", str(file))
        device = loop.attach(file)
        node = self.folder / "device"
        number = device.stat().st_rdev
        self._say("mknod", str(node), "b", str(os.major(number)), str(os.minor(number)))
        os.mknod(node, stat.S_IFBLK | 0o600, number)
        self._give_away(node)
        return node

    def serve(self, file: Path) -> Path:
        """Serve a raw file over NBD and return the socket."""
        socket = self.images / "nbd.sock"
        serving = ("--fork", "--persistent", "-f", "raw", f"--socket={socket}")
        self._run("qemu-nbd", *serving, str(file))
        return socket

    def start(self, disk: str, more: str = "") -> None:
        """Define the guest and start it. disk: as from disk_xml; more: as for domain_xml."""
        self.lab.define(GUEST_NAME, self.folder / f"{GUEST_NAME}.xml", disk, more)
        self.virsh("start", GUEST_NAME)

    def virsh(self, *args: str) -> None:
        self._say("virsh", *args)
        self.lab.virsh_checked(*args)

    def write(self, offset: int, length: int, raw: Path | None = None) -> None:
        """Let QEMU write to the disk. raw: as for Lab.write."""
        self.lab.progress(f"QEMU writes {length} bytes at {offset} of {TARGET}")
        self.lab.write(GUEST_NAME, 0, offset, length, raw)

    def discard(self, offset: int, length: int) -> None:
        self.lab.progress(f"QEMU discards {length} bytes at {offset} of {TARGET}")
        self.lab.qemu_io(GUEST_NAME, 0, f"discard {offset} {length}")

    def clear(self) -> None:
        """End and remove everything; the lab is as before."""
        self.lab.virsh("destroy", GUEST_NAME)
        kept = ("--snapshots-metadata", "--checkpoints-metadata")
        self.lab.virsh("undefine", GUEST_NAME, *kept)
        processes.end_all(self.folder, self.lab.system.uid)
        loop.detach_all(self.folder)
        shutil.rmtree(self.folder)

    def _give_away(self, path: Path) -> None:
        os.chown(path, self.lab.system.uid, self.lab.system.gid)

    def _run(self, *command: str) -> None:
        self._say(*command)
        # By this folder in their environment `clear` finds processes that go on running.
        self.lab.system.run(*command, as_daemon=True, TMPDIR=str(self.images))

    def _say(self, *command: str) -> None:
        self.lab.progress(shlex.join(command).replace(f"{self.folder}/", ""))
