"""A helper process that is not a child of its parent; only SIGKILL ends it early."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress


def spawn(name: str, keep_fds: Collection[int], work: Callable[[], object]) -> None:
    """Run the work in a new process, which then ends.

    name: the process's name, at most 15 bytes.
    keep_fds: the descriptors that stay open in it, besides standard error.
    Raises: OSError if no process can be started.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            os.setsid()
            # Forked twice: GDB waits for every child that it has.
            if os.fork() == 0:
                with suppress(OSError), open("/proc/self/comm", "w") as comm:
                    comm.write(name)
                _close_all_but(keep_fds)
                # A garbage collection would touch, and so copy, every page shared with the parent.
                gc.freeze()
                work()
        finally:
            # Never return into the parent's code.
            os._exit(0)
    os.waitpid(child, 0)


def _close_all_but(keep_fds: Collection[int]) -> None:
    """Close all other descriptors; standard error stays open for messages."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, *keep_fds):
            # The descriptor of the listing itself is closed by now.
            with suppress(OSError):
                os.close(int(name))
