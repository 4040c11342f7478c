"""Text that a stranger's process has: in files of its root, and in its own memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from virtrace.confined import Bounds, Tell, run
from virtrace.errors import TargetError
from virtrace.files import read_inside

# A file system of some user's may never answer.
_BOUNDS = Bounds(memory=64 << 20, processor_seconds=2, seconds=10)


def text_inside(root: Path, path: str, limit: int) -> str:
    """Text of a regular file in a process's root; empty if it cannot be read.

    root: the process's ``/``, as seen from here. path: as the process sees it; not a link.
    limit: the largest accepted size in bytes.
    """
    folder, name = map(os.fsencode, os.path.split(os.path.join("/", path)))
    deadline = time.monotonic() + _BOUNDS.seconds
    try:
        data = read_inside(str(root), folder, [name], limit, deadline=deadline)
    except OSError:
        return ""
    return data.decode(errors="replace")


def text_of_process(pid: int, name: str, largest: int) -> str:
    """The beginning of ``/proc/PID/environ`` or ``cmdline``; empty where it cannot be read.

    The kernel reads it from the process's memory, which may lie in a file system of some user's.
    """
    path = f"/proc/{pid}/{name}"

    def begin() -> Callable[[Tell], str]:
        file = open(path, "rb")  # noqa: SIM115 - the work reads it
        return lambda _: file.read(largest).decode(errors="surrogateescape")

    try:
        return str(run(path, begin, _BOUNDS))
    except (TargetError, OSError):
        return ""
