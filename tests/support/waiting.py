"""Waits for what happens outside of the test's process, each with a bound."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

# Bounds a wait for something that should have happened at once, also on a busy machine.
PATIENCE = 120.0
_INTERVAL = 0.01
Answer = TypeVar("Answer")


def wait_until(ask: Callable[[], Answer], what: str, seconds: float = PATIENCE) -> Answer:
    """Ask again and again until the answer is true.

    Raises:
        AssertionError: it is not true within so many seconds
    """
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(_INTERVAL)
    return answer


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended with all of its threads.

    Its memory goes first; its locks, such as that of a pid file, are held for a moment longer.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([process], [], [], PATIENCE)
        assert ended, f"process {pid} has not ended within {PATIENCE:g} s"
    finally:
        os.close(process)
