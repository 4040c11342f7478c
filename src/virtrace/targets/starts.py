"""The start of a process: finds it as soon as it runs its program."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.image.model import Program
from virtrace.image.process import Process, read_status

# New processes that have not become the program so far; the oldest are given up.
_MOST_NEW = 200
_UNSEEN_SECONDS = 0.1
# Of a daemon that goes into the background: it forks twice, and its parents end.
_TO_BACKGROUND = re.compile("-[dlv]*d[dlv]*|--daemon")


@dataclass
class Starts:
    """Looks for the next process of a program.

    program: its files
    """

    program: Program
    _last: int = field(default_factory=lambda: _last_id())
    # Numbers without a process so far, by when they were met; processes.
    _unseen: dict[int, float] = field(default_factory=dict)
    _new: dict[int, None] = field(default_factory=dict)
    _session: int | None = None

    def look(self) -> Process | None:
        """Return the process, with the files that it is about to load; None if none has started."""
        last = _last_id()
        if last < self._last:
            # Numbers begin anew.
            self._last = 0
        ids = range(max(self._last, last - _MOST_NEW) + 1, last + 1)
        self._unseen.update(dict.fromkeys(ids, time.monotonic()))
        self._last = last
        self._see()
        for pid in [*self._new][:-_MOST_NEW]:
            del self._new[pid]
        for pid in [*self._new]:
            is_it = _runs(pid, self.program.exe)
            if is_it is None:
                del self._new[pid]
            elif is_it:
                stays = self._stays(pid)
                if stays is None:
                    continue
                del self._new[pid]
                if stays:
                    root, files = Path(f"/proc/{pid}/root"), self.program
                    return Process(files.exe, root, files.modules, pid, 0)
        return None

    def _see(self) -> None:
        """Take the numbers that processes have by now; those of threads are left out."""
        for number, since in [*self._unseen.items()]:
            status = read_status(number)
            if status is not None and int(status["Tgid"]) == number:
                self._new[number] = None
            # The kernel gives a number a moment before the process can be seen.
            if status is not None or time.monotonic() - since > _UNSEEN_SECONDS:
                del self._unseen[number]

    def _stays(self, pid: int) -> bool | None:
        """Whether it does not only fork the process that becomes the daemon; None: not known yet.

        A process has its arguments a moment after it has the program.
        """
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            session = os.getsid(pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        if not line:
            return None
        words = line.split("\0")
        if not any(map(_TO_BACKGROUND.fullmatch, words[1:])):
            return True
        if self._session is None:
            self._session = session
        # The daemon is in the session of its parent, which made it and has ended.
        return session not in (self._session, pid)


def _last_id() -> int:
    """The last number that the kernel gave to a process or a thread, behind the last space."""
    return int(Path("/proc/loadavg").read_text().rpartition(" ")[2])


def _runs(pid: int, exe: str) -> bool | None:
    """Return whether a process runs the program; None if it has ended."""
    try:
        mine = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return None
    wanted = os.stat(exe)
    return (mine.st_dev, mine.st_ino) == (wanted.st_dev, wanted.st_ino)
