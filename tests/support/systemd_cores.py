"""systemd-coredump with its journal and coredumpctl, in a mount namespace of their own.

They are Debian's, of packages that are not installed: that would change where the cores of the
whole machine go.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.command import ENVIRONMENT, SECONDS, VIRTRACE
from tests.support.downloads import ensure_downloaded
from tests.support.waiting import wait_until

_SUITE = "bookworm"
# The last two read the stacks of cores.
_PACKAGES = ("systemd", "systemd-coredump", "libsystemd-shared", "libdw1", "libelf1")
_DOWNLOAD = f"""\
set -eux; cd "$1"; mkdir packages; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; \
apt-get download {" ".join(_PACKAGES)}; \
for package in ./*.deb; do dpkg-deb --extract "$package" packages; done"""
_LIBRARIES = ("usr/lib/x86_64-linux-gnu/systemd", "usr/lib/x86_64-linux-gnu")
# Where they keep sockets, journals and cores, and are configured.
_OWN = ("/run/systemd", "/run/log", "/var/lib/systemd", "/etc/systemd")
# Nothing of the kernel's: neither its log nor its audit, which it would turn on.
_CONFIGURATION = "[Journal]\nStorage=volatile\nAudit=\nReadKMsg=no\n"
# Ends with its standard input, and what it has started with it.
_SCRIPT = """\
set -e
for folder in {own}; do mkdir -p "$folder"; mount -t tmpfs tmpfs "$folder"; done
mkdir -p /run/systemd/journal /var/lib/systemd/coredump
printf {configuration} >/etc/systemd/journald.conf
alone="setpriv --pdeathsig TERM --bounding-set -audit_control,-audit_read,-audit_write"
$alone {files}/lib/systemd/systemd-journald &
$alone {files}/usr/bin/systemd-socket-activate --accept --seqpacket -l /run/systemd/coredump \\
    {files}/lib/systemd/systemd-coredump &
cat >/dev/null
"""
_SOCKETS = ("run/systemd/journal/socket", "run/systemd/coredump")


@dataclass(frozen=True)
class Storage:
    """Where systemd-coredump stores cores. pid: of a process there."""

    files: Path
    pid: int

    @property
    def handler(self) -> str:
        """The command of the shell that gets a core, and its arguments."""
        program = self.files / "lib/systemd/systemd-coredump"
        return f'exec {shlex.join(self._there(str(program)))} "$@"'

    @property
    def arguments(self) -> Sequence[str]:
        """What the package lets the kernel pass to it."""
        settings = (self.files / "usr/lib/sysctl.d/50-coredump.conf").read_text()
        pattern = re.search(r"^kernel\.core_pattern=\|\S+ (.*)$", settings, re.M)
        assert pattern is not None, settings
        return pattern[1].split()

    def coredumpctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run("coredumpctl", "--no-pager", *words)

    def virtrace(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self._run(*VIRTRACE, *map(str, words))

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        there = self._there(*command)
        return subprocess.run(there, capture_output=True, text=True, timeout=SECONDS)

    def _there(self, *command: str) -> list[str]:
        variables = {
            **ENVIRONMENT,
            "PATH": f"{self.files}/usr/bin:{ENVIRONMENT['PATH']}",
            "LD_LIBRARY_PATH": ":".join(str(self.files / each) for each in _LIBRARIES),
        }
        words = (f"{name}={value}" for name, value in variables.items())
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "env", *words, *command]


@contextmanager
def storing() -> Iterator[Storage]:
    """Let systemd-coredump run meanwhile; what it has stored is gone then.

    Raises: LabError if it cannot be downloaded.
    """
    files = ensure_downloaded("systemd", _SUITE, _DOWNLOAD, "/packages")
    script = _SCRIPT.format(
        own=" ".join(_OWN), configuration=shlex.quote(_CONFIGURATION), files=files
    )
    libraries = ":".join(str(files / each) for each in _LIBRARIES)
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LD_LIBRARY_PATH": libraries},
    ) as there:
        inside = Path(f"/proc/{there.pid}/root")
        wait_until(lambda: all((inside / each).exists() for each in _SOCKETS), "it listens")
        yield Storage(files, there.pid)
