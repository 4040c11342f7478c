"""The command that is run once every call is traced."""

from __future__ import annotations

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


def report_status(command: Sequence[str], status: int) -> None:
    """Print the exit status of a command that failed."""
    if status:
        print(f"virtrace: {command[0]} ended with {status}", file=sys.stderr)
