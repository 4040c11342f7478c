"""Keeps GDB's messages from the terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import gdb


@contextlib.contextmanager
def terminal_without_gdb() -> Iterator[int]:
    """Yield a descriptor of the terminal; GDB's messages about stops and threads are discarded.

    No setting of GDB suppresses all of them, so its standard output is redirected.
    """
    gdb.flush()
    terminal = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield terminal
    finally:
        gdb.flush()
        os.dup2(terminal, 1)
        os.close(terminal)
