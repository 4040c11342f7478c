"""How long the traced process has been stopped. Does not need gdb."""

from __future__ import annotations

import time

from virtrace.trace.format import StoppedNs


class Stillness:
    """Adds up the time for which the process was stopped, and the time that GDB itself used.

    since_ns: when the time that is not yet accounted for began; CLOCK_MONOTONIC
    """

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self._total_ns = 0
        self._longest_ns = 0
        self._gdb_ns = 0
        # Processor time of GDB's thread: when GDB last began to work, and how much of it since then
        # is not charged to a probe.
        self._gdb_since_ns = 0
        self._gdb_unspent_ns = 0

    def hit(self) -> None:
        """Note that a thread has hit a probe: GDB has worked until now."""
        self._gdb_unspent_ns = time.thread_time_ns() - self._gdb_since_ns
        self._gdb_ns += self._gdb_unspent_ns

    def stopped(self) -> None:
        """Note that all threads are stopped from now on."""
        self.since_ns = time.monotonic_ns()

    def account(self, since_ns: int) -> int:
        """Account for a stop that began at ``since_ns`` and ends now, or continues.

        Returns how long it took, in ns.
        """
        now_ns = time.monotonic_ns()
        still_ns = now_ns - since_ns
        self._total_ns += still_ns
        self._longest_ns = max(self._longest_ns, still_ns)
        self.since_ns = now_ns
        self._gdb_since_ns = time.thread_time_ns()
        return still_ns

    def charge_gdb(self) -> int:
        """Return GDB's processor time, in ns, that has not been returned before."""
        spent_ns, self._gdb_unspent_ns = self._gdb_unspent_ns, 0
        return spent_ns

    def record(self) -> StoppedNs:
        """Return the totals as a footer has them, in ns."""
        return {"total": self._total_ns, "max": self._longest_ns, "gdb": self._gdb_ns}
