"""The process that writes a trace."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import wait_until


def writer_of(output: Path) -> int:
    """As soon as there is one."""
    [writer] = wait_until(lambda: writers_of(output), f"somebody writes {output}")
    return writer


def writers_of(output: Path) -> list[int]:
    """Their pids: one while a trace is written; GDB itself has the file open no longer."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text() == "virtrace-writer\n":
                files = {os.path.realpath(file) for file in comm.parent.joinpath("fd").iterdir()}
                found += [int(comm.parent.name)] * (str(output.resolve()) in files)
    return found
