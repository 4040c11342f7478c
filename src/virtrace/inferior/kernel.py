"""Registers and memory of a stopped thread, from the kernel itself. Does not need gdb.

GDB unwinds a frame before it gives a register of it, which takes longer than all the rest that is
done at a probe. It traces the process from the thread that its Python runs on, so that the kernel
answers this thread as well. Nothing is ever written.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping

from virtrace.binary.abi import Abi
from virtrace.errors import TargetError, Unavailable

_GETREGS = 12  # PTRACE_GETREGS of <sys/ptrace.h>, where Abi.user_registers is known
# Of what it gives; more than any machine has.
_REGISTERS_SIZE = 1024


class Kernel:
    """Of a process that GDB is attached to. Code is read as it is, breakpoints and all."""

    def __init__(self, pid: int, abi: Abi) -> None:
        self._names = abi.user_registers
        self._layout = struct.Struct(f"={len(self._names)}Q")
        self._ptrace = ctypes.CDLL(None).ptrace
        self._ptrace.argtypes = ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
        self._ptrace.restype = ctypes.c_long
        self._found = ctypes.create_string_buffer(_REGISTERS_SIZE)
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TargetError(
                f"the memory of process {pid} cannot be read: {error.strerror}",
                "run `virtrace doctor`",
            ) from error

    def close(self) -> None:
        os.close(self._memory)

    def registers(self, tid: int) -> Mapping[str, int]:
        """By name; none where the kernel does not give them, or their order is not known."""
        if not self._names or self._ptrace(_GETREGS, tid, None, self._found):
            return {}
        return dict(zip(self._names, self._layout.unpack_from(self._found)))

    def read(self, address: int, size: int) -> bytes:
        """Unavailable where not all of it can be read."""
        try:
            found = os.pread(self._memory, size, address)
        except (OSError, OverflowError):
            found = b""
        if len(found) != size:
            raise Unavailable(f"cannot read memory at {address:#x}")
        return found
