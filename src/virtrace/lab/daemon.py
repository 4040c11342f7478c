"""A private, real libvirtd with one running guest, in a folder of its own.

It is a session daemon (`qemu:///session`) with every XDG folder inside the lab's, so it
neither sees nor touches the host's libvirt. Root always gets libvirt's system daemon:
root's lab therefore runs it as an unprivileged user.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_DNS, uuid5

from virtrace.errors import LabError
from virtrace.lab import debug_build, loop, processes
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
from virtrace.lab.system import ANSWER_TIMEOUT, ROOTS_DAEMON_USER, System

# Says that everything in the folder is the lab's, and so may be removed.
MARKER = "virtrace-lab"

# sun_path holds 108 bytes with its NUL; this is the longest socket below a lab's folder.
SOCKET_PATH_MAX = 107
LONGEST_SOCKET = f"config/libvirt/qemu/lib/domain-9999-{GUEST.name}/monitor.sock"

# Seconds.
FIRMWARE_TIMEOUT = 60.0


def default_folder() -> Path:
    """One fixed folder per user, short enough for the sockets below it."""
    return Path(f"/var/tmp/virtrace-lab-{os.geteuid()}")


def _silent(_line: str) -> None:
    pass


class Lab:
    """A lab in one folder; any number can be up at once, each in its own.

    The object holds no state of the lab: another process with the same folder sees,
    uses and ends the same lab. As a context manager it is up inside and down after.
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
        """debug_info: run libvirt 9.0.0 with debug info, built on first use.

        release: run libvirt and QEMU of this Debian release, by its code name, in a root that is
        made on first use; root only. progress: called with one line before each step.
        daemon: the build with debug info has virtqemud too. hostname: the daemon takes itself to
        be on a host of this name, which another lab's guests can migrate to; root only.
        """
        absolute = Path(os.path.abspath(folder))
        # Not the last part: a symlink there is refused.
        self.folder = absolute.parent.resolve() / absolute.name
        self.debug_info = debug_info
        self.progress = progress
        self.release = release
        self.daemon = daemon
        self.system = System(self.folder, hostname=hostname)

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def guests(self) -> tuple[Guest, ...]:
        return (GUEST,)

    def disk_file(self, target: str) -> Path:
        return GUEST.disk(target).file(self.folder / "disks")

    @property
    def log(self) -> Path:
        """The daemon's own log."""
        return self.folder / "cache" / "libvirt" / f"{self.daemon}.log"

    @property
    def uri(self) -> str:
        """For `virsh -c`, from any user that may reach the socket: the lab's own, and root."""
        service = "libvirt" if self.daemon == debug_build.DAEMON else self.daemon
        socket = self.folder / "run" / "libvirt" / f"{service}-sock"
        return f"qemu+unix:///session?socket={quote(str(socket))}"

    @property
    def pid(self) -> int:
        """The daemon's process id; LabError when the lab is not up."""
        pid = self._daemon()
        if pid is None:
            raise LabError(
                f"no lab of this user is up in {self.folder}",
                f"virtrace lab up{self._dir_option()}",
            )
        return pid

    @property
    def is_up(self) -> bool:
        """The daemon runs. It can be gone while its guest still runs: see `processes`."""
        return self._daemon() is not None

    @property
    def processes(self) -> list[int]:
        """Every living process of this lab: the daemon, QEMU."""
        return processes.of_lab(self.folder, self.system.uid)

    def virsh_command(self, *args: str) -> list[str]:
        return ["virsh", "-c", self.uri, *args]

    def virsh(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run virsh in the C locale; its exit status is the caller's to look at.

        LabError when it has not ended within ANSWER_TIMEOUT.
        """
        try:
            return subprocess.run(
                self.virsh_command(*args),
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=ANSWER_TIMEOUT,
                env=dict(os.environ, LC_ALL="C"),
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"the lab's {self.daemon} did not answer `virsh {' '.join(args)}` "
                f"within {ANSWER_TIMEOUT:.0f} s",
                f"virtrace lab down{self._dir_option()}, then up again",
                *self._log_tail(),
            ) from error

    def virsh_checked(self, *args: str) -> str:
        """What virsh printed; LabError when it fails."""
        done = self.virsh(*args)
        if done.returncode != 0:
            raise LabError(
                f"`virsh {' '.join(args)}` failed in the lab",
                f"virtrace lab down{self._dir_option()}, then up again",
                *done.stderr.strip().splitlines(),
                *self._log_tail(),
            )
        return done.stdout

    @property
    def libvirt_version(self) -> tuple[int, ...]:
        """The running daemon's own word."""
        printed = self.virsh_checked("version", "--daemon")
        version = re.search(r"^Running against daemon: ([\d.]+)$", printed, re.M)
        assert version is not None, printed
        return tuple(int(part) for part in version[1].split("."))

    def qmp(self, command: dict[str, Any], guest: str = GUEST.name) -> dict[str, Any]:
        """Ask a guest's QEMU directly; the whole reply, errors of QMP included."""
        reply: dict[str, Any] = json.loads(
            self.virsh_checked("qemu-monitor-command", guest, json.dumps(command))
        )
        return reply

    @contextmanager
    def stalled(self, guest: str = GUEST.name) -> Iterator[None]:
        """While this lasts a guest's QEMU stands still (SIGSTOP): it takes commands, answers none.

        LabError where it does not run.
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
        """Have QEMU write on a guest's virtio disk, counted from 0.

        raw: the file or device that is to hold it at the same offset; LabError where it does not.
        """
        self.qemu_io(guest, disk, f"write -P 5 {offset} {length}")
        # Until then a file system may count blocks that it has yet to give away.
        self.qemu_io(guest, disk, "flush")
        # QEMU says how it went in its own log only; the file tells it too.
        if raw is None:
            return
        with raw.open("rb") as image:
            image.seek(offset)
            if image.read(length) != b"\5" * length:
                raise LabError(
                    f"QEMU could not write on {raw}", "see that the folder's file system has space"
                )

    def qemu_io(self, guest: str, disk: int, command: str) -> None:
        """Have QEMU itself read, write or discard on a guest's virtio disk, counted from 0."""
        monitor = f'qemu-io -d {backend(disk)} "{command}"'
        self.virsh_checked("qemu-monitor-command", guest, "--hmp", monitor)

    def define(self, name: str, definition: Path, disks: str, more: str = "") -> None:
        """Define a guest, with KVM where the daemon's user gets it. disks, more: as domain_xml."""
        # The daemon's own word on it.
        kvm = self.virsh("domcapabilities", "--virttype", "kvm").returncode == 0
        self.progress(f"defining {name} with {'KVM' if kvm else 'TCG, as KVM does not open'}")
        xml = domain_xml(name, self.system.emulator, kvm, disks, more)
        definition.write_text(xml, encoding="utf-8")
        self.virsh_checked("define", str(definition))

    def up(self) -> bool:
        """Bring the lab up; False if it was up already, and then nothing is touched.

        LabError where it cannot be, and then nothing is left behind.
        """
        if self.release:
            root = ensure_root(self.release, self.progress)
            self.system = replace(self.system, root=root)
        self.system.require_packages()
        self._require_short_path()
        libvirtd = self._libvirtd()
        with self._locked(create=True):
            pid = self._daemon()
            if pid is not None:
                if processes.executable(pid) != self.system.outside(libvirtd):
                    raise LabError(
                        f"the lab in {self.folder} is up with another build of {self.daemon}, "
                        f"{processes.executable(pid)}",
                        f"virtrace lab down{self._dir_option()}, then up again",
                    )
                return False
            if self.processes:
                self.progress("removing what a lab that crashed left here")
            self._remove(keep_folder=True)
            try:
                self._start(libvirtd)
            except BaseException:
                self._remove()
                raise
        return True

    def down(self) -> bool:
        """End the lab's processes and remove its folder; False if there was nothing."""
        if not os.path.lexists(self.folder):
            # What a lab leaves running after its folder was removed by hand is still its own.
            return self._end() > 0
        with self._locked(create=False):
            self._remove()
        return True

    def _dir_option(self) -> str:
        return "" if self.folder == default_folder() else f" --dir {shlex.quote(str(self.folder))}"

    def _daemon(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        ours = processes.is_of_lab(pid, self.folder, self.system.uid)
        return pid if ours and processes.executable(pid).endswith(f"/{self.daemon}") else None

    @property
    def _pid_file(self) -> Path:
        return self.folder / "run" / f"{self.daemon}.pid"

    def _libvirtd(self) -> str:
        if self.debug_info:
            return os.path.realpath(debug_build.ensure_built(self.progress) / self.daemon)
        return self.system.libvirtd

    def _require_short_path(self) -> None:
        longest = self.folder / LONGEST_SOCKET
        excess = len(os.fsencode(longest)) - SOCKET_PATH_MAX
        if excess > 0:
            raise LabError(
                f"the lab's folder {self.folder} is {excess} bytes too long: the paths of "
                f"its sockets may have {SOCKET_PATH_MAX}",
                "give a shorter folder with --dir",
            )

    @contextmanager
    def _locked(self, create: bool) -> Iterator[None]:
        """Hold the folder against a second up or down; it is checked to be ours to fill."""
        try:
            if create:
                with suppress(FileExistsError):
                    self.folder.mkdir(mode=0o700, parents=True)
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise LabError(
                f"the lab's folder {self.folder} cannot be used: {error.strerror}"
                + (" (a symlink is refused)" if self.folder.is_symlink() else ""),
                "give another folder with --dir",
            ) from error
        try:
            if os.fstat(handle).st_uid != os.geteuid():
                raise LabError(
                    f"the lab's folder {self.folder} belongs to somebody else",
                    "give another folder with --dir",
                )
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.path.samestat(os.fstat(handle), os.lstat(self.folder))
            except (BlockingIOError, FileNotFoundError):
                same = False
            if not same:
                raise LabError(
                    f"another virtrace is setting up or ending the lab in {self.folder}",
                    "wait until it is done, or give another folder with --dir",
                )
            if os.listdir(handle) and not (self.folder / MARKER).exists():
                raise LabError(
                    f"{self.folder} holds files that are no lab's",
                    "give a new or empty folder with --dir",
                )
            yield
        finally:
            os.close(handle)

    def _end(self) -> int:
        """End processes, then loop devices, which nobody has open any more; how many of both."""
        ended = processes.end_all(self.folder, self.system.uid)
        return ended + loop.detach_all(self.folder)

    def _remove(self, keep_folder: bool = False) -> None:
        self._end()
        try:
            for entry in os.scandir(self.folder):
                # The marker goes last, so that a removal cut short can be taken up again.
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.name != MARKER:
                    os.unlink(entry.path)
            if not keep_folder:
                shutil.rmtree(self.folder)
        except OSError as error:
            raise LabError(
                f"the lab's folder {self.folder} cannot be removed: {error}",
                f"see who uses it, then run `virtrace lab down{self._dir_option()}` again",
            ) from error

    def _start(self, libvirtd: str) -> None:
        self.progress(f"making the disks of {GUEST.name} in {self.folder}")
        try:
            self._make_folders()
            make_disks(self.folder / "disks", self.system.run, self.system.uid, self.system.gid)
        except OSError as error:
            raise LabError(
                f"the lab's folder {self.folder} cannot be filled: {error.strerror}",
                "give a folder on a file system with 100 MB free with --dir",
            ) from error
        as_whom = f" as {ROOTS_DAEMON_USER}" if os.geteuid() == 0 else ""
        self.progress(f"starting {self.system.outside(libvirtd)}{as_whom}")
        self._start_daemon(libvirtd)
        self.virsh_checked("list")
        disks = self.folder / "disks"
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

    def _make_folders(self) -> None:
        (self.folder / MARKER).write_text(
            "A virtrace lab. `virtrace lab down --dir` with this folder removes it.\n"
        )
        # The daemon's user passes through; what it may write, it owns.
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        disks = self.folder / "disks"
        disks.mkdir(mode=0o755)
        settings = self.folder / "config" / "libvirt"
        settings.mkdir(parents=True)
        # Without virtlogd, which would be one more daemon.
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n')
        if self.system.hostname:
            uuid = uuid5(NAMESPACE_DNS, self.system.hostname)
            (settings / "libvirtd.conf").write_text(f'host_uuid = "{uuid}"\n')
        for name in ("run", "cache", "data"):
            (self.folder / name).mkdir(mode=0o700)
        for path in (
            settings,
            settings.parent,
            *(self.folder / n for n in ("run", "cache", "data")),
        ):
            os.chown(path, self.system.uid, self.system.gid)

    def _start_daemon(self, libvirtd: str) -> None:
        variables = {}
        if self.debug_info:
            build = os.path.dirname(libvirtd)
            places = ("DRIVER", "STORAGE_BACKEND", "STORAGE_FILE")
            variables = {f"LIBVIRT_{place}_DIR": build for place in places}
        if self.system.attempt("test", "-x", str(self.folder), as_daemon=True).returncode != 0:
            raise LabError(
                f"{ROOTS_DAEMON_USER}, who runs root's lab, cannot reach {self.folder}",
                "give a folder with --dir whose parents everybody may pass, as in /var/tmp",
            )
        started = self.system.attempt(
            *(libvirtd, "-d", "-p", str(self._pid_file)), as_daemon=True, **variables
        )
        if started.returncode != 0:
            raise LabError(
                f"the lab's {self.daemon} did not start",
                "run `virtrace doctor`, or send this with a bug report",
                *started.stdout.strip().splitlines(),
                *self._log_tail(),
            )

    def _await_firmware(self) -> None:
        """Until the firmware has read the boot disk: once, and then the counters stand still."""
        disk = GUEST.disks[0].target
        deadline = time.monotonic() + FIRMWARE_TIMEOUT
        while f"{disk} rd_req 0\n" in self.virsh_checked("domblkstat", GUEST.name, disk):
            if time.monotonic() > deadline:
                raise LabError(
                    f"{GUEST.name} did not read its boot disk within {FIRMWARE_TIMEOUT:.0f} s",
                    "try again when the machine is less busy",
                )
            time.sleep(0.02)

    def _log_tail(self) -> list[str]:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
        except OSError:
            return []
        return ["the daemon's log ends with:", *(f"  {line}" for line in lines)]
