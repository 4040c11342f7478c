"""A process that outlives GDB and removes its breakpoints from the daemon if GDB is killed.

When GDB is killed by SIGKILL (by the kernel, when memory runs out), its breakpoints stay in the
daemon, and the next thread that hits one ends the daemon. The kernel detaches GDB's processes when
the thread that traces them ends, which is the one that runs Python: the guard waits for its end.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from virtrace import detached
from virtrace.guard import restore
from virtrace.guard.journal import Journal
from virtrace.guard.lifeline import Lifeline

_READY = b"."
# /proc/PID/oom_score_adj: which processes the kernel kills last when memory runs out.
_NEVER, _LATE = -1000, -900


class Guard:
    """Watches over a trace until ``release``."""

    def __init__(self, journal: Journal, pid: int) -> None:
        """Start the guard, before GDB attaches.

        pid: the process that will be traced.
        Raises: OSError if there can be no guard.
        """
        self._journal = journal
        self._lifeline = Lifeline()
        try:
            self._start(pid)
        except BaseException:
            self._lifeline.release()
            raise
        self._oom_before = _set_oom_score_adj(_LATE)

    def _start(self, pid: int) -> None:
        read_end, write_end = os.pipe()
        with open(read_end, "rb", buffering=0) as pipe:
            keep_fds = (write_end, *self._journal.descriptors())
            watch = partial(_watch, write_end, self._lifeline, self._journal, pid)
            try:
                detached.spawn("virtrace-guard", keep_fds, watch)
            finally:
                os.close(write_end)
            if pipe.read(1) != _READY:
                raise OSError("it did not start")

    def release(self) -> None:
        """End the guard, when GDB has detached; restore what GDB left there all the same."""
        try:
            _restore(self._journal)
            self._journal.remove()
        finally:
            self._lifeline.release()
        self._journal.close()
        if self._oom_before is not None:
            _set_oom_score_adj(self._oom_before)


def _watch(write_end: int, lifeline: Lifeline, journal: Journal, pid: int) -> None:
    """Run in the guard process."""
    _set_oom_score_adj(_NEVER)
    # It sleeps until it is needed, and must not wait for a processor then.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # Once beforehand: the first use of memory that is shared with GDB makes the kernel copy it.
    _restore(journal)
    os.write(write_end, _READY)
    os.close(write_end)
    if lifeline.wait():
        _clean_up(journal, pid, _restore(journal))


def _restore(journal: Journal) -> int:
    """Write back what GDB replaced; return how many patches were still in place."""
    patches = journal.entries().still_in_place(journal.memory)
    restore.write_back(journal.memory, patches)
    return len(patches)


def _clean_up(journal: Journal, pid: int, count: int) -> None:
    resumed = restore.resume(pid)
    journal.remove()
    locations = f"{count} location{'' if count == 1 else 's'}"
    message = f"GDB was killed: restored {locations} that it had modified in process {pid}"
    message += ", and resumed the process" if resumed else ""
    with suppress(OSError):
        os.write(2, f"virtrace: {message}\n".encode())


def _set_oom_score_adj(score: int) -> int | None:
    """Set when the kernel kills this process; return the score before, None where forbidden."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            before = int(file.read())
            file.seek(0)
            file.write(str(score))
    except OSError:
        return None
    return before
