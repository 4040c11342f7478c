"""Text that a stranger's process has: in files of its root, and in its own memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from virtrace.binary.elf import open_file
from virtrace.confined import Bounds, Tell, run
from virtrace.errors import TargetError

# A file system of some user's may never answer.
_BOUNDS = Bounds(memory=64 << 20, processor_seconds=2, seconds=10)


def text_inside(root: Path, path: str, largest: int) -> str:
    """The text of a regular file, by a child without rights; empty where it cannot be read.

    A link is none.

    root: where the process's ``/`` can be reached from here; no link leads out of it. path: as
    the process has it.
    """

    def begin() -> Callable[[Tell], str]:
        # A root that is not ours need not have /proc.
        descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_CLOEXEC)
        if root != Path("/"):
            # Whoever may not has no more rights than who lives there.
            with suppress(PermissionError):
                os.chroot(root)
        file = open_file(Path("/", path), largest, descriptors, follow=False)
        return lambda _: file.read(largest).decode(errors="replace")

    return _text(path, begin)


def text_of_process(pid: int, name: str, largest: int) -> str:
    """The beginning of ``/proc/PID/environ`` or ``cmdline``; empty where it cannot be read.

    The kernel reads it from the process's memory, which may lie in a file system of some user's.
    """
    path = f"/proc/{pid}/{name}"

    def begin() -> Callable[[Tell], str]:
        file = open(path, "rb")  # noqa: SIM115 - the work reads it
        return lambda _: file.read(largest).decode(errors="surrogateescape")

    return _text(path, begin)


def _text(path: str, begin: Callable[[], Callable[[Tell], str]]) -> str:
    try:
        return str(run(path, begin, _BOUNDS))
    except (TargetError, OSError):
        return ""
