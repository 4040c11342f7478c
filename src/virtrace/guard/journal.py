"""What GDB writes into a process, noted before it is written.

Lines of JSON, in a file of the user's cache that is named by the process's pid and start time:
a header, and an entry for each place. The file is what `virtrace rescue` goes by.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from virtrace import files
from virtrace.binary import given
from virtrace.errors import TargetError
from virtrace.image.model import Module
from virtrace.image.process import Process

_KIND = "guard"
_LARGEST = 1 << 20
_SEMAPHORE = 2  # bytes
_KEPT_SECONDS = 7 * 24 * 3600
# As _name() makes it.
_NAME = re.compile("[1-9][0-9]*-[0-9]+")


@dataclass(frozen=True)
class Place:
    """Where GDB writes: the bytes that were there before, and those that it writes."""

    address: int
    was: bytes
    written: bytes


@dataclass(frozen=True)
class Mark:
    """Bytes that tell that a module is still where it was; GDB never writes there."""

    address: int
    content: bytes


@dataclass(frozen=True)
class Noted:
    """What a journal says."""

    marks: tuple[Mark, ...]
    places: tuple[Place, ...]

    def left_behind(self, memory: int) -> list[Place]:
        """Those that still hold just what GDB wrote; none where the modules have gone."""

        def holds(address: int, content: bytes) -> bool:
            return read(memory, address, len(content)) == content

        if not all(holds(mark.address, mark.content) for mark in self.marks):
            return []
        return [place for place in self.places if holds(place.address, place.written)]


def read(memory: int, address: int, size: int) -> bytes:
    """Empty where nothing is mapped, or the process has gone."""
    try:
        return os.pread(memory, size, address)
    except OSError:
        return b""


class Journal:
    """Grows while the process is traced.

    memory: of the process, by /proc/PID/mem, which takes no ptrace; it is never another
    process's, whatever becomes of the pid.
    """

    def __init__(self, process: Process, modules: Iterable[Module], breakpoint_: bytes) -> None:
        """OSError where the process's memory cannot be written. breakpoint_: the instruction.

        TargetError where what another trace wrote is there still.
        """
        self._pid = process.pid
        self._name = _name(process)
        self._breakpoint = breakpoint_
        self._noted: set[int] = set()
        self.memory = os.open(f"/proc/{process.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        before = find(process)
        if before is not None:
            for place in before.left_behind(self.memory):
                raise self._left_behind(place.address)
        self._file = self._create()
        marks = [(module.base + module.elf.mark[0], module.elf.mark[1]) for module in modules]
        os.write(self._file, _line([[at, content.hex()] for at, content in marks]))

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with files.cache_folder(_KIND) as folder:
                for name in os.listdir(folder):
                    outdated = name == self._name or _is_old(name, folder)
                    if outdated and _is_journal(name, folder):
                        os.unlink(name, dir_fd=folder)
                return os.open(self._name, flags, 0o600, dir_fd=folder)
        except OSError:
            # The guard can do without a file; a rescue then goes by the code alone.
            return os.memfd_create(self._name)

    def breakpoint(self, address: int, was: bytes = b"") -> None:
        """One will be set there. OSError where the memory cannot be read.

        was: the code there, of one who knows which breakpoints are its own. TargetError where
        there is another already, which no code begins with.
        """
        if address in self._noted:
            return
        was = was or os.pread(self.memory, len(self._breakpoint), address)
        if was == self._breakpoint:
            raise self._left_behind(address)
        self._note(address, was, self._breakpoint)

    def semaphore(self, address: int) -> None:
        """That of a static probe there will be raised by one."""
        if address not in self._noted:
            was = os.pread(self.memory, _SEMAPHORE, address)
            raised = int.from_bytes(was, "little") + 1 & 0xFFFF
            self._note(address, was, raised.to_bytes(_SEMAPHORE, "little"))

    def _left_behind(self, address: int) -> TargetError:
        return TargetError(
            f"process {self._pid} has a breakpoint at {address:#x} that nobody waits for: a "
            "debugger was killed while it traced, or bpftrace, perf or SystemTap is at work there",
            f"end those; without any, virtrace rescue {self._pid}",
        )

    def _note(self, address: int, was: bytes, written: bytes) -> None:
        self._noted.add(address)
        os.write(self._file, _line([address, was.hex(), written.hex()]))

    def read(self) -> Noted:
        return _parse(os.pread(self._file, _LARGEST, 0))

    def remove(self) -> None:
        """Nothing of it is in the process any more."""
        with suppress(OSError), files.cache_folder(_KIND) as folder:
            os.unlink(self._name, dir_fd=folder)

    def descriptors(self) -> tuple[int, int]:
        return self.memory, self._file

    def close(self) -> None:
        for descriptor in self.descriptors():
            os.close(descriptor)


def find(process: Process) -> Noted | None:
    """What a trace of this very process noted and did not take back; None without one."""
    try:
        with files.cache_folder(_KIND) as folder:
            return _parse(files.read_trusted(folder, _name(process), _LARGEST))
    except (OSError, ValueError):
        return None


def _name(process: Process) -> str:
    return f"{process.pid}-{process.start_time}"


def _is_old(name: str, folder: int) -> bool:
    """Of a process that is gone. Others can be in PID namespaces that cannot be seen from here."""
    if os.path.exists(f"/proc/{name.partition('-')[0]}"):
        return False
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return time.time() - status.st_mtime > _KEPT_SECONDS


def _is_journal(name: str, folder: int) -> bool:
    """By its name and by what it says: whatever else somebody keeps here is not ours to remove."""
    if not _NAME.fullmatch(name):
        return False
    try:
        _parse(files.read_trusted(folder, name, _LARGEST))
    except (OSError, ValueError, TypeError):
        return False
    return True


def _line(entry: object) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parse(data: bytes) -> Noted:
    """ValueError where it is none. A last line without its end was never acted on."""
    try:
        header, *entries = map(json.loads, data.split(b"\n")[:-1])
        marks = tuple(Mark(given.address(at), _content(content)) for at, content in header)
        places = tuple(
            Place(given.address(at), _content(was), _content(written))
            for at, was, written in entries
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    # By these it is known that the places are what they were.
    if not marks or not all(mark.content for mark in marks):
        raise ValueError("nothing tells that the modules are still there")
    if not all(0 < len(place.was) == len(place.written) for place in places):
        raise ValueError("what was written is not what was there before")
    return Noted(marks, places)


def _content(digits: object) -> bytes:
    return bytes.fromhex(given.text(digits))
