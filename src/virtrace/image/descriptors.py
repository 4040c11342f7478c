"""The files behind the descriptors of a process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress


def file_of(pid: int, descriptor: int) -> str | None:
    """Return the file behind a descriptor, by its path as the process sees it."""
    with suppress(OSError):
        file = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if not file.startswith("/"):
            return file
        # The path from here; that of its root is a part of it where it is in a chroot.
        root = os.readlink(f"/proc/{pid}/root").rstrip("/")
        return file[len(root) :] if file.startswith(f"{root}/") else file
    return None


def open_files(pid: int) -> Mapping[int, str]:
    """Return the files of a process by their descriptors; none of a process that is gone."""
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return {}
    found = {number: file_of(pid, number) for number in numbers}
    return {number: file for number, file in found.items() if file is not None}
