"""The way to a file: owner, mode and label of each folder, link and file on it.

A file system may never answer: a process of its own looks, and what it has told until its time is
over counts.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from virtrace import detached
from virtrace.files import root_of
from virtrace.trace.format import AclEntry, PathStep, Record

_MOST_STEPS, _MOST_LINKS = 200, 40
_PIECE = 1 << 16
_TYPES: Sequence[tuple[Callable[[int], bool], str]] = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISREG, "file"),
    (stat.S_ISLNK, "link"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISCHR, "character device"),
)
# include/uapi/linux/posix_acl_xattr.h: a version, then tag, rights and id of each entry.
_ACL, _ACL_VERSION, _ACL_ENTRY = (
    "system.posix_acl_access",
    struct.Struct("<I"),
    struct.Struct("<HHI"),
)
_ACL_KINDS = {0x02: "user", 0x04: "group", 0x08: "group", 0x10: "mask"}
_ACL_NOBODY = 0xFFFFFFFF
_LABEL = "security.selinux"
# A blank, say, in /proc/PID/mountinfo.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def steps_to(path: str, pid: int, seconds: float) -> list[PathStep]:
    """Each step of a path as a process sees it, up to the first that is not there; at least one.

    seconds: how long to wait for an answer. Raises: OSError.
    """
    root = root_of(pid).rstrip("/")
    told = _told(lambda: _walk(root, path), seconds)
    steps: list[PathStep] = [{"path": "/"}]
    for record in told:
        # Each is told twice: before it is looked at, and after that.
        if steps and steps[-1]["path"] == record["path"] and steps[-1].keys() == {"path"}:
            steps.pop()
        steps.append(record)  # type: ignore[arg-type]
    if steps and steps[-1].keys() == {"path"}:
        steps[-1]["problem"] = f"its file system did not answer within {seconds:.1f} s"
    return steps


def _walk(root: str, path: str) -> Iterator[Record]:
    rest = [part for part in path.split("/") if part][::-1]
    done: list[str] = []
    links = 0
    for _ in range(_MOST_STEPS):
        step: Record = {"path": "/" + "/".join(done)}
        yield step
        outside = f"{root}/{'/'.join(done)}"
        try:
            _describe(step, outside)
            if step["type"] == "link":
                step["target"] = os.readlink(outside)
                links += 1
        except (OSError, ValueError) as error:
            step["problem"] = error.strerror if isinstance(error, OSError) else str(error)
        if links > _MOST_LINKS:
            step["problem"] = "there are too many links"
        yield step
        if "problem" in step:
            return
        if step["type"] == "link":
            target = str(step["target"])
            done = [] if target.startswith("/") else done[:-1]
            rest += [part for part in target.split("/") if part][::-1]
        while rest and rest[-1] in (".", ".."):
            if rest.pop() == "..":
                done = done[:-1]
        if not rest:
            return
        done.append(rest.pop())


def _describe(step: Record, outside: str) -> None:
    status = os.lstat(outside)
    kinds = [name for is_it, name in _TYPES if is_it(status.st_mode)]
    step.update(
        type=kinds[0] if kinds else "other",
        uid=status.st_uid,
        gid=status.st_gid,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        acl=[],
    )
    with suppress(OSError, struct.error):
        step["acl"] = _acl(os.getxattr(outside, _ACL, follow_symlinks=False))
    with suppress(OSError):
        label = os.getxattr(outside, _LABEL, follow_symlinks=False)
        step["label"] = label.rstrip(b"\0").decode(errors="replace")


def _acl(raw: bytes) -> list[AclEntry]:
    """Entries beyond those that the mode has. Raises: struct.error."""
    found: list[AclEntry] = []
    for tag, rights, id_ in _ACL_ENTRY.iter_unpack(raw[_ACL_VERSION.size :]):
        if tag in _ACL_KINDS:
            letters = "".join(
                letter if rights & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
            )
            whose = None if id_ == _ACL_NOBODY else id_
            found.append({"kind": _ACL_KINDS[tag], "id": whose, "rights": letters})
    return found


def _told(work: Callable[[], Iterator[Record]], seconds: float) -> list[Record]:
    """What a process tells, until its end or until its time is over."""
    reading, writing = os.pipe()

    def run() -> None:
        # Only what waits for a file system for good outlives it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(seconds))
        for each in work():
            data = json.dumps(each).encode() + b"\n"
            while data:
                data = data[os.write(writing, data) :]

    data = b""
    until = time.monotonic() + seconds
    try:
        detached.spawn("virtrace-looks", [writing], run)
        os.close(writing)
        while (left := until - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
            piece = os.read(reading, _PIECE)
            if not piece:
                break
            data += piece
    finally:
        os.close(reading)
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def file_system_of(path: str, pid: int) -> str | None:
    """Type of the file system that a process sees at a path without links."""
    try:
        table = Path(f"/proc/{pid}/mountinfo").read_bytes()
    except OSError:
        return None
    best, kind, wanted = b"", None, os.fsencode(path)
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        place = _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), before.split(b" ")[4])
        is_above = wanted == place or wanted.startswith(place.rstrip(b"/") + b"/")
        # The last one at a place covers those before it.
        if is_above and len(place) >= len(best):
            best, kind = place, after.split(b" ")[0].decode()
    return kind
