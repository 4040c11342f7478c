"""A process of our own beside this one: no child of it, and no signal but SIGKILL ends it."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress


def begin(name: str, kept: Collection[int], work: Callable[[], object]) -> None:
    """Fork it; it does the work and ends. OSError where there can be none.

    name: at most 15 bytes. kept: of the descriptors all that it keeps, but standard error.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.setsid()
            # Not a child of GDB, which waits for every one that it has.
            if os.fork() == 0:
                with suppress(OSError), open("/proc/self/comm", "w") as comm:
                    comm.write(name)
                _close_all_but(kept)
                # The kernel copies what is looked at for garbage.
                gc.freeze()
                work()
        finally:
            # Never back into what is GDB's.
            os._exit(0)
    os.waitpid(child, 0)


def _close_all_but(kept: Collection[int]) -> None:
    """And standard error, to say there what was done."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, *kept):
            # The folder that was listed is closed already.
            with suppress(OSError):
                os.close(int(name))
