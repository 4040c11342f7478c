"""A lab: a private, real libvirt daemon with one running guest, in a folder of its own.

The daemon is a session daemon (`qemu:///session`), so that it neither sees nor touches the host's
libvirt. For root, libvirt always starts its system daemon: root's lab therefore runs as an
unprivileged user.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from virtrace.errors import LabError
from virtrace.lab import debug_build, processes
from virtrace.lab.folder import (
    MARKER,
    dir_option,
    end_all,
    locked,
    remove_all,
    require_short_path,
)
from virtrace.lab.guest import (
    GUEST,
    LAST_SECTOR_DISK,
    SECTOR,
    Guest,
    backend,
    domain_xml,
    guest_disks,
    make_disks,
)
from virtrace.lab.roots import ensure_root
from virtrace.lab.service import PrivateDaemon
from virtrace.lab.system import System

# Seconds.
FIRMWARE_TIMEOUT = 60.0


def _silent(_line: str) -> None:
    pass


class Lab(PrivateDaemon):
    """A daemon and its guest in one folder; any number of labs can be up, each in its own.

    As a context manager it is up inside and down after.
    """

    def __init__(
        self,
        folder: Path,
        debug_info: bool = False,
        release: str | None = None,
        progress: Callable[[str], None] = _silent,
        daemon: str = debug_build.DAEMON,
        hostname: str | None = None,
    ) -> None:
        """Describe a lab; nothing is started.

        debug_info: run libvirt 9.0.0 with debug info, built on first use
        release: code name of a Debian release whose libvirt and QEMU run, in a root that is made
            on first use; root only
        progress: called with one line before each step
        daemon: libvirtd, or debug_build.QEMU_DAEMON
        hostname: what the daemon takes for the host's name, so that guests of another lab can
            migrate to it; root only
        """
        absolute = Path(os.path.abspath(folder))
        # All but the last part: a symlink there is refused.
        resolved = absolute.parent.resolve() / absolute.name
        super().__init__(
            resolved, System(resolved, hostname=hostname), daemon, debug_info, progress
        )
        self.release = release

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def guests(self) -> tuple[Guest, ...]:
        return (GUEST,)

    def disk_file(self, target: str) -> Path:
        return GUEST.disk(target).file(self.folder / "disks")

    @property
    def processes(self) -> list[int]:
        """All living processes of this lab: daemons and QEMU."""
        return processes.of_lab(self.folder, self.system.uid)

    def qmp(self, command: dict[str, Any], guest: str = GUEST.name) -> dict[str, Any]:
        """Send a command to a guest's QEMU and return its whole reply, also an error."""
        reply: dict[str, Any] = json.loads(
            self.virsh_checked("qemu-monitor-command", guest, json.dumps(command))
        )
        return reply

    @contextmanager
    def stalled(self, guest: str = GUEST.name) -> Iterator[None]:
        """Stop a guest's QEMU (SIGSTOP) meanwhile: it takes commands and answers none.

        Raises LabError if the guest does not run.
        """
        named = f"guest={guest},".encode()
        found = [pid for pid in self.processes if named in processes.command_line(pid)]
        if len(found) != 1:
            raise LabError(f"{guest} does not run in the lab", f"start {guest} first")
        os.kill(found[0], signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(found[0], signal.SIGCONT)

    def write(self, guest: str, disk: int, offset: int, length: int, raw: Path | None) -> None:
        """Let QEMU write to a guest's virtio disk, counted from 0.

        raw: the file or device that then holds the same bytes at the same offset, if any

        Raises:
            LabError: it does not hold them
        """
        self.qemu_io(guest, disk, f"write -P 5 {offset} {length}")
        # Before a flush a file system may count blocks that it has not allocated yet.
        self.qemu_io(guest, disk, "flush")
        # QEMU reports failures in its own log only; the file shows them too.
        if raw is None:
            return
        with raw.open("rb") as image:
            image.seek(offset)
            if image.read(length) != b"\5" * length:
                raise LabError(
                    f"QEMU could not write on {raw}", "see that the folder's file system has space"
                )

    def qemu_io(self, guest: str, disk: int, command: str) -> None:
        """Let QEMU read, write or discard on a guest's virtio disk, counted from 0."""
        monitor = f'qemu-io -d {backend(disk)} "{command}"'
        self.virsh_checked("qemu-monitor-command", guest, "--hmp", monitor)

    def define(self, name: str, definition: Path, disks: str, more: str = "") -> None:
        """Define a guest, with KVM where the daemon's user may open it.

        definition: file to write the XML to; disks, more: as for domain_xml
        """
        kvm = self.virsh("domcapabilities", "--virttype", "kvm").returncode == 0
        self.progress(f"defining {name} with {'KVM' if kvm else 'TCG, as KVM does not open'}")
        xml = domain_xml(name, self.system.emulator, kvm, disks, more)
        definition.write_text(xml, encoding="utf-8")
        self.virsh_checked("define", str(definition))

    def up(self) -> bool:
        """Bring the lab up; False if it was up already, and then nothing is touched.

        Raises:
            LabError: it cannot be brought up, and nothing is left behind
        """
        if self.release:
            root = ensure_root(self.release, self.progress)
            self.system = replace(self.system, root=root)
        self.system.require_packages()
        require_short_path(self.folder)
        program = self.program()
        with locked(self.folder, create=True):
            pid = self.running_pid()
            if pid is not None:
                if processes.executable(pid) != self.system.outside(program):
                    raise LabError(
                        f"the lab in {self.folder} is up with another build of {self.daemon}, "
                        f"{processes.executable(pid)}",
                        f"virtrace lab down{dir_option(self.folder)}, then up again",
                    )
                return False
            if self.processes:
                self.progress("removing what a lab that crashed left here")
            remove_all(self.folder, self.system.uid, keep_folder=True)
            try:
                self._start()
            except BaseException:
                remove_all(self.folder, self.system.uid)
                raise
        return True

    def down(self) -> bool:
        """End the lab's processes and remove its folder; False if there was nothing."""
        if not os.path.lexists(self.folder):
            # Its processes can outlive a folder that was removed by hand.
            return end_all(self.folder, self.system.uid) > 0
        with locked(self.folder, create=False):
            remove_all(self.folder, self.system.uid)
        return True

    def _start(self) -> None:
        self.progress(f"making the disks of {GUEST.name} in {self.folder}")
        disks = self.folder / "disks"
        try:
            self._make_folders(disks)
            make_disks(disks, self.system.run, self.system.uid, self.system.gid)
        except OSError as error:
            raise LabError(
                f"the lab's folder {self.folder} cannot be filled: {error.strerror}",
                "give a folder on a file system with 100 MB free with --dir",
            ) from error
        self.launch()
        self.define(GUEST.name, disks / f"{GUEST.name}.xml", guest_disks(disks))
        self.progress(f"starting {GUEST.name}")
        self.virsh_checked("start", GUEST.name)
        self._await_firmware()
        self.progress(f"writing the last sector of {LAST_SECTOR_DISK} through QEMU")
        disk = GUEST.disk(LAST_SECTOR_DISK)
        self.write(
            GUEST.name,
            GUEST.disks.index(disk),
            disk.capacity - SECTOR,
            SECTOR,
            self.disk_file(LAST_SECTOR_DISK),
        )

    def _make_folders(self, disks: Path) -> None:
        (self.folder / MARKER).write_text(
            "A virtrace lab. `virtrace lab down --dir` with this folder removes it.\n"
        )
        # The daemon's user may pass through it, and owns what it may write to.
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        disks.mkdir(mode=0o755)
        settings = self.folder / "config" / "libvirt"
        settings.mkdir(parents=True)
        # Without virtlogd, which would be one more daemon.
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n')
        if self.system.hostname:
            uuid = uuid5(NAMESPACE_DNS, self.system.hostname)
            (settings / "libvirtd.conf").write_text(f'host_uuid = "{uuid}"\n')
        written = [self.folder / name for name in ("run", "cache", "data")]
        for path in written:
            path.mkdir(mode=0o700)
        for path in (settings, settings.parent, *written):
            os.chown(path, self.system.uid, self.system.gid)

    def _await_firmware(self) -> None:
        """Wait until the firmware has read the boot disk, once; then no counter changes."""
        disk = GUEST.disks[0].target
        deadline = time.monotonic() + FIRMWARE_TIMEOUT
        while f"{disk} rd_req 0\n" in self.virsh_checked("domblkstat", GUEST.name, disk):
            if time.monotonic() > deadline:
                raise LabError(
                    f"{GUEST.name} did not read its boot disk within {FIRMWARE_TIMEOUT:.0f} s",
                    "try again when the machine is less busy",
                )
            time.sleep(0.02)
