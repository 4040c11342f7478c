"""Reading the memory of a program: of a process through /proc, or a copy of a part of it."""

from __future__ import annotations

import os
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from virtrace.errors import TargetError, Unavailable

PAGE = 4096
# Bytes. libvirt itself refuses a QMP reply longer than 10 MiB (QEMU_MONITOR_MAX_RESPONSE).
MAX_STRING = 16 << 20
MAX_READ = 1 << 20

# Bytes that are copied: of one stack, of all, and below the stack pointer (AMD64 ABI, 3.2.2: the
# red zone).
_MOST_STACK = 1 << 20
_MOST_STACKS = 64 << 20
_RED_ZONE = 128
# Of a thread's stack, by default: with its guard page, and without.
STACK_SIZES = (8 << 20, (8 << 20) - PAGE)
_WORD = struct.Struct("<Q")


class Memory(Protocol):
    """Memory that can only be read."""

    def read(self, address: int, size: int) -> bytes:
        """Read all of it. Raises: Unavailable if any byte of it cannot be read."""


class PartialMemory(Memory, Protocol):
    """Memory that can also be read in part."""

    def read_available(self, address: int, size: int) -> bytes:
        """Read up to the first byte that cannot be read."""


class ProcessMemory:
    """The memory of a live process as it is, a tracer's breakpoints included.

    ``/proc/PID/mem`` needs no ptrace and stops nothing. The descriptor stays that of this very
    process, even if another one gets its pid later.
    """

    def __init__(self, pid: int | str, *, writable: bool = False) -> None:
        """Open it. Raises: OSError."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        self.descriptor = os.open(f"/proc/{pid}/mem", mode | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        data = self.read_available(address, size)
        if len(data) != size:
            raise Unavailable(f"cannot read memory at {address:#x}")
        return data

    def read_available(self, address: int, size: int) -> bytes:
        try:
            return os.pread(self.descriptor, size, address)
        except (OSError, OverflowError):
            return b""

    def close(self) -> None:
        os.close(self.descriptor)


def open_memory(pid: int, *, writable: bool = False) -> ProcessMemory:
    """Open the memory of a process. Raises: TargetError."""
    try:
        return ProcessMemory(pid, writable=writable)
    except OSError as error:
        raise TargetError(
            f"the memory of process {pid} cannot be opened: {error.strerror}",
            "run as root (sudo); `virtrace doctor` says what is missing",
        ) from error


@dataclass(frozen=True)
class MemoryCopy:
    """A part of a memory as it was when it was copied.

    start: address of the first byte.
    is_cut: the part was too large to be copied to its end.
    """

    start: int
    data: bytes
    is_cut: bool

    def read(self, address: int, size: int) -> bytes:
        at = address - self.start
        if at < 0 or size < 0 or at + size > len(self.data):
            raise Unavailable(f"no copy was made of the memory at {address:#x}")
        return self.data[at : at + size]

    def words(self, address: int) -> Iterator[tuple[int, int]]:
        """Every word from an address on, in 64 bits, after its own address."""
        at = address - self.start
        if 0 <= at <= len(self.data):
            data = self.data[at : len(self.data) - (len(self.data) - at) % _WORD.size]
            for number, (word,) in enumerate(_WORD.iter_unpack(data)):
                yield address + number * _WORD.size, word


NO_STACK = MemoryCopy(0, b"", is_cut=True)


def stack_ranges(ranges: Iterable[tuple[int, int]], blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Part mappings where one thread's stack ends, as those of several can share a mapping.

    ranges: first address and end of each mapping
    blocks: where each thread's own block of the C library is: in the upper end of its stack (in
        memory of its own, for the main thread)
    """
    ends = sorted({*blocks})
    found = []
    for start, end in sorted(ranges):
        for block in ends[bisect_right(ends, start) : bisect_left(ends, end)]:
            found.append((start, block))
            start = block
        found.append((start, end))
    return found


class StackCopier:
    """Copies the stacks of one look at a program, up to a total that no daemon reaches."""

    def __init__(self, memory: PartialMemory, ranges: Iterable[tuple[int, int]]) -> None:
        """ranges: first address and end of all that may be one stack."""
        self._memory = memory
        self._ranges = sorted(ranges)
        self._left = _MOST_STACKS

    def copy(self, sp: int | None) -> MemoryCopy:
        """Copy a stack, from the red zone on to the end of its range.

        sp: the stack pointer; None if it is not known.
        """
        if sp is not None:
            index = bisect_right(self._ranges, (sp, sys.maxsize)) - 1
            start, end = self._ranges[index] if index >= 0 else (0, 0)
            if sp < end:
                first = max(start, sp - _RED_ZONE)
                size = min(end - first, _MOST_STACK, self._left)
                data = self._memory.read_available(first, size)
                self._left -= len(data)
                return MemoryCopy(first, data, is_cut=len(data) < end - first)
        return NO_STACK


class Recorded:
    """A memory of which only pieces were kept: of a page with a string, only the string."""

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def string(self, address: int) -> bytes:
        """The C string there, without its NUL. Raises: Unavailable if it is incomplete."""
        raise NotImplementedError


def read_string(memory: Memory, address: int) -> bytes:
    """Read the C string at an address, without its NUL, in few reads, none behind its last page.

    Raises: Unavailable.
    """
    if address == 0:
        raise Unavailable("NULL pointer")
    if isinstance(memory, Recorded):
        return memory.string(address)
    found = bytearray()
    size = PAGE - address % PAGE
    while len(found) < MAX_STRING:
        try:
            chunk = memory.read(address + len(found), size)
        except Unavailable:
            if size <= PAGE:
                raise
            size = PAGE
            continue
        end = chunk.find(b"\0")
        if end >= 0:
            return bytes(found + chunk[:end])
        found += chunk
        size = min(size * 2, MAX_READ) // PAGE * PAGE or PAGE
    raise Unavailable(f"no end of the string within {MAX_STRING >> 20} MiB")
