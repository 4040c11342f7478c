"""Registers and memory of a stopped thread, from the kernel itself. Does not need gdb.

GDB unwinds a frame before it gives any register of it, which takes longer than everything else at
a probe. It traces the process from the thread that its Python runs in, so the kernel answers that
thread, too. Nothing is ever written.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping

from virtrace.binary.abi import Abi
from virtrace.image.memory import open_memory

_GETREGS = 12  # PTRACE_GETREGS of <sys/ptrace.h>, where Abi.user_registers is known
# Size of the buffer for registers, in bytes; more than any processor needs.
_REGISTERS_SIZE = 1024


class Kernel:
    """Registers and memory of a process to which GDB is attached, as the kernel reports them.

    memory: as it is, with breakpoints.
    """

    def __init__(self, pid: int, abi: Abi) -> None:
        """Raises: TargetError if the memory of the process cannot be opened."""
        self._names = abi.user_registers
        self._layout = struct.Struct(f"={len(self._names)}Q")
        self._ptrace = ctypes.CDLL(None).ptrace
        self._ptrace.argtypes = ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
        self._ptrace.restype = ctypes.c_long
        self._buffer = ctypes.create_string_buffer(_REGISTERS_SIZE)
        self.memory = open_memory(pid)

    def close(self) -> None:
        self.memory.close()

    def registers(self, tid: int) -> Mapping[str, int]:
        """The registers of a thread by name; none if the kernel does not give them."""
        if not self._names or self._ptrace(_GETREGS, tid, None, self._buffer):
            return {}
        return dict(zip(self._names, self._layout.unpack_from(self._buffer)))
