"""What a scenario sets up in a lab: a second guest with a disk of its own, and what serves it."""

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
    """Each method is one step, and says to `progress` what it does, as a command where it is one.

    All it makes stands in one folder of the lab, and ends with `clear` or with the lab. What root
    makes there, the daemon's user cannot put another file in the place of: that one writes only
    in `images`.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.folder = lab.folder / "stage"
        self.images = self.folder / "images"
        for folder in (self.folder, self.images):
            folder.mkdir(mode=0o755)
        self._give_away(self.images)

    def image(self, name: str, size: int, format: str = "raw") -> Path:
        """A new image, without anything allocated that its format can do without."""
        file = self.images / name
        self.qemu_img("create", "-q", "-f", format, str(file), str(size))
        return file

    def qemu_img(self, *args: str) -> None:
        self._run("qemu-img", *args)

    def block_device(self, size: int) -> Path:
        """A loop device, under a node of its own that the daemon's user may open."""
        if os.geteuid() != 0:
            raise LabError(
                "this scenario makes a loop device, which takes root", "run this as root"
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
        """Serve a raw file over NBD; the socket."""
        socket = self.images / "nbd.sock"
        serving = ("--fork", "--persistent", "-f", "raw", f"--socket={socket}")
        self._run("qemu-nbd", *serving, str(file))
        return socket

    def start(self, disk: str, more: str = "") -> None:
        """Define the guest with a disk (as of disk_xml) and start it. more: as of domain_xml."""
        self.lab.define(GUEST_NAME, self.folder / f"{GUEST_NAME}.xml", disk, more)
        self.virsh("start", GUEST_NAME)

    def virsh(self, *args: str) -> None:
        self._say("virsh", *args)
        self.lab.virsh_checked(*args)

    def write(self, offset: int, length: int, raw: Path | None = None) -> None:
        """raw: what is to hold it at the same offset then."""
        self.lab.progress(f"QEMU writes {length} bytes at {offset} of {TARGET}")
        self.lab.write(GUEST_NAME, 0, offset, length, raw)

    def discard(self, offset: int, length: int) -> None:
        self.lab.progress(f"QEMU discards {length} bytes at {offset} of {TARGET}")
        self.lab.qemu_io(GUEST_NAME, 0, f"discard {offset} {length}")

    def clear(self) -> None:
        """End and remove all of it; the lab stands as it did before."""
        self.lab.virsh("destroy", GUEST_NAME)
        self.lab.virsh("undefine", GUEST_NAME, "--snapshots-metadata")
        processes.end_all(self.folder, self.lab.system.uid)
        loop.detach_all(self.folder)
        shutil.rmtree(self.folder)

    def _give_away(self, path: Path) -> None:
        os.chown(path, self.lab.system.uid, self.lab.system.gid)

    def _run(self, *command: str) -> None:
        self._say(*command)
        # By this folder in its environment `clear` knows what goes on running.
        self.lab.system.run(*command, as_daemon=True, TMPDIR=str(self.images))

    def _say(self, *command: str) -> None:
        self.lab.progress(shlex.join(command).replace(f"{self.folder}/", ""))
