"""Whose a daemon is, and its files, opened with no more rights than that user has.

A user can put anything where a daemon of his has its log: a link to a file that only root reads,
a FIFO, a device. Root opens it as that user, in the daemon's root, and only a regular file.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_PIECE = 1 << 16
_DONE = b"done "


class Unavailable(Exception):
    """A fact that cannot be had; the message says why."""


@dataclass(frozen=True)
class Owner:
    uid: int
    gid: int
    groups: tuple[int, ...]

    @property
    def credentials(self) -> dict[str, Any]:
        """Arguments of Popen for a program that runs as this user."""
        if not self._is_another:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    def become(self) -> None:
        """For the rest of this process."""
        if self._is_another:
            os.setgroups(list(self.groups))
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)

    @property
    def _is_another(self) -> bool:
        """Only root can become somebody else; for any other user the kernel checks as it is."""
        return os.geteuid() == 0 and self.uid != 0


def owner_of(pid: int) -> Owner:
    """Whose rights the daemon has."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError as error:
        raise Unavailable(f"the daemon's user cannot be seen: {error.strerror}") from error
    ids = {
        name: [int(each) for each in numbers.split()]
        for name, _, numbers in (line.partition(b":") for line in text.splitlines())
        if name in (b"Uid", b"Gid", b"Groups")
    }
    effective = 1
    return Owner(ids[b"Uid"][effective], ids[b"Gid"][effective], tuple(ids[b"Groups"]))


def seen_from_here(path: str, pid: int) -> str:
    """Through the daemon's root, where it does not see the very files that we see."""
    try:
        same = os.path.samestat(os.stat(f"/proc/{pid}/root"), os.stat("/"))
        same = same and os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        same = True
    return path if same else f"/proc/{pid}/root{path}"


def end_of_file(
    pid: int, folder: bytes, names: Sequence[bytes], most: int, deadline: float
) -> bytes:
    """The last bytes of a file of a daemon. OSError where it cannot be read as its user.

    folder: as the daemon sees it. names: of the folders below it, and of the file; none of them
    may be a link. deadline: by time.monotonic().
    """
    owner, root = owner_of(pid), seen_from_here("/", pid)
    told, teller = os.pipe()
    child = os.fork()
    if child == 0:
        _tell(teller, owner, root, folder, names, most)
    os.close(teller)
    try:
        answer = _all_of(told, deadline)
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        # Not waited for: where the storage hangs, not even SIGKILL ends it.
        os.waitpid(child, os.WNOHANG)
    if not answer.startswith(_DONE):
        number, _, reason = answer.decode().partition(" ")
        raise OSError(int(number or errno.EIO), reason or "its reader ended")
    return answer.removeprefix(_DONE)


def _all_of(pipe: int, deadline: float) -> bytes:
    found = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        piece = os.read(pipe, _PIECE)
        if not piece:
            return found
        found += piece


def _tell(
    teller: int, owner: Owner, root: str, folder: bytes, names: Sequence[bytes], most: int
) -> NoReturn:
    """In a process of its own, as what it gives up cannot be had again."""
    try:
        try:
            answer = _DONE + _read(owner, root, folder, names, most)
        except OSError as error:
            answer = f"{error.errno} {error.strerror}".encode()
        while answer:
            answer = answer[os.write(teller, answer) :]
    finally:
        os._exit(0)


def _read(owner: Owner, root: str, folder: bytes, names: Sequence[bytes], most: int) -> bytes:
    descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
    if root != "/":
        # Links in there then lead to nothing of this host's.
        os.chroot(root)
        os.chdir("/")
    owner.become()
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    for name in names[:-1]:
        place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=place)
    # Opening a FIFO waits for its writer, and opening a device can set it to work; this does not.
    found = os.open(names[-1], os.O_PATH | os.O_NOFOLLOW, dir_fd=place)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    file = os.open(str(found), os.O_RDONLY, dir_fd=descriptors)
    os.lseek(file, max(0, os.fstat(file).st_size - most), os.SEEK_SET)
    content = b""
    while len(content) < most and (piece := os.read(file, min(_PIECE, most - len(content)))):
        content += piece
    return content
