"""Taking back what GDB wrote into a process, by /proc/PID/mem: nobody may be tracing it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from virtrace.guard.journal import Place
from virtrace.image.process import read_status

# A stop that GDB had sent to a thread may come this long after GDB's death.
_STOPS_COME_SECONDS = 0.2


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
