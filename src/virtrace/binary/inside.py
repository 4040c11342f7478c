"""Text files of the root that a process lives in, which may be a stranger's."""

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

    try:
        return str(run(path, begin, _BOUNDS))
    except (TargetError, OSError):
        return ""
