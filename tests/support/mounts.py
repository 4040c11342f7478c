"""Mounts that a daemon of the tests sees: it may have been started in another mount namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(pid: int, point: Path, *options: str, pass_fds: Sequence[int] = ()) -> Iterator[None]:
    """Mount something at a place meanwhile, where a process sees it.

    point: as the process sees it, whose root may be another one. options: of mount(8), without the
    place
    """
    place = os.readlink(f"/proc/{pid}/root").rstrip("/") + str(point)
    spaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "pid")]
    mount, pids = (
        f"--{kind}=/proc/self/fd/{space}" for kind, space in zip(("mount", "pid"), spaces)
    )
    try:
        command = ["nsenter", mount, "mount", *options, place]
        subprocess.run(command, check=True, pass_fds=[*spaces, *pass_fds])
        try:
            yield
        finally:
            # It looks for the mount in /proc/self, which is of the process's PID namespace there.
            command = ["nsenter", mount, pids, "umount", "--lazy", place]
            subprocess.run(command, check=True, pass_fds=spaces)
    finally:
        for space in spaces:
            os.close(space)
