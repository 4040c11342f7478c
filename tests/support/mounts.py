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

    options: of mount(8), without the place
    """
    # What mount(8) finds in /proc is of the PID namespace.
    namespaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "pid")]
    enter = ["nsenter", *map("--{}=/proc/self/fd/{}".format, ("mount", "pid"), namespaces)]
    try:
        command = [*enter, "mount", *options, str(point)]
        subprocess.run(command, check=True, pass_fds=[*namespaces, *pass_fds])
        try:
            yield
        finally:
            command = [*enter, "umount", "--lazy", str(point)]
            subprocess.run(command, check=True, pass_fds=namespaces)
    finally:
        for namespace in namespaces:
            os.close(namespace)
