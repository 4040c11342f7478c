"""Files that only this process and its children have, by the names of others' files."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_FS, CLONE_NEWNS = 1 << 9, 1 << 17
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def of_libvirt(root: Path) -> list[Path]:
    """The files of libvirt that its daemon maps, in a root file system."""
    return [
        *root.glob("usr/sbin/libvirtd"),
        *root.glob(f"{_LIBRARIES}/libvirt.so.0.*"),
        *root.glob(f"{_LIBRARIES}/libvirt/connection-driver/*.so"),
    ]


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def copy_here(files: Iterable[Path], folder: Path) -> None:
    """In this process's mount namespace, which is its own, each file is a copy from now on."""
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        copy = folder / str(number)
        shutil.copy2(file, copy)
        _check(_LIBC.mount(os.fsencode(copy), os.fsencode(file), None, MS_BIND, None))


@contextmanager
def copied(files: Iterable[Path], folder: Path) -> Iterator[None]:
    """In a mount namespace of its own each file is a copy; for root.

    A uprobe is put into every process that maps the same inode.
    """
    before, current = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), os.getcwd()
    _check(_LIBC.unshare(CLONE_NEWNS))
    try:
        _check(_LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
        copy_here(files, folder)
        yield
    finally:
        # Threads that were begun here share it with this one, which then could not leave.
        _check(_LIBC.unshare(CLONE_FS))
        _check(_LIBC.setns(before, CLONE_NEWNS))
        os.chdir(current)
        os.close(before)
