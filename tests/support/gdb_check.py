"""What GDB's own `virtrace check` says of a recipe."""

from __future__ import annotations

import json
import os
import subprocess

from tests.support.command import SECONDS
from virtrace.engines.gdb.launch import command
from virtrace.trace.format import Header


def checked_by_gdb(recipe: str, pid: int) -> Header:
    """The header that a trace of the process by GDB would have."""
    done = subprocess.run(
        command(f"virtrace check {recipe}"),
        env={**os.environ, "VIRTRACE_PID": str(pid)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    [line] = (line for line in done.stdout.splitlines() if line.startswith("{"))
    header: Header = json.loads(line)
    return header
