"""A private libvirt daemon: a session daemon with every XDG folder inside a lab's."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from virtrace.errors import LabError
from virtrace.lab import debug_build, processes
from virtrace.lab.folder import dir_option
from virtrace.lab.system import ANSWER_TIMEOUT, ROOTS_DAEMON_USER, System


class PrivateDaemon:
    """One daemon of a lab, libvirtd or a modular one. Several may share the lab's folder.

    The object holds no state of the daemon: another process with the same folder sees and uses the
    same one.

    folder: the lab's
    daemon: name of the program; the distribution installs libvirtd only
    debug_info: run the build with debug info
    """

    def __init__(
        self,
        folder: Path,
        system: System,
        daemon: str,
        debug_info: bool,
        progress: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.system = system
        self.daemon = daemon
        self.debug_info = debug_info
        self.progress = progress

    @property
    def log(self) -> Path:
        return self.folder / "cache" / "libvirt" / f"{self.daemon}.log"

    @property
    def uri(self) -> str:
        """For `virsh -c`, as any user who may reach the socket: the lab's own, and root."""
        service = "libvirt" if self.daemon == debug_build.DAEMON else self.daemon
        socket = self.folder / "run" / "libvirt" / f"{service}-sock"
        driver = "storage" if self.daemon == debug_build.STORAGE_DAEMON else "qemu"
        return f"{driver}+unix:///session?socket={quote(str(socket))}"

    @property
    def pid(self) -> int:
        """The process id. Raises LabError if the daemon does not run."""
        pid = self.running_pid()
        if pid is None:
            raise LabError(
                f"no lab of this user is up in {self.folder}",
                f"virtrace lab up{dir_option(self.folder)}",
            )
        return pid

    @property
    def is_up(self) -> bool:
        """Whether the daemon runs. A guest may outlive it."""
        return self.running_pid() is not None

    def running_pid(self) -> int | None:
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        ours = processes.is_of_lab(pid, self.folder, self.system.uid)
        return pid if ours and processes.executable(pid).endswith(f"/{self.daemon}") else None

    def program(self) -> str:
        """The path of the program, which is built first where that is needed."""
        if self.debug_info:
            return os.path.realpath(debug_build.ensure_built(self.progress) / self.daemon)
        return self.system.libvirtd

    def launch(self) -> None:
        """Start the daemon; return when it answers.

        Raises:
            LabError: it does not start or does not answer
        """
        program = self.program()
        as_whom = f" as {ROOTS_DAEMON_USER}" if os.geteuid() == 0 else ""
        self.progress(f"starting {self.system.outside(program)}{as_whom}")
        variables = {}
        if self.debug_info:
            build = os.path.dirname(program)
            places = ("DRIVER", "STORAGE_BACKEND", "STORAGE_FILE")
            variables = {f"LIBVIRT_{place}_DIR": build for place in places}
        if self.system.attempt("test", "-x", str(self.folder), as_daemon=True).returncode != 0:
            raise LabError(
                f"{ROOTS_DAEMON_USER}, who runs root's lab, cannot reach {self.folder}",
                "give a folder with --dir whose parents everybody may pass, as in /var/tmp",
            )
        started = self.system.attempt(
            *(program, "-d", "-p", str(self._pid_file)), as_daemon=True, **variables
        )
        if started.returncode != 0:
            raise LabError(
                f"the lab's {self.daemon} did not start",
                "run `virtrace doctor`, or send this with a bug report",
                *started.stdout.strip().splitlines(),
                *self._log_tail(),
            )
        self.virsh_checked("uri")

    def virsh_command(self, *args: str) -> list[str]:
        return ["virsh", "-c", self.uri, *args]

    def virsh(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run virsh in the C locale, whatever its exit status.

        Raises:
            LabError: it has not ended within ANSWER_TIMEOUT
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
                f"virtrace lab down{dir_option(self.folder)}, then up again",
                *self._log_tail(),
            ) from error

    def virsh_checked(self, *args: str) -> str:
        """Run virsh and return its output. Raises LabError if it fails."""
        done = self.virsh(*args)
        if done.returncode != 0:
            raise LabError(
                f"`virsh {' '.join(args)}` failed in the lab",
                f"virtrace lab down{dir_option(self.folder)}, then up again",
                *done.stderr.strip().splitlines(),
                *self._log_tail(),
            )
        return done.stdout

    @property
    def libvirt_version(self) -> tuple[int, ...]:
        """The version that the running daemon reports."""
        printed = self.virsh_checked("version", "--daemon")
        version = re.search(r"^Running against daemon: ([\d.]+)$", printed, re.M)
        assert version is not None, printed
        return tuple(int(part) for part in version[1].split("."))

    @property
    def _pid_file(self) -> Path:
        return self.folder / "run" / f"{self.daemon}.pid"

    def _log_tail(self) -> list[str]:
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-12:]
        except OSError:
            return []
        return ["the daemon's log ends with:", *(f"  {line}" for line in lines)]
