"""GDB's own words, kept from the terminal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import gdb


@contextlib.contextmanager
def terminal_without_gdb() -> Iterator[int]:
    """Descriptor of the terminal; GDB's words about stops and threads go nowhere meanwhile.

    No setting of GDB keeps all of them back, so its standard output is turned away.
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
