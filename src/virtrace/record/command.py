"""Processes that a recording starts: the tracer, and the command to be traced."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence


def start(command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """Start the command; None if it cannot be run: the recording goes on without it."""
    try:
        return subprocess.Popen(command)
    except OSError as error:
        print(f"virtrace: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return None


def end_with_us() -> None:
    """In the process of a tracer: end the trace, cleanly, if the process that started it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def report_status(command: Sequence[str], status: int) -> None:
    """Print the exit status of a command that failed."""
    if status:
        print(f"virtrace: {command[0]} ended with {status}", file=sys.stderr)
