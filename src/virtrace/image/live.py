"""The image of a live process, read from /proc alone: nothing is traced, stopped or woken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from virtrace.binary import abi
from virtrace.errors import TargetError
from virtrace.image.memory import NO_STACK, MemoryCopy, StackCopier, open_memory
from virtrace.image.model import Registers, SystemCall, Thread
from virtrace.image.process import Process, heaps, stacks_of

# Attempts to read a thread before it counts as moving.
_ATTEMPTS = 3
_SWITCHES = re.compile(r"ctxt_switches:\s+(\d+)")
# The kernel's, and so that of every process here.
_ABI = abi.convention_of_machine(os.uname().machine)
_NOT_REPORTED = "/proc reports the stack pointer and the program counter only"


class LiveImage:
    """A live process.

    The registers and the stack of a thread are known only if it is proven that the thread did not
    run while they were read.
    """

    def __init__(self, process: Process) -> None:
        """Raises: TargetError if the memory of the process cannot be opened."""
        self.program = process
        self.memory = open_memory(process.pid)

    def close(self) -> None:
        self.memory.close()

    def __enter__(self) -> LiveImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def threads(self) -> Sequence[Thread]:
        """Read all threads, in the order of their ids. Raises: TargetError if none are left."""
        pid = self.program.pid
        try:
            tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
            stacks = StackCopier(self.memory, stacks_of(pid))
        except OSError as error:
            raise TargetError(
                f"the threads of process {pid} cannot be read: {error.strerror}",
                "check whether it still runs",
            ) from error
        return [*self._threads(tids, stacks)]

    def heaps(self) -> Sequence[tuple[int, int]]:
        """Private, writable memory of no file, without the stacks of threads. Raises: OSError."""
        return heaps(self.program.pid)

    def thread(self, tid: int) -> Thread:
        """Read one thread. tid: as this host counts. Raises: OSError if it has ended."""
        stacks = StackCopier(self.memory, stacks_of(self.program.pid))
        return self._thread(f"/proc/{self.program.pid}/task/{tid}", tid, stacks)

    def _threads(self, tids: Sequence[int], stacks: StackCopier) -> Iterator[Thread]:
        for tid in tids:
            # One that has ended meanwhile is left out.
            with suppress(FileNotFoundError, ProcessLookupError):
                yield self._thread(f"/proc/{self.program.pid}/task/{tid}", tid, stacks)

    def _thread(self, task: str, tid: int, stacks: StackCopier) -> Thread:
        why = ""
        try:
            for _ in range(_ATTEMPTS):
                position, stack, why = self._still(task, stacks)
                if not why:
                    break
        except PermissionError as error:
            position, stack, why = (
                _Position(None),
                NO_STACK,
                f"/proc cannot be read: {error.strerror}",
            )
        return Thread(
            tid=tid,
            name=_text(f"{task}/comm").rstrip("\n"),
            state=_state(task),
            registers=Registers({} if why else position.registers(), why or _NOT_REPORTED),
            waits_in=None if why else position.call,
            wait_channel=_wait_channel(task),
            stack=NO_STACK if why else stack,
        )

    def _still(self, task: str, stacks: StackCopier) -> tuple[_Position, MemoryCopy, str]:
        """The position and the stack of a thread, and why they cannot be used, or "".

        The kernel reports the position only while the thread is off the processor, and it counts
        each time that the thread leaves a processor. The position is read between two readings of
        that count. If the counts are equal, the thread left the processor before the first one and
        did not run until the position was read, and its stack was copied in between.
        """
        before = _switches(task)
        text = _text(f"{task}/syscall")
        position = _position(text)
        stack = stacks.copy(position.sp)
        is_same = _text(f"{task}/syscall") == text and _switches(task) == before
        if position.sp is None:
            return position, stack, "it was running"
        return position, stack, "" if is_same else "it ran while it was read"


class _Position(NamedTuple):
    """The position of a thread from /proc/PID/syscall; sp is None while the thread runs."""

    sp: int | None
    pc: int = 0
    call: SystemCall | None = None

    def registers(self) -> dict[str, int]:
        known = {} if self.sp is None else {_ABI.stack_pointer: self.sp}
        return {**known, _ABI.program_counter: self.pc}


def _position(text: str) -> _Position:
    """Parse /proc/PID/syscall.

    text: `running`; or number, arguments, sp and pc of a system call; or -1, sp and pc outside.
    """
    words = text.split()
    if len(words) < 3:
        return _Position(None)
    number, *arguments, sp, pc = (int(word, 0) for word in words)
    call = SystemCall(number, tuple(arguments)) if arguments else None
    # A thread that has ended has no stack: its sp is 0.
    return _Position(sp or None, pc, call)


def _switches(task: str) -> list[str]:
    """Return the numbers of voluntary and involuntary context switches."""
    return _SWITCHES.findall(_text(f"{task}/status"))


def _state(task: str) -> str:
    # The name before it can hold anything.
    return _text(f"{task}/stat").rpartition(")")[2].split()[0]


def _wait_channel(task: str) -> str | None:
    with suppress(PermissionError):
        name = _text(f"{task}/wchan")
        return None if name in ("", "0") else name
    return None


def _text(file: str) -> str:
    return Path(file).read_text(errors="surrogateescape")
