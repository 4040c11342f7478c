"""The command `virtrace`, as the tests start it: the one of this checkout."""

from __future__ import annotations

import os
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
