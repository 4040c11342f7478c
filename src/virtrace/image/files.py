"""Files on disk that no process runs, laid out as if they were mapped."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from virtrace.image.model import Module, Program

# Bytes of address space between two modules, more than any of them takes.
_APART = 1 << 32


def program_of_files(exe: Path, files: Iterable[Path]) -> Program:
    """A program of these modules, each at an address range of its own."""
    starts = range(_APART, sys.maxsize, _APART)
    modules = [
        Module(str(file), file, start, start + _APART, 0, False)
        for start, file in zip(starts, (path.resolve() for path in files))
    ]
    return Program(str(exe), Path("/"), tuple(modules))
