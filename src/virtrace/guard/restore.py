"""Taking back what GDB wrote into a process, by /proc/PID/mem: nobody may be tracing it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from virtrace.binary.process import Module, read_status
from virtrace.guard.journal import Place, read

# A stop that GDB had sent to a thread may come this long after GDB's death.
_STOPS_COME_SECONDS = 0.2


def in_code(memory: int, module: Module, breakpoint_: bytes) -> list[Place]:
    """Breakpoints in a module that its file does not have. TargetError: it cannot be read."""
    found = []
    for section in module.elf.loaded_sections().values():
        if not section.executable:
            continue
        start = module.base + section.address
        there = read(memory, start, len(section.data))
        at = there.find(breakpoint_)
        while at >= 0:
            was = section.data[at : at + len(breakpoint_)]
            if was != breakpoint_:
                found.append(Place(start + at, was, breakpoint_))
            at = there.find(breakpoint_, at + 1)
    return found


def take_back(memory: int, places: Iterable[Place]) -> None:
    """OSError where the kernel forbids to write there."""
    for place in places:
        os.pwrite(memory, place.was, place.address)


def let_run(pid: int) -> bool:
    """Undo the stop that GDB had sent to its threads, where one comes; whether one did."""
    until = time.monotonic() + _STOPS_COME_SECONDS
    while time.monotonic() < until:
        status = read_status(pid)
        if status is None:
            return False
        if status["State"].startswith("T"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            return True
        time.sleep(0.005)
    return False
