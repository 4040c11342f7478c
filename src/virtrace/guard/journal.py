"""A journal of what GDB writes into a process; each entry is made before GDB writes.

Lines of JSON in a file of the user's cache, which is named by the pid and the start time of the
process: the fingerprints of its modules, then an entry for each patch. `virtrace rescue` reads it.
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
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import ProcessMemory
from virtrace.image.model import Module
from virtrace.image.process import Process

_KIND = "guard"
_LARGEST = 1 << 20
_SEMAPHORE = 2  # bytes
_KEPT_SECONDS = 7 * 24 * 3600
# As _name() makes it.
_NAME = re.compile("[1-9][0-9]*-[0-9]+")


@dataclass(frozen=True)
class PatchedBytes:
    """Bytes that GDB replaces: what was there before, and what it writes."""

    address: int
    was: bytes
    written: bytes


@dataclass(frozen=True)
class Fingerprint:
    """Bytes by which a module is recognised in memory. GDB never writes there."""

    address: int
    content: bytes


@dataclass(frozen=True)
class JournalEntries:
    """The contents of a journal."""

    fingerprints: tuple[Fingerprint, ...]
    patches: tuple[PatchedBytes, ...]

    def still_in_place(self, memory: ProcessMemory) -> list[PatchedBytes]:
        """The patches that hold exactly what GDB wrote; none if a module is gone."""

        def holds(address: int, content: bytes) -> bool:
            return memory.read_available(address, len(content)) == content

        if not all(holds(module.address, module.content) for module in self.fingerprints):
            return []
        return [patch for patch in self.patches if holds(patch.address, patch.written)]


class Journal:
    """The journal of one trace; it grows while the process is traced."""

    def __init__(self, process: Process, modules: Iterable[Module], breakpoint_: bytes) -> None:
        """Create the journal.

        breakpoint_: the breakpoint instruction.
        Raises: OSError: the memory of the process cannot be opened for writing.
            TargetError: breakpoints of an earlier trace are still in the process.
        """
        self._pid = process.pid
        self._name = _name(process)
        self._breakpoint = breakpoint_
        self._entered: set[int] = set()
        self.memory = ProcessMemory(process.pid, writable=True)
        before = read_journal(process)
        if before is not None:
            for patch in before.still_in_place(self.memory):
                raise self._left_behind(patch.address)
        self._file = self._create()
        fingerprints = [
            (module.base + address, content.hex())
            for module, (address, content) in ((one, one.elf.fingerprint) for one in modules)
        ]
        os.write(self._file, _line(fingerprints))

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
            # The guard needs no named file; `virtrace rescue` then compares the code alone.
            return os.memfd_create(self._name)

    def breakpoint(self, address: int, was: bytes = b"") -> None:
        """Enter a breakpoint that will be set.

        was: the code there, from a caller that knows which breakpoints are its own.
        Raises: TargetError: another breakpoint is there already, or the memory cannot be read.
        """
        if address in self._entered:
            return
        was = was or self._read(address, len(self._breakpoint))
        if was == self._breakpoint:
            raise self._left_behind(address)
        self._enter(address, was, self._breakpoint)

    def semaphore(self, address: int) -> None:
        """Enter the semaphore of a static probe, which GDB will raise by one."""
        if address not in self._entered:
            was = self._read(address, _SEMAPHORE)
            raised = int.from_bytes(was, "little") + 1 & 0xFFFF
            self._enter(address, was, raised.to_bytes(_SEMAPHORE, "little"))

    def _read(self, address: int, size: int) -> bytes:
        try:
            return self.memory.read(address, size)
        except Unavailable as error:
            raise TargetError(
                f"process {self._pid}: {error}", "look whether it still runs"
            ) from error

    def _left_behind(self, address: int) -> TargetError:
        return TargetError(
            f"process {self._pid} has a breakpoint at {address:#x} without a debugger: a "
            "debugger was killed while it traced, or bpftrace, perf or SystemTap is tracing there",
            f"end these tools; if none runs, virtrace rescue {self._pid}",
        )

    def _enter(self, address: int, was: bytes, written: bytes) -> None:
        self._entered.add(address)
        os.write(self._file, _line([address, was.hex(), written.hex()]))

    def entries(self) -> JournalEntries:
        return _parse(os.pread(self._file, _LARGEST, 0))

    def remove(self) -> None:
        """Remove the file, when nothing is left in the process."""
        with suppress(OSError), files.cache_folder(_KIND) as folder:
            os.unlink(self._name, dir_fd=folder)

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors that the guard needs, of memory and journal."""
        return self.memory.descriptor, self._file

    def close(self) -> None:
        self.memory.close()
        os.close(self._file)


def read_journal(process: Process) -> JournalEntries | None:
    """The journal that an earlier trace of this very process left; None if there is none."""
    try:
        with files.cache_folder(_KIND) as folder:
            return _parse(files.read_trusted(folder, _name(process), _LARGEST))
    except (OSError, ValueError):
        return None


def _name(process: Process) -> str:
    return f"{process.pid}-{process.start_time}"


def _is_old(name: str, folder: int) -> bool:
    """Whether it is old and its process is gone, or in a PID namespace that is not visible here."""
    if os.path.exists(f"/proc/{name.partition('-')[0]}"):
        return False
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return time.time() - status.st_mtime > _KEPT_SECONDS


def _is_journal(name: str, folder: int) -> bool:
    """Whether both its name and its content are a journal's. Other files here are not ours."""
    if not _NAME.fullmatch(name):
        return False
    try:
        _parse(files.read_trusted(folder, name, _LARGEST))
    except (OSError, ValueError, TypeError):
        return False
    return True


def _line(entry: object) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parse(data: bytes) -> JournalEntries:
    """Raises: ValueError. An incomplete last line is left out: GDB had not acted on it."""
    try:
        header, *entries = map(json.loads, data.split(b"\n")[:-1])
        fingerprints = tuple(
            Fingerprint(given.address(at), _content(content)) for at, content in header
        )
        patches = tuple(
            PatchedBytes(given.address(at), _content(was), _content(written))
            for at, was, written in entries
        )
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    # They prove that the addresses still mean what they meant.
    if not fingerprints or not all(module.content for module in fingerprints):
        raise ValueError("it has no fingerprints of the modules")
    if not all(0 < len(patch.was) == len(patch.written) for patch in patches):
        raise ValueError("a patch has another size than what it replaced")
    return JournalEntries(fingerprints, patches)


def _content(digits: object) -> bytes:
    return bytes.fromhex(given.text(digits))
