"""A private, real libvirtd with one running guest, in a folder of its own.

It is a session daemon (`qemu:///session`) with every XDG folder inside the lab's, so it
neither sees nor touches the host's libvirt. Root always gets libvirt's system daemon:
root's lab therefore runs it as an unprivileged user.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from virtrace.errors import LabError
from virtrace.lab import debug_build, processes
from virtrace.lab.guest import (
    GUEST,
    LAST_SECTOR_DISK,
    SECTOR,
    Guest,
    domain_xml,
    last_sector_write,
    make_disks,
)

ROOTS_DAEMON_USER = "nobody"

# Says that everything in the folder is the lab's, and so may be removed.
MARKER = "virtrace-lab"

# libvirtd stands in sbin, which a user's PATH may lack.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PACKAGES = {
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
}
QEMU_DRIVER = "libvirt/connection-driver/libvirt_driver_qemu.so"
QEMU_DRIVER_PACKAGE = "libvirt-daemon-driver-qemu"

# sun_path holds 108 bytes with its NUL; this is the longest socket below a lab's folder.
SOCKET_PATH_MAX = 107
LONGEST_SOCKET = f"config/libvirt/qemu/lib/domain-9999-{GUEST.name}/monitor.sock"

# Seconds. The first answer waits for libvirtd to probe QEMU.
ANSWER_TIMEOUT = 60.0
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
        progress: Callable[[str], None] = _silent,
    ) -> None:
        """debug_info: run libvirt 9.0.0 with debug info, built on first use.

        progress: called with one line before each step.
        """
        absolute = Path(os.path.abspath(folder))
        # Not the last part: a symlink there is refused.
        self.folder = absolute.parent.resolve() / absolute.name
        self.debug_info = debug_info
        self._progress = progress
        self._root = os.geteuid() == 0
        self._uid, self._gid = os.geteuid(), os.getegid()
        if self._root:
            nobody = pwd.getpwnam(ROOTS_DAEMON_USER)
            self._uid, self._gid = nobody.pw_uid, nobody.pw_gid

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
        return self.folder / "cache" / "libvirt" / "libvirtd.log"

    @property
    def uri(self) -> str:
        """For `virsh -c`, from any user that may reach the socket: the lab's own, and root."""
        socket = self.folder / "run" / "libvirt" / "libvirt-sock"
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
        return processes.of_lab(self.folder, self._uid)

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
                stdin=subprocess.DEVNULL,
                timeout=ANSWER_TIMEOUT,
                env=dict(os.environ, LC_ALL="C"),
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"the lab's libvirtd did not answer `virsh {' '.join(args)}` "
                f"within {ANSWER_TIMEOUT:.0f} s{self._log_tail()}",
                f"virtrace lab down{self._dir_option()}, then up again",
            ) from error

    def qmp(self, command: dict[str, Any]) -> dict[str, Any]:
        """Ask the guest's QEMU directly; the whole reply, errors of QMP included."""
        reply: dict[str, Any] = json.loads(
            self._virsh_checked("qemu-monitor-command", GUEST.name, json.dumps(command))
        )
        return reply

    def up(self) -> bool:
        """Bring the lab up; False if it was up already, and then nothing is touched.

        LabError where it cannot be, and then nothing is left behind.
        """
        self._require_packages()
        self._require_short_path()
        libvirtd = self._libvirtd()
        with self._locked(create=True):
            pid = self._daemon()
            if pid is not None:
                if processes.executable(pid) != os.path.realpath(libvirtd):
                    raise LabError(
                        f"the lab in {self.folder} is up with another build of libvirtd, "
                        f"{processes.executable(pid)}",
                        f"virtrace lab down{self._dir_option()}, then up again",
                    )
                return False
            if self.processes:
                self._progress("removing what a lab that crashed left here")
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
            return processes.end_all(self.folder, self._uid) > 0
        with self._locked(create=False):
            self._remove()
        return True

    def _dir_option(self) -> str:
        return "" if self.folder == default_folder() else f" --dir {self.folder}"

    def _daemon(self) -> int | None:
        try:
            pid = int((self.folder / "run" / "libvirtd.pid").read_text())
        except (OSError, ValueError):
            return None
        ours = processes.is_of_lab(pid, self.folder, self._uid)
        return pid if ours and processes.executable(pid).endswith("/libvirtd") else None

    def _libvirtd(self) -> str:
        if self.debug_info:
            return str(debug_build.ensure_built(self._progress) / debug_build.DAEMON)
        found = shutil.which("libvirtd", path=SEARCH_PATH)
        assert found is not None, "looked for by _require_packages"
        return found

    def _require_packages(self) -> None:
        missing = [
            (program, package)
            for program, package in PACKAGES.items()
            if not shutil.which(program, path=SEARCH_PATH)
        ]
        # Debian keeps it below the architecture's folder, others in /usr/lib64.
        if not (glob.glob(f"/usr/lib*/{QEMU_DRIVER}") or glob.glob(f"/usr/lib/*/{QEMU_DRIVER}")):
            missing.append((os.path.basename(QEMU_DRIVER), QEMU_DRIVER_PACKAGE))
        if missing:
            packages = " ".join(package for _, package in missing)
            raise LabError(
                f"the lab needs what is not installed: {', '.join(name for name, _ in missing)}",
                f"apt-get install --no-install-recommends {packages}",
            )

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
                    self.folder.mkdir(mode=0o700)
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

    def _remove(self, keep_folder: bool = False) -> None:
        processes.end_all(self.folder, self._uid)
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
        self._progress(f"making the disks of {GUEST.name} in {self.folder}")
        try:
            self._make_folders()
            make_disks(self.folder / "disks", self._uid, self._gid)
        except OSError as error:
            raise LabError(
                f"the lab's folder {self.folder} cannot be filled: {error.strerror}",
                "give a folder on a file system with 100 MB free with --dir",
            ) from error
        self._progress(f"starting {libvirtd}" + (f" as {ROOTS_DAEMON_USER}" if self._root else ""))
        self._start_daemon(libvirtd)
        self._virsh_checked("list")
        emulator = shutil.which("qemu-system-x86_64", path=SEARCH_PATH)
        assert emulator is not None, "looked for by _require_packages"
        # The daemon's own word on whether its user's QEMU gets KVM.
        kvm = self.virsh("domcapabilities", "--virttype", "kvm").returncode == 0
        self._progress(
            f"starting {GUEST.name} with {'KVM' if kvm else 'TCG, as KVM does not open'}"
        )
        definition = self.folder / "disks" / f"{GUEST.name}.xml"
        definition.write_text(domain_xml(definition.parent, emulator, kvm), encoding="utf-8")
        self._virsh_checked("define", str(definition))
        self._virsh_checked("start", GUEST.name)
        self._await_firmware()
        self._progress(f"writing the last sector of {LAST_SECTOR_DISK} through QEMU")
        self._virsh_checked("qemu-monitor-command", GUEST.name, "--hmp", last_sector_write())
        # QEMU says how it went in its own log only; the file tells it too.
        with self.disk_file(LAST_SECTOR_DISK).open("rb") as image:
            image.seek(-SECTOR, os.SEEK_END)
            if not any(image.read(SECTOR)):
                raise LabError(
                    f"QEMU could not write the last sector of {LAST_SECTOR_DISK}",
                    "see that the folder's file system has space",
                )

    def _make_folders(self) -> None:
        (self.folder / MARKER).write_text(
            "A virtrace lab. `virtrace lab down --dir` with this folder removes it.\n"
        )
        # The daemon's user passes through; what it may write, it owns.
        self.folder.chmod(0o711 if self._root else 0o700)
        disks = self.folder / "disks"
        disks.mkdir(mode=0o755)
        settings = self.folder / "config" / "libvirt"
        settings.mkdir(parents=True)
        # Without virtlogd, which would be one more daemon.
        (settings / "qemu.conf").write_text('stdio_handler = "file"\n')
        for name in ("run", "cache", "data"):
            (self.folder / name).mkdir(mode=0o700)
        for path in (
            settings,
            settings.parent,
            *(self.folder / n for n in ("run", "cache", "data")),
        ):
            os.chown(path, self._uid, self._gid)

    def _start_daemon(self, libvirtd: str) -> None:
        environment = {
            "PATH": SEARCH_PATH,
            "HOME": str(self.folder),
            "LC_ALL": "C",
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_DATA_HOME": str(self.folder / "data"),
        }
        if self.debug_info:
            build = os.path.dirname(libvirtd)
            environment["LIBVIRT_DRIVER_DIR"] = build
            environment["LIBVIRT_STORAGE_FILE_DIR"] = build
        failure = self._run_as_daemon_user(["test", "-x", str(self.folder)], environment)
        if failure is not None:
            raise LabError(
                f"{ROOTS_DAEMON_USER}, who runs root's lab, cannot reach {self.folder}",
                "give a folder with --dir whose parents everybody may pass, as in /var/tmp",
            )
        pid_file = str(self.folder / "run" / "libvirtd.pid")
        failure = self._run_as_daemon_user([libvirtd, "-d", "-p", pid_file], environment)
        if failure is not None:
            raise LabError(
                f"the lab's libvirtd did not start: {failure.strip()}{self._log_tail()}",
                "run `virtrace doctor`, or send this with a bug report",
            )

    def _run_as_daemon_user(
        self, command: Sequence[str], environment: dict[str, str]
    ) -> str | None:
        """None when it worked, else what it said."""
        as_user: dict[str, Any] = {}
        if self._root:
            as_user = {"user": self._uid, "group": self._gid, "extra_groups": _kvm_groups()}
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd="/",
                umask=0o077,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=ANSWER_TIMEOUT,
                **as_user,
            )
        except subprocess.TimeoutExpired:
            return f"nothing within {ANSWER_TIMEOUT:.0f} s"
        return None if done.returncode == 0 else done.stdout or f"exit status {done.returncode}"

    def _await_firmware(self) -> None:
        """Until the firmware has read the boot disk: once, and then the counters stand still."""
        disk = GUEST.disks[0].target
        deadline = time.monotonic() + FIRMWARE_TIMEOUT
        while f"{disk} rd_req 0\n" in self._virsh_checked("domblkstat", GUEST.name, disk):
            if time.monotonic() > deadline:
                raise LabError(
                    f"{GUEST.name} did not read its boot disk within {FIRMWARE_TIMEOUT:.0f} s",
                    "try again when the machine is less busy",
                )
            time.sleep(0.02)

    def _virsh_checked(self, *args: str) -> str:
        done = self.virsh(*args)
        if done.returncode != 0:
            raise LabError(
                f"`virsh {' '.join(args)}` failed in the lab: "
                f"{done.stderr.strip()}{self._log_tail()}",
                f"virtrace lab down{self._dir_option()}, then up again",
            )
        return done.stdout

    def _log_tail(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
        except OSError:
            return ""
        return "\n  the daemon's log ends with:" + "".join(f"\n    {line}" for line in lines)


def _kvm_groups() -> list[int]:
    """The group that opens /dev/kvm, where there is one that is safe to hand on."""
    try:
        kvm = os.stat("/dev/kvm")
    except OSError:
        return []
    return [kvm.st_gid] if kvm.st_gid != 0 and kvm.st_mode & 0o060 == 0o060 else []
