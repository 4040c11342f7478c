"""Runs in a virtual machine: what its kernel logs of faults.

    guest_faults.py PROGRAM LIBRARY FUNCTION...

Lets the program call each function, and leaves in `/results`: `log`, the kernel's log as dmesg(1)
prints it; and `pids`, one for each function.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path("/results")


def log() -> Iterator[str]:
    """The lines of the kernel's log."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    while True:
        try:
            record = os.read(log, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return
        facts, _, text = record.partition(";")
        yield f"[{int(facts.split(',')[2]) / 1e6:12.6f}] {text.splitlines()[0]}"


def main(program: str, library: str, *functions: str) -> None:
    pids = []
    for function in functions:
        with subprocess.Popen([program, library, function]) as process:
            pids.append(process.pid)
    (RESULTS / "pids").write_text("\n".join(map(str, pids)))
    (RESULTS / "log").write_text("\n".join(log()))


main(*sys.argv[1:])
