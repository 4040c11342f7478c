"""A live process, looked at through /proc alone: nothing is traced, stopped or woken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from virtrace.binary import abi
from virtrace.binary.abi import Abi
from virtrace.errors import TargetError
from virtrace.image.memory import NO_STACK, MemoryCopy, ProcessMemory, StackCopier
from virtrace.image.model import Registers, SystemCall, Thread
from virtrace.image.process import Process, mappings

# How often a thread is copied before it is said to move.
_ATTEMPTS = 3
_SWITCHES = re.compile(r"ctxt_switches:\s+(\d+)")
_NOT_SAID = "/proc says the stack pointer and the program counter alone"


class LiveImage:
    """A live process. Each look at its threads is new.

    A thread's registers and stack are given only where it is proven that the thread did not run
    while they were read.
    """

    def __init__(self, process: Process) -> None:
        """Raises: TargetError where the memory of the process cannot be read."""
        self.program = process
        try:
            self.memory = ProcessMemory(process.pid)
        except OSError as error:
            raise TargetError(
                f"the memory of process {process.pid} cannot be read: {error.strerror}",
                "run as root (sudo)",
            ) from error

    def close(self) -> None:
        self.memory.close()

    def __enter__(self) -> LiveImage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def threads(self) -> Sequence[Thread]:
        """Every thread, by its id. Raises: TargetError where the process has ended."""
        pid = self.program.pid
        try:
            tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
            stacks = StackCopier(self.memory, mappings(pid))
        except OSError as error:
            raise TargetError(
                f"the threads of process {pid} cannot be read: {error.strerror}",
                "look whether it still runs",
            ) from error
        return [*self._threads(tids, stacks)]

    def _threads(self, tids: Sequence[int], stacks: StackCopier) -> Iterator[Thread]:
        for tid in tids:
            # One that has ended meanwhile is left out.
            with suppress(FileNotFoundError, ProcessLookupError):
                yield self._thread(f"/proc/{self.program.pid}/task/{tid}", tid, stacks)

    def _thread(self, task: str, tid: int, stacks: StackCopier) -> Thread:
        why = ""
        try:
            for _ in range(_ATTEMPTS):
                place, stack, why = self._still(task, stacks)
                if not why:
                    break
        except PermissionError as error:
            place, stack, why = _Place(None), NO_STACK, f"/proc does not say: {error.strerror}"
        return Thread(
            tid=tid,
            name=_text(f"{task}/comm").rstrip("\n"),
            state=_state(task),
            registers=Registers({} if why else place.registers(self._abi), why or _NOT_SAID),
            waits_in=None if why else place.call,
            wait_channel=_wait_channel(task),
            stack=NO_STACK if why else stack,
        )

    def _still(self, task: str, stacks: StackCopier) -> tuple[_Place, MemoryCopy, str]:
        """Where a thread is and its stack; and why they are not to be believed, or "".

        The kernel says where a thread is only while no processor runs it, and counts each time
        that a processor leaves it. The place is read last but one, so that a count which is the
        same before and after it proves that the thread was left before the first count, and did
        not run until the place was read: while its stack was copied.
        """
        before = _switches(task)
        said = _text(f"{task}/syscall")
        place = _place(said)
        stack = stacks.copy(place.sp)
        is_same = _text(f"{task}/syscall") == said and _switches(task) == before
        if place.sp is None:
            return place, stack, "it was running"
        return place, stack, "" if is_same else "it ran while it was read"

    @cached_property
    def _abi(self) -> Abi:
        return abi.of(self.program.modules[0].elf)


class _Place(NamedTuple):
    """What /proc/PID/syscall says of a thread; sp is None while it runs."""

    sp: int | None
    pc: int = 0
    call: SystemCall | None = None

    def registers(self, names: Abi) -> dict[str, int]:
        known = {} if self.sp is None else {names.stack_pointer: self.sp}
        return {**known, names.program_counter: self.pc}


def _place(said: str) -> _Place:
    """said: `running`, or the call's number, its arguments if it is one (not -1), sp and pc."""
    words = said.split()
    if len(words) < 3:
        return _Place(None)
    number, *arguments, sp, pc = (int(word, 0) for word in words)
    call = SystemCall(number, tuple(arguments)) if arguments else None
    # A thread that has ended has no stack any more.
    return _Place(sp or None, pc, call)


def _switches(task: str) -> list[str]:
    """How often a processor left the thread, as it wished and as it did not."""
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
