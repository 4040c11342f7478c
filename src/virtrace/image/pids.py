"""Processes by the numbers that another process has for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from virtrace.image.process import read_status


class Pids:
    """Tells the processes that a daemon names by the numbers of its own PID namespace."""

    def __init__(self, daemon: int) -> None:
        self._namespace = _pid_namespace(daemon)
        self._is_ours = self._namespace == _pid_namespace(os.getpid())
        self._known: dict[int, int] | None = None

    def here(self, own_pid: int) -> int | None:
        """Return the number that this host has for a process; None if there is none."""
        if self._is_ours:
            return own_pid
        if self._known is None:
            self._known = dict(self._all())
        return self._known.get(own_pid)

    def _all(self) -> Iterator[tuple[int, int]]:
        for name in os.listdir("/proc"):
            if name.isdigit() and _pid_namespace(int(name)) == self._namespace:
                status = read_status(int(name))
                if status is not None and "NSpid" in status:
                    yield int(status["NSpid"].split()[-1]), int(name)


def _pid_namespace(pid: int) -> str | None:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return None
