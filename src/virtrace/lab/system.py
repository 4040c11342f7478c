"""The programs of a lab, from this host or the root of another release, and their user."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from virtrace.errors import LabError
from virtrace.lab.roots import inside

ROOTS_DAEMON_USER = "nobody"

# libvirtd is in sbin, which a user's PATH may lack.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PACKAGES = {
    "libvirtd": "libvirt-daemon",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
}
QEMU_DRIVER = "libvirt/connection-driver/libvirt_driver_qemu.so"
QEMU_DRIVER_PACKAGE = "libvirt-daemon-driver-qemu"
# Their paths in a root of Debian.
LIBVIRTD, EMULATOR = "/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64"

# Seconds. Before its first answer libvirtd probes QEMU.
ANSWER_TIMEOUT = 60.0


@dataclass(frozen=True)
class System:
    """The programs and the user of a lab.

    folder: the lab's; it has the same path in a root
    root: of another Debian release; None for this host
    hostname: what the daemon takes for the host's name, if not the host's own; root only
    """

    folder: Path
    root: Path | None = None
    hostname: str | None = None

    @property
    def uid(self) -> int:
        """The user who runs the daemon and QEMU: not root, who would get the system daemon."""
        return os.geteuid() or pwd.getpwnam(ROOTS_DAEMON_USER).pw_uid

    @property
    def gid(self) -> int:
        return os.getegid() if os.geteuid() else pwd.getpwnam(ROOTS_DAEMON_USER).pw_gid

    @property
    def libvirtd(self) -> str:
        return LIBVIRTD if self.root else os.path.realpath(_found("libvirtd"))

    @property
    def emulator(self) -> str:
        return EMULATOR if self.root else _found("qemu-system-x86_64")

    def outside(self, path: str) -> str:
        """The path from here of what has this path in the system."""
        return f"{self.root or ''}{path}"

    def require_packages(self) -> None:
        """Raises LabError if a program is not installed. A root needs nothing but virsh here."""
        wanted = {"virsh": PACKAGES["virsh"]} if self.root else PACKAGES
        missing = [
            (program, package)
            for program, package in wanted.items()
            if not shutil.which(program, path=SEARCH_PATH)
        ]
        # In Debian it is below the architecture's folder, elsewhere in /usr/lib64.
        drivers = glob.glob(f"/usr/lib*/{QEMU_DRIVER}") + glob.glob(f"/usr/lib/*/{QEMU_DRIVER}")
        if not drivers and not self.root:
            missing.append((os.path.basename(QEMU_DRIVER), QEMU_DRIVER_PACKAGE))
        if missing:
            packages = " ".join(package for _, package in missing)
            raise LabError(
                f"the lab needs programs that are not installed: "
                f"{', '.join(name for name, _ in missing)}",
                f"apt-get install --no-install-recommends {packages}",
            )

    def attempt(
        self, *command: str, as_daemon: bool = False, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as this user or the daemon's; `stdout` has all output.

        If it has not ended within ANSWER_TIMEOUT, its exit status is that of timeout(1).
        """
        argv = [*(self.become() if as_daemon else []), *command]
        if as_daemon and self.hostname:
            named = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'
            argv = ["unshare", "--uts", "sh", "-c", named, self.hostname, *argv]
        if self.root:
            argv = inside(self.root, {str(self.folder): self.folder}, argv)
        # Not a pipe: processes that outlive the program may hold it open.
        with TemporaryFile("w+", errors="replace") as output:
            try:
                status = subprocess.run(
                    argv,
                    env={**self._environment(), **variables},
                    cwd="/",
                    umask=0o077 if as_daemon else -1,
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=ANSWER_TIMEOUT,
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
                output.write(f"nothing within {ANSWER_TIMEOUT:.0f} s")
            output.seek(0)
            return subprocess.CompletedProcess(argv, status, stdout=output.read())

    def run(self, *command: str, as_daemon: bool = False, **variables: str) -> str:
        """Run a program and return its output. Raises LabError if it fails."""
        done = self.attempt(*command, as_daemon=as_daemon, **variables)
        if done.returncode != 0:
            raise LabError(
                f"`{' '.join(command)}` failed in the lab: exit status {done.returncode}",
                f"see that the file system of {self.folder} has 100 MB free",
                *done.stdout.strip().splitlines(),
            )
        return done.stdout

    def become(self) -> list[str]:
        """The words before a command that run it as the daemon's user; none if we are that user."""
        if os.geteuid() == self.uid:
            return []
        groups = ",".join(str(group) for group in _kvm_groups())
        return [
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}"),
            f"--groups={groups}" if groups else "--clear-groups",
        ]

    def _environment(self) -> dict[str, str]:
        """Variables that put every XDG folder into the lab's; they also mark its processes."""
        return {
            "PATH": SEARCH_PATH,
            "HOME": str(self.folder),
            "LC_ALL": "C",
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_DATA_HOME": str(self.folder / "data"),
        }


def _found(program: str) -> str:
    path = shutil.which(program, path=SEARCH_PATH)
    assert path is not None, "require_packages has checked that it is installed"
    return path


def _kvm_groups() -> list[int]:
    """The group that may open /dev/kvm, if it is safe to give it to the daemon."""
    try:
        kvm = os.stat("/dev/kvm")
    except OSError:
        return []
    return [kvm.st_gid] if kvm.st_gid != 0 and kvm.st_mode & 0o060 == 0o060 else []
