"""A process that outlives GDB, and takes its breakpoints out of the daemon where it dies.

Killed by SIGKILL (the kernel's, when memory runs out), GDB leaves its breakpoints in the daemon,
and the next thread that meets one ends the daemon. The guard holds the other end of a socket that
only GDB has, and that the kernel closes when GDB's last thread ends.
"""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from virtrace.guard import restore
from virtrace.guard.journal import Journal

_STANDS_BY = _ENDED_WELL = b"."
_NEVER, _LATE = -1000, -900  # of what the kernel ends when memory runs out


class Guard:
    """Stands by from when it is made until ``release``."""

    def __init__(self, journal: Journal, pid: int) -> None:
        """pid: of the process that is traced. Nothing may be attached yet. OSError: no guard."""
        self._journal = journal
        self._socket, its = socket.socketpair()
        child = os.fork()
        if child == 0:
            _stand_by(its, journal, pid)
        its.close()
        os.waitpid(child, 0)
        if self._socket.recv(1) != _STANDS_BY:
            raise OSError("it did not start")
        self._oom_before = _prefer_to_live(_LATE)

    def release(self) -> None:
        """GDB is done with the process. What it left there all the same, the guard takes back."""
        if not self._journal.read().left_behind(self._journal.memory):
            self._journal.remove()
            with suppress(OSError):
                self._socket.send(_ENDED_WELL)
        self._socket.close()
        self._journal.close()
        if self._oom_before is not None:
            _prefer_to_live(self._oom_before)


def _stand_by(gdb: socket.socket, journal: Journal, pid: int) -> NoReturn:
    """In the child: a process that nobody waits for, and no signal but SIGKILL ends."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.setsid()
        if os.fork():
            os._exit(0)
        with suppress(OSError), open("/proc/self/comm", "w") as name:
            name.write("virtrace-guard")
        _prefer_to_live(_NEVER)
        # It sleeps until it matters, and then must not queue behind others.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        _close_all_but(gdb.fileno(), *journal.descriptors())
        gdb.send(_STANDS_BY)
        if gdb.recv(1) != _ENDED_WELL:
            _rescue(journal, pid)
    finally:
        # Never back into what is GDB's.
        os._exit(0)


def _rescue(journal: Journal, pid: int) -> None:
    places = journal.read().left_behind(journal.memory)
    restore.take_back(journal.memory, places)
    stopped = restore.let_run(pid)
    journal.remove()
    told = f"virtrace: GDB was killed; what it left in process {pid} at {len(places)} places"
    told += " was taken back" + (", and the process let run again" if stopped else "")
    with suppress(OSError):
        os.write(2, f"{told}\n".encode())


def _close_all_but(*kept: int) -> None:
    """And standard error, to say there what was done."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, *kept):
            # The folder that was listed is closed already.
            with suppress(OSError):
                os.close(int(name))


def _prefer_to_live(score: int) -> int | None:
    """Tell the kernel whom to end last; what it was before, None where it is not ours to say."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            before = int(file.read())
            file.seek(0)
            file.write(str(score))
    except OSError:
        return None
    return before
