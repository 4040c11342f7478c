"""The folder of a lab: who may fill it, and what is left in it."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from virtrace.errors import LabError
from virtrace.lab import loop, processes
from virtrace.lab.guest import GUEST

# A file with this name says that everything in the folder is the lab's, and may be removed.
MARKER = "virtrace-lab"

# sun_path holds 108 bytes with its NUL; LONGEST_SOCKET is the longest socket below a lab's folder.
SOCKET_PATH_MAX = 107
LONGEST_SOCKET = f"config/libvirt/qemu/lib/domain-9999-{GUEST.name}/monitor.sock"


def default_folder() -> Path:
    """One fixed folder per user, short enough for the sockets below it."""
    return Path(f"/var/tmp/virtrace-lab-{os.geteuid()}")


def dir_option(folder: Path) -> str:
    """The option of `virtrace lab` for this folder, with a space before; empty for the default."""
    return "" if folder == default_folder() else f" --dir {shlex.quote(str(folder))}"


def require_short_path(folder: Path) -> None:
    """Raises LabError if a socket below the folder would have too long a path."""
    excess = len(os.fsencode(folder / LONGEST_SOCKET)) - SOCKET_PATH_MAX
    if excess > 0:
        raise LabError(
            f"the lab's folder {folder} is {excess} bytes too long: the paths of "
            f"its sockets may have {SOCKET_PATH_MAX}",
            "give a shorter folder with --dir",
        )


@contextmanager
def locked(folder: Path, create: bool) -> Iterator[None]:
    """Lock the folder against another up or down, after a check that it may be filled.

    Raises LabError if it belongs to somebody else, holds other files, or is locked already.
    """
    try:
        if create:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700, parents=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise LabError(
            f"the lab's folder {folder} cannot be used: {error.strerror}"
            + (" (a symlink is refused)" if folder.is_symlink() else ""),
            "give another folder with --dir",
        ) from error
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise LabError(
                f"the lab's folder {folder} belongs to somebody else",
                "give another folder with --dir",
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(handle), os.lstat(folder))
        except (BlockingIOError, FileNotFoundError):
            same = False
        if not same:
            raise LabError(
                f"another virtrace is setting up or ending the lab in {folder}",
                "wait until it is done, or give another folder with --dir",
            )
        if os.listdir(handle) and not (folder / MARKER).exists():
            raise LabError(
                f"{folder} contains files that are not part of a lab",
                "give a new or empty folder with --dir",
            )
        yield
    finally:
        os.close(handle)


def end_all(folder: Path, uid: int) -> int:
    """End the lab's processes, then detach its loop devices; return how many of both there were."""
    ended = processes.end_all(folder, uid)
    return ended + loop.detach_all(folder)


def remove_all(folder: Path, uid: int, keep_folder: bool = False) -> None:
    """End everything that runs in the folder and remove its files, or the folder itself."""
    end_all(folder, uid)
    try:
        for entry in os.scandir(folder):
            # The marker goes last, so that an interrupted removal can be repeated.
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != MARKER:
                os.unlink(entry.path)
        if not keep_folder:
            shutil.rmtree(folder)
    except OSError as error:
        raise LabError(
            f"the lab's folder {folder} cannot be removed: {error}",
            f"see who uses it, then run `virtrace lab down{dir_option(folder)}` again",
        ) from error
