"""A process that outlives GDB, and takes its breakpoints out of the daemon where it dies.

Killed by SIGKILL (the kernel's, when memory runs out), GDB leaves its breakpoints in the daemon,
and the next thread that meets one ends the daemon. The kernel lets go of what GDB traces when the
thread that traces ends, which is the one that runs Python: the guard waits for the end of that.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from virtrace import detached
from virtrace.guard import restore
from virtrace.guard.journal import Journal
from virtrace.guard.lifeline import Lifeline

_STANDS_BY = b"."
_NEVER, _LATE = -1000, -900  # of what the kernel ends when memory runs out


class Guard:
    """Stands by from when it is made until ``release``."""

    def __init__(self, journal: Journal, pid: int) -> None:
        """pid: of the process that is traced. Nothing may be attached yet. OSError: no guard."""
        self._journal = journal
        self._lifeline = Lifeline()
        try:
            self._start(pid)
        except BaseException:
            self._lifeline.let_go()
            raise
        self._oom_before = _prefer_to_live(_LATE)

    def _start(self, pid: int) -> None:
        told, tell = os.pipe()
        with open(told, "rb", buffering=0) as pipe:
            kept = (tell, *self._journal.descriptors())
            stand_by = partial(_stand_by, tell, self._lifeline, self._journal, pid)
            try:
                detached.spawn("virtrace-guard", kept, stand_by)
            finally:
                os.close(tell)
            if pipe.read(1) != _STANDS_BY:
                raise OSError("it did not start")

    def release(self) -> None:
        """GDB is done with the process. What it left there all the same is taken back."""
        try:
            _take_back(self._journal)
            self._journal.remove()
        finally:
            self._lifeline.let_go()
        self._journal.close()
        if self._oom_before is not None:
            _prefer_to_live(self._oom_before)


def _stand_by(tell: int, lifeline: Lifeline, journal: Journal, pid: int) -> None:
    """In the guard itself."""
    _prefer_to_live(_NEVER)
    # It sleeps until it matters, and then must not queue behind others.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    # Once beforehand: the kernel copies memory that GDB has too when it is first used.
    _take_back(journal)
    os.write(tell, _STANDS_BY)
    os.close(tell)
    if lifeline.wait():
        _clear_up(journal, pid, _take_back(journal))


def _take_back(journal: Journal) -> int:
    """At how many places."""
    places = journal.read().left_behind(journal.memory)
    restore.take_back(journal.memory, places)
    return len(places)


def _clear_up(journal: Journal, pid: int, places: int) -> None:
    stopped = restore.let_run(pid)
    journal.remove()
    told = f"virtrace: GDB was killed; what it left in process {pid} at {places} places"
    told += " was taken back" + (", and the process let run again" if stopped else "")
    with suppress(OSError):
        os.write(2, f"{told}\n".encode())


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
