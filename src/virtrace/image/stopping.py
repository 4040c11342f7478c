"""The registers of threads that run: each such thread is stopped for a moment, by ptrace.

A process of its own traces them, so that the kernel lets every thread go on when that process ends,
however it ends and whether or not it had stopped the thread by then.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from virtrace.binary.x86_64 import ABI
from virtrace.image.live import LiveImage
from virtrace.image.memory import MemoryCopy, StackCopier
from virtrace.image.model import Registers, Thread
from virtrace.image.process import Process, stacks_of

# include/uapi/linux/ptrace.h, and __WALL of wait.h.
_GETREGS, _DETACH, _SEIZE, _INTERRUPT = 12, 17, 0x4206, 0x4207
_WALL = 0x40000000
_SIZE = struct.calcsize("27Q")  # struct user_regs_struct
_PR_SET_PDEATHSIG = 1
# How long a thread may take to stop, and all of them, s. One that is on a processor stops within
# microseconds, one that waits for a processor once it has one; until then it is not stopped.
LONGEST_STOP, _LONGEST = 0.1, 2.0
_BETWEEN_LOOKS = 20e-6
_PIECE = 1 << 16


class StoppingImage(LiveImage):
    """A live process, of which the threads that run are stopped for their registers.

    pauses: for how long each of them was stopped, s. refusal: why none was stopped; "" otherwise.
    """

    def __init__(
        self, process: Process, refuse: Callable[[LiveImage, Sequence[Thread]], str]
    ) -> None:
        """refuse: by what is known of all threads, why none must be stopped; "" where they may be.

        Raises: TargetError if the memory of the process cannot be read.
        """
        super().__init__(process)
        self._refuse = refuse
        self.pauses: dict[int, float] = {}
        self.refusal = ""

    def threads(self) -> Sequence[Thread]:
        threads = super().threads()
        running = [thread.tid for thread in threads if not thread.registers.known]
        self.refusal = self._refuse(self, threads) if running else ""
        if not running or self.refusal:
            return threads
        stacks = StackCopier(self.memory, stacks_of(self.program.pid))
        found = {}
        for tid, pause, registers, stack in stopped(running, stacks):
            self.pauses[tid] = pause
            found[tid] = (Registers(registers, "the kernel did not give it"), stack)
        return [
            replace(thread, registers=found[thread.tid][0], stack=found[thread.tid][1])
            if thread.tid in found
            else thread
            for thread in threads
        ]


def stopped(
    tids: Sequence[int], stacks: StackCopier
) -> Iterator[tuple[int, float, dict[str, int], MemoryCopy]]:
    """Stop threads, one after the other, and let them go on.

    Yield of each its id, for how long it was stopped (s), its registers and its stack. Threads that
    do not stop at once are left out.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(told)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _stop_all(tids, stacks, tell)
        # What is still traced is let go by the kernel.
        os._exit(0)
    os.close(tell)
    try:
        data = _received(told)
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while data:
        header, end, data = data.partition(b"\n")
        if not end:
            return
        tid, pause, words, start, size, is_cut = json.loads(header)
        if len(data) < size:
            return
        stack = MemoryCopy(start, data[:size], is_cut)
        yield tid, pause, dict(zip(ABI.user_registers, words)), stack
        data = data[size:]


def _received(told: int) -> bytes:
    pieces = []
    until = time.monotonic() + _LONGEST
    while (left := until - time.monotonic()) > 0 and select.select([told], [], [], left)[0]:
        piece = os.read(told, _PIECE)
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


def _stop_all(tids: Sequence[int], stacks: StackCopier, tell: int) -> None:
    """What the process that traces does."""
    for tid in tids:
        try:
            interrupted, began = stop_thread(tid)
        except ProcessLookupError:
            continue
        data = ctypes.create_string_buffer(_SIZE)
        _ptrace(_GETREGS, tid, ctypes.addressof(data))
        words = struct.unpack_from(f"{len(ABI.user_registers)}Q", data)
        stack = stacks.copy(words[ABI.user_registers.index(ABI.stack_pointer)])
        _ptrace(_DETACH, tid, interrupted)
        pause = time.monotonic() - began
        fields = (tid, pause, words, stack.start, len(stack.data), stack.is_cut)
        with open(tell, "wb", closefd=False) as pipe:
            pipe.write(json.dumps(fields).encode() + b"\n" + stack.data)


def stop_thread(tid: int) -> tuple[int, float]:
    """Stop a thread.

    Return the signal that it was about to get, 0 for none, and a time by CLOCK_MONOTONIC at which
    it had not stopped yet.
    Raises: ProcessLookupError if it has ended; TimeoutError if it does not stop at once: it stays
    traced until this process ends.
    """
    _ptrace(_SEIZE, tid)
    not_yet = time.monotonic()
    _ptrace(_INTERRUPT, tid)
    until = not_yet + LONGEST_STOP
    while (now := time.monotonic()) < until:
        found, status = os.waitpid(tid, _WALL | os.WNOHANG)
        if found == tid:
            if not os.WIFSTOPPED(status):
                raise ProcessLookupError
            # A stop by PTRACE_INTERRUPT is an event; any other one is for a signal.
            return 0 if status >> 16 else os.WSTOPSIG(status), not_yet
        not_yet = now
        time.sleep(_BETWEEN_LOOKS)
    raise TimeoutError


def _ptrace(request: int, tid: int, data: int = 0) -> None:
    """Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_long(request), ctypes.c_long(tid), None, ctypes.c_void_p(data))
    if libc.ptrace(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
