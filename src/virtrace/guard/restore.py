"""Restores a process that GDB modified, through /proc/PID/mem; nobody may be tracing it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from virtrace.guard.journal import PatchedBytes
from virtrace.image.memory import ProcessMemory
from virtrace.image.process import read_status

# A stop that GDB sent to a thread may arrive this long after GDB's death.
_STOPS_ARRIVE_SECONDS = 0.2


def write_back(memory: ProcessMemory, patches: Iterable[PatchedBytes]) -> None:
    """Write what was there before. Raises: OSError if the kernel forbids it."""
    for patch in patches:
        os.pwrite(memory.descriptor, patch.was, patch.address)


def resume(pid: int) -> bool:
    """Undo the stop that GDB sent to the process, if one arrives; return whether one did."""
    until = time.monotonic() + _STOPS_ARRIVE_SECONDS
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
