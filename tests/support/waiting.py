"""Waits for what happens outside of the test's process, each with a bound."""

from __future__ import annotations

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
