"""Reading the memory of a program: of a process through /proc, or a copy of a part of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from virtrace.errors import Unavailable

PAGE = 4096


class Memory(Protocol):
    """Memory that can only be read."""

    def read(self, address: int, size: int) -> bytes:
        """Read all of it. Raises: Unavailable where any byte of it cannot be read."""


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
        """Read up to the first byte that cannot be read."""
        try:
            return os.pread(self.descriptor, size, address)
        except (OSError, OverflowError):
            return b""

    def close(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True)
class MemoryCopy:
    """A part of a memory as it was when it was copied.

    start: address of the first byte.
    """

    start: int
    data: bytes

    def read(self, address: int, size: int) -> bytes:
        at = address - self.start
        if at < 0 or size < 0 or at + size > len(self.data):
            raise Unavailable(f"no copy was made of the memory at {address:#x}")
        return self.data[at : at + size]
