"""The command `virtrace`, as the tests start it: the one of this checkout."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from typing import Any

from tests.support.paths import REPOSITORY

VIRTRACE = (sys.executable, "-m", "virtrace.cli.main")
# Without what would change the output: the terminal's size, colours, VIRTRACE_* variables.
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(REPOSITORY / "src"),
    "LC_ALL": "C.UTF-8",
}
# Bounds a command that hangs, also where many tests run at once.
SECONDS = 180.0


def virtrace(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end. options: as of subprocess.run."""
    command = [*VIRTRACE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)


def at_a_terminal(*words: object, **variables: str) -> bytes:
    """Run the command at a terminal of its own; return what that gets. variables: as a user's."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*VIRTRACE, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", "NO_COLOR": "", **variables},
    )
    os.close(theirs)
    printed = b""
    # A terminal that is closed at its other end gives EIO.
    with contextlib.suppress(OSError):
        while data := os.read(ours, 1 << 16):
            printed += data
    os.close(ours)
    process.wait(SECONDS)
    return printed.replace(b"\r\n", b"\n")
