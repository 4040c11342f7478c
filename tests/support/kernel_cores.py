"""Cores that the real kernel writes of one process.

Where cores go is a setting of the whole machine (core_pattern(5)). It is changed only inside of
`cores_of`, which one process of the machine at a time is in: it locks the setting's own file. A
process that holds the lock, too, restores it, once this one has left or has ended, in whatever way:
also by SIGKILL. Meanwhile a script gets the cores of all processes that crash; it drops those of
others, which by default get none.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from virtrace.lab.daemon import Lab

_PATTERN = Path("/proc/sys/kernel/core_pattern")
CAN_SET = os.access(_PATTERN, os.W_OK)
# What the kernel passes: the pid on this host.
_PID = "%P"
# Waits for the end of its standard input.
_RESTORE = 'cat >/dev/null; printf %s "$1" >"$0"'


@contextmanager
def cores_of(lab: Lab, command: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Let the kernel give the core of a lab's daemon to a command, if it crashes meanwhile.

    command: of the shell; it reads the core. arguments: of it, as core_pattern has them; the kernel
    fills them in.
    """
    script = lab.folder / "core-of"
    script.write_text(f'#!/bin/sh\n[ "$1" = {lab.pid} ] || exit 0\nshift\n{command}\n')
    script.chmod(0o755)
    # Its limit is 0 by default, by which no core is kept.
    limit = ("prlimit", f"--pid={lab.pid}", "--core=unlimited")
    lab.system.run(*limit, as_daemon=True)
    lock = os.open(_PATTERN, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        restore = ["sh", "-c", _RESTORE, str(_PATTERN), _PATTERN.read_text().rstrip("\n")]
        with subprocess.Popen(
            restore, stdin=subprocess.PIPE, start_new_session=True, pass_fds=[lock]
        ):
            _PATTERN.write_text(" ".join([f"|{script}", _PID, *arguments]))
            yield
    finally:
        os.close(lock)


def kept_in(file: Path) -> str:
    """The command that keeps a core in a file, which is there once it is whole."""
    part, whole = shlex.quote(f"{file}.part"), shlex.quote(str(file))
    return f"cat >{part} && mv {part} {whole}"
