"""What either engine needs to trace a command: to start it, and to end by signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def started(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """None where it cannot be run, which is said: the trace goes on without it."""
    try:
        return subprocess.Popen(command)
    except OSError as error:
        print(f"virtrace: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return None


def say_status(command: Sequence[str], status: int) -> None:
    """Nothing of a command that ended well."""
    if status:
        print(f"virtrace: {command[0]} ended with {status}", file=sys.stderr)


@contextmanager
def ending_signals(handle: Callable[[int], object]) -> Iterator[None]:
    """Those that end a trace, in good order, do what ``handle`` does, and nothing else."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda came, _: handle(came)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
