"""Open files that strangers control, and write files that nobody else may read or replace.

A stranger can put a FIFO, a device, a link or an endless file anywhere. Every other module opens
such files, and writes private ones, through this one.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from virtrace.confined import Bounds, Tell, run
from virtrace.errors import TargetError, TraceError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# <fcntl.h>, <linux/fs.h>
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1
# Of a child that reads one small file.
_MEMORY, _PROCESSOR_SECONDS = 64 << 20, 2
# The file system of a stranger may never answer.
_SMALL_FILE_SECONDS = 10
# Small files that are read at once.
_MOST_FILES = 400


class NotRegularError(OSError):
    """The file is a folder, a FIFO, a device or a socket."""


class TooLargeError(OSError):
    """The file is larger than its reader accepts."""


# Reading


def open_regular(
    path: str | os.PathLike[str], limit: int | None = None, *, follow: bool = True
) -> BinaryIO:
    """Open a file for reading without waiting for anybody and without waking a device.

    limit: the largest accepted size in bytes; None accepts any.
    follow: whether the last part of the path may be a symbolic link.
    Raises: NotRegularError, TooLargeError, OSError.
    """
    # Opening a FIFO waits for its writer, and opening a device can start it; O_PATH does neither.
    place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        return _reopened(place, os.fspath(path), limit, f"/proc/self/fd/{place}")
    finally:
        os.close(place)


def _reopened(
    place: int, path: object, limit: int | None, name: str, descriptors: int | None = None
) -> BinaryIO:
    """Open for reading what an O_PATH descriptor refers to.

    name: of that descriptor, absolute or in the folder that `descriptors` refers to.
    """
    status = os.fstat(place)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(errno.EINVAL, "it is not a regular file", path)
    if limit is not None and status.st_size > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit >> 10} KiB"
        raise TooLargeError(errno.EFBIG, f"it is larger than {size}", path)
    return open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=descriptors), "rb")


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a whole file.

    limit: the largest accepted size in bytes.
    Raises: NotRegularError, TooLargeError, OSError.
    """
    with open_regular(path, limit) as file:
        # It may have grown since, and files of /proc have no size.
        return file.read(limit)


def open_input(path: str | Path, what: str = "the trace") -> BinaryIO:
    """Open a file that the user named.

    what: the file's content, for messages.
    Raises: TraceError.
    """
    try:
        return open_regular(path)
    except NotRegularError as error:
        raise TraceError(
            f"{path} is not a regular file", f"name the file that contains {what}"
        ) from error
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(
            f"cannot open {what} {path}: {reason}",
            "check the name" if missing else "check that you may read it",
        ) from error


def read_trusted(folder: int, name: str, limit: int) -> bytes:
    """Read a file that only root or this user can have written.

    folder: a descriptor of the folder, as from open_folder(). No link is followed.
    Raises: OSError: no such file, too large, or writable by others.
    """
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        with _reopened(place, name, limit, f"/proc/self/fd/{place}") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise PermissionError(errno.EPERM, "others can write to it", name)
            return file.read(limit)
    finally:
        os.close(place)


# Reading what a process has in its root


class Owner(NamedTuple):
    """A user, with whose rights files are opened and programs are run."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def credentials(self) -> dict[str, Any]:
        """Arguments of Popen that make a program run as this user."""
        if not self._is_another:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Have this user's rights, no more, in a process with one thread."""
        if not self._is_another:
            yield
            return
        groups = os.getgroups()
        os.setgroups(self.groups)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)

    @property
    def _is_another(self) -> bool:
        """Only root can act for another user; for all others the kernel checks as it is."""
        return os.geteuid() == 0 and self.uid != 0


def root_of(pid: int) -> str:
    """Path of a process's root folder, as seen from here; "/" if it sees the very same files."""
    try:
        same = os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
        same = same and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        same = True
    return "/" if same else f"/proc/{pid}/root"


def read_inside(
    root: str,
    folder: bytes,
    names: Sequence[bytes],
    limit: int,
    *,
    owner: Owner | None = None,
    deadline: float,
    only_end: bool = False,
) -> bytes:
    """Read a file in the root of a process, by a child without rights.

    root: as from root_of(), or ``/proc/PID/root``; no link leads out of it.
    folder: path inside root; its links are followed.
    names: folders below it and the file; none of them may be a link.
    limit: bytes. only_end: read the last `limit` bytes of a larger file.
    owner: opens the file; None: this user.
    deadline: when to give up, by time.monotonic().
    Raises: OSError: TooLargeError and NotRegularError among them.
    """
    path = os.fsdecode(b"/".join((folder, *names)))
    seconds = math.ceil(deadline - time.monotonic())
    if seconds <= 0:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)

    def begin() -> Callable[[Tell], list[Any]]:
        try:
            file = _open_inside(root, folder, names, None if only_end else limit, owner)
        except OSError as error:
            failure = [type(error).__name__, error.errno, error.strerror]
            return lambda _: failure
        return lambda _: ["", 0, _tail(file, limit).decode("latin-1")]

    try:
        name, number, text = run(path, begin, Bounds(_MEMORY, _PROCESSOR_SECONDS, seconds))
    except TargetError as error:
        raise OSError(errno.EIO, error.what, path) from error
    if name:
        kinds = {kind.__name__: kind for kind in (NotRegularError, TooLargeError)}
        raise kinds.get(name, OSError)(number, text, path)
    return str(text).encode("latin-1")


def text_inside(root: Path, path: str, limit: int) -> str:
    """Read the text of a small file in the root of a process; empty if it cannot be read.

    root: the process's ``/``, as seen from here.
    path: as the process sees it; its last part may not be a link.
    limit: the largest accepted size in bytes.
    """
    folder, name = map(os.fsencode, os.path.split(os.path.join("/", path)))
    deadline = time.monotonic() + _SMALL_FILE_SECONDS
    try:
        data = read_inside(str(root), folder, [name], limit, deadline=deadline)
    except OSError:
        return ""
    return data.decode(errors="replace")


def texts_inside(root: Path, folder: str, endings: tuple[str, ...], limit: int) -> dict[str, str]:
    """Read the small files in a folder in the root of a process, by their names.

    root: the process's ``/``, as seen from here.
    folder: as the process sees it. endings: of names; other files are left out, as is what cannot
        be read.
    limit: the largest accepted size of a file in bytes.
    """

    def begin() -> Callable[[Tell], dict[str, str]]:
        found: dict[str, str] = {}
        with suppress(OSError):
            descriptors = _enter(str(root))
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            named = [name for name in os.listdir(place) if name.endswith(endings)]
            for name in named[:_MOST_FILES]:
                with suppress(OSError):
                    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
                    with _reopened(file, name, limit, str(file), descriptors) as opened:
                        found[name] = opened.read(limit).decode(errors="replace")
        return lambda _: found

    try:
        bounds = Bounds(_MEMORY, _PROCESSOR_SECONDS, _SMALL_FILE_SECONDS)
        texts: dict[str, str] = run(folder, begin, bounds)
    except (TargetError, OSError):
        return {}
    return texts


def _open_inside(
    root: str, folder: bytes, names: Sequence[bytes], limit: int | None, owner: Owner | None
) -> BinaryIO:
    """Open it in a process that may change its root for good."""
    descriptors = _enter(root)
    with (owner or Owner(0, 0, ())).acting():
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in names[:-1]:
            place = os.open(name, os.O_PATH | _FOLDER, dir_fd=place)
        place = os.open(names[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        return _reopened(place, os.fsdecode(names[-1]), limit, str(place), descriptors)


def _enter(root: str) -> int:
    """Make a folder the root of this process; return a descriptor of its own descriptors."""
    # The other root need not have /proc.
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if root != "/":
        try:
            os.chroot(root)
            os.chdir("/")
        except PermissionError:
            # Without the right to do so, the user's own root may be the same one.
            if not os.path.samestat(os.stat(root), os.stat("/")):
                raise
    return descriptors


def _tail(file: BinaryIO, limit: int) -> bytes:
    file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
    return file.read(limit)


# Writing


def create_private(path: Path, what: str) -> int:
    """Create a file that its owner alone can read; the result is a descriptor for writing.

    what: the file's content, for messages.
    Raises: TraceError: the file exists, also as a link to nothing, or cannot be created.
    """
    try:
        return os.open(path, _NEW, 0o600)
    except (OSError, ValueError) as error:
        raise _not_created(path, what, error) from error


def open_own(path: Path, what: str) -> FileIO:
    """Open a file that this user wrote, for reading and writing.

    what: the file's content, for messages.
    Raises: TraceError: another file has its name now. OSError.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = FileIO(os.open(path, flags), "r+")
    status = os.fstat(file.fileno())
    # Whoever may write to the folder could have put something else in its place.
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        file.close()
        raise TraceError(f"{path} is not {what} that was written", "record again")
    return file


def fill(descriptor: int, path: Path, what: str, content: Iterable[str | bytes]) -> None:
    """Write to a file that create_private() made.

    Raises: TraceError: the disk is full, for example.
    """
    try:
        with open(descriptor, "wb", closefd=False) as file:
            for piece in content:
                # JSON can name halves of characters, which UTF-8 cannot encode.
                file.write(
                    piece.encode("utf-8", "backslashreplace") if isinstance(piece, str) else piece
                )
    except OSError as error:
        raise TraceError(
            f"cannot write {what} {path}: {error.strerror}",
            "free some space, or name a file on another disk",
        ) from error


def write_new(path: Path, what: str, content: Iterable[str | bytes]) -> None:
    """Write a new private file, whole or not at all.

    what: the file's content, for messages.
    Raises: TraceError: the file exists or cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        descriptor = os.open(unfinished, _NEW, 0o600)
        try:
            fill(descriptor, path, what, content)
            _rename_to_new(unfinished, path)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(unfinished)
    except (OSError, ValueError) as error:
        raise _not_created(path, what, error) from error


def _rename_to_new(unfinished: Path, path: Path) -> None:
    """Give a file its name in one step, unless another file has that name.

    The old name may remain.
    Raises: OSError: FileExistsError among them.
    """
    try:
        # Unlike a rename, a link never replaces a file. NFS has no other way.
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError as error:
        # Not every file system has hard links: FAT has none.
        libc = ctypes.CDLL(None, use_errno=True)
        old, new = os.fsencode(unfinished), os.fsencode(path)
        if libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        reason = os.strerror(number)
        if number == errno.EINVAL:
            reason = "its file system cannot create a file in one step"
        raise OSError(number, reason, str(path)) from error


def exists(path: Path, what: str) -> TraceError:
    """The error for a file that is not to be replaced."""
    return TraceError(f"{path} already exists", f"name another file for {what}, or remove this one")


def _not_created(path: Path, what: str, error: OSError | ValueError) -> TraceError:
    if isinstance(error, FileExistsError):
        return exists(path, what)
    reason = error.strerror if isinstance(error, OSError) else error
    return TraceError(f"cannot write {what} {path}: {reason}", f"name another file for {what}")


def replace(folder: int, name: str, data: bytes) -> None:
    """Write a private file, whole or not at all; an existing one is replaced.

    folder: a descriptor of the folder, as from open_folder().
    Raises: OSError.
    """
    unfinished = f".{name}.{os.urandom(8).hex()}"
    with open(os.open(unfinished, _NEW, 0o600, dir_fd=folder), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.replace(unfinished, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(unfinished, dir_fd=folder)
            raise


# Folders


@contextmanager
def open_folder(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor of a folder, which is not a link.

    Raises: OSError.
    """
    folder = os.open(path, os.O_RDONLY | _FOLDER)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def cache_folder(kind: str) -> Iterator[int]:
    """A descriptor of the user's cache for files of one kind; created if necessary.

    Raises: OSError: it cannot be created, no variable names it, or others may read or write it.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.environ.get("HOME", os.path.expanduser("~")), ".cache")
    if not os.path.isabs(base):
        raise FileNotFoundError("neither XDG_CACHE_HOME nor HOME is the path of a folder from /")
    path = os.path.join(base, "virtrace", kind)
    os.makedirs(path, mode=0o700, exist_ok=True)
    with open_folder(path) as folder:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{path} is not the user's alone")
        yield folder
