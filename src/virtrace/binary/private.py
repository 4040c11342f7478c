"""Files that are believed because nobody else can have written them: caches, symbol packs.

Names are looked up in a folder that is already open, and no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cache_folder(kind: str) -> Iterator[int]:
    """The user's cache of this kind, opened and made if need be.

    OSError where it cannot be, where nothing says in which folder, or where others may write or
    read it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.environ.get("HOME", os.path.expanduser("~")), ".cache")
    if not os.path.isabs(base):
        raise FileNotFoundError("neither XDG_CACHE_HOME nor HOME is the path of a folder from /")
    path = os.path.join(base, "virtrace", kind)
    os.makedirs(path, mode=0o700, exist_ok=True)
    with opened_folder(path) as folder:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{path} is not the user's alone")
        yield folder


@contextmanager
def opened_folder(path: str | os.PathLike[str]) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def read(folder: int, name: str, limit: int) -> bytes:
    """OSError where there is no such file, it is larger, or others can have written it."""
    # Not to be kept waiting by a FIFO of that name.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"{name} is not a regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise PermissionError(f"{name} can be written by others")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"{name} is larger than {limit} bytes")
    return data


def write(folder: int, name: str, data: bytes) -> None:
    """The whole file or, with OSError, none; one that is there is replaced."""
    unfinished = f".{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(unfinished, flags, 0o600, dir_fd=folder), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(unfinished, dir_fd=folder)
            raise
