"""Which processes have a file open, hold its locks, or listen at an address."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from os.path import samestat
from pathlib import Path

from virtrace.errors import Unavailable
from virtrace.image.process import texts_of_processes
from virtrace.trace.format import AddressFacts, Holder

_MOST = 20
_COMMAND_BYTES = 64 << 10
_SHOWN = 200
_LISTENS = 0x0A  # TCP_LISTEN of include/net/tcp_states.h
_GUEST = re.compile(r"\bguest=((?:[^,]|,,)+)")
_LOCK = re.compile(r"^lock:\s+\d+: (\S+)\s+\S+\s+(\S+) \S+ \w+:\w+:(\d+) ", re.M)


def holders_of(file: str, deadline: float) -> list[Holder]:
    """The processes that have a file open.

    file: from here, without links; its file system has just answered. Raises: Unavailable.
    """
    try:
        wanted = os.stat(file)
    except OSError as error:
        raise Unavailable(f"the file is not there: {error.strerror}") from error
    name = os.path.basename(file)
    locks: dict[int, set[str]] = {}
    for pid, number in _descriptors(deadline):
        with suppress(OSError):
            place = f"/proc/{pid}/fd/{number}"
            # The name first: the file system of another file may not answer.
            if os.path.basename(os.readlink(place)) == name and samestat(os.stat(place), wanted):
                text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
                kinds = {f"{kind} {right}" for kind, right, _ in _LOCK.findall(text)}
                locks.setdefault(pid, set()).update(kinds)
    return _described({pid: sorted(kinds) for pid, kinds in locks.items()})


def listeners_at(address: str, pid: int, deadline: float) -> AddressFacts:
    """Who listens at an address, in the network of a process.

    address: a port's number, or the path of a socket. Raises: Unavailable.
    """
    inodes = set(_inodes_of(address, pid))
    found = set()
    for other, number in _descriptors(deadline):
        with suppress(OSError):
            if os.readlink(f"/proc/{other}/fd/{number}") in inodes:
                found.add(other)
    return {"address": address, "holders": _described({each: [] for each in sorted(found)})}


def _inodes_of(address: str, pid: int) -> Iterator[str]:
    is_port = address.isdecimal()
    for name in ("tcp", "tcp6") if is_port else ("unix",):
        with suppress(OSError):
            table = Path(f"/proc/{pid}/net/{name}").read_text(errors="surrogateescape")
            for line in table.splitlines()[1:]:
                words = line.split(maxsplit=9) if is_port else line.split(maxsplit=7)
                if is_port and len(words) > 9 and int(words[3], 16) == _LISTENS:
                    if int(words[1].rpartition(":")[2], 16) == int(address):
                        yield f"socket:[{words[9].split()[0]}]"
                elif not is_port and len(words) > 7 and words[7] == address:
                    yield f"socket:[{words[6]}]"


def _descriptors(deadline: float) -> Iterator[tuple[int, str]]:
    """All descriptors of all processes. Raises: Unavailable if the time is over."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        if time.monotonic() > deadline:
            raise Unavailable("there was no time to look at all processes")
        with suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                yield int(pid), number


def _described(locks: dict[int, list[str]]) -> list[Holder]:
    pids = list(locks)[:_MOST]
    commands = texts_of_processes(pids, "cmdline", _COMMAND_BYTES)
    found: list[Holder] = []
    for pid in pids:
        words = commands.get(pid, "").rstrip("\0").split("\0")
        guest = next(filter(None, map(_GUEST.search, words)), None)
        found.append(
            {
                "pid": pid,
                "command": os.path.basename(words[0])[:_SHOWN],
                "domain": guest[1].replace(",,", ",") if guest else None,
                "locks": locks[pid],
            }
        )
    return found
