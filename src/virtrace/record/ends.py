"""How a recording ends: by a signal, a limit, the end of the command or of the process."""

from __future__ import annotations

import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from virtrace.record.command import report_status, start

# How long open calls may take to return after the traced command has ended.
GRACE_SECONDS = 5.0

# Whoever runs GDB for us sends USR1 when the traced command has ended.
_ENDINGS = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "interrupt",
    signal.SIGHUP: "interrupt",
    signal.SIGUSR1: "done",
}
# A GDB that one of these ends or stops leaves the daemon at a breakpoint.
_HARMFUL = {signal.SIGPIPE, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_RETRY_SECONDS = 1.0
_HELD_BACK = {*_ENDINGS, *_HARMFUL}


class Calls(Protocol):
    """The calls that a tracer has counted.

    calls_done: calls that have returned
    calls_open: calls that have not
    """

    @property
    def calls_done(self) -> int: ...

    @property
    def calls_open(self) -> int: ...


class Ending:
    """Decides when a recording ends, and why.

    reason: as in the footer: the first that was requested, or ``error``; None before the end
    failure: the first exception that broke the recording
    """

    def __init__(self, most_calls: int | None, calls: Calls) -> None:
        self.reason: str | None = None
        self.failure: Exception | None = None
        self._most_calls = most_calls
        self._calls = calls
        self._command_has_ended = False

    def request(self, reason: str) -> None:
        """End the recording; for ``done``, once no call is open.

        A second ``done`` ends it even so: the open calls had their time.
        """
        if reason == "done" and not self._command_has_ended and self._calls.calls_open:
            self._command_has_ended = True
        elif self.reason is None:
            self.reason = reason

    def fail(self, error: Exception) -> None:
        """End the recording because of an error, whatever else was requested."""
        self.failure = self.failure or error
        self.reason = "error"

    def is_due(self) -> bool:
        """Whether the recording ends now; to be asked after each event."""
        if self.reason is None:
            if self._most_calls is not None and self._calls.calls_done >= self._most_calls:
                self.reason = "limit"
            elif self._command_has_ended and not self._calls.calls_open:
                self.reason = "done"
        return self.reason is not None


class Outside:
    """What ends a recording from outside, for an engine that asks for it from time to time.

    target: a pidfd of the traced process
    seconds: how long to record; None: without a limit
    signals: the numbers of signals that have come (see ``ending_signals``)
    """

    def __init__(
        self,
        target: int,
        command: Sequence[str],
        seconds: float | None,
        signals: Sequence[int],
        traced: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Start the command, if there is one; traced: it was started before."""
        self._target = target
        self._command = command
        self._traced = traced or (start(command) if command else None)
        self._until = None if seconds is None else time.monotonic() + seconds
        self._signals = signals

    @property
    def has_target(self) -> bool:
        return not has_exited(self._target)

    def reason(self) -> str | None:
        """Return why the recording has to end, as the footer has it; None if it goes on."""
        if self._signals:
            return "interrupt"
        if self._until is not None and time.monotonic() > self._until:
            return "limit"
        if not self.has_target:
            return "target-exit"
        if self._command and (self._traced is None or self._traced.poll() is not None):
            if self._traced is not None:
                report_status(self._command, self._traced.returncode)
            return "done"
        return None


def has_exited(process: int) -> bool:
    """Return whether a process has exited. process: its pidfd."""
    return bool(select.select([process], [], [], 0)[0])


@contextmanager
def ending_signals(handle: Callable[[int], object]) -> Iterator[None]:
    """Handle the signals that end a recording by ``handle`` alone."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda came, _: handle(came)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unsignalled() -> Iterator[None]:
    """Start threads that take no signal which GDB's own thread waits for.

    GDB waits in sigsuspend for a SIGCHLD while the process is stopped; a signal that the kernel
    gives to another thread does not wake it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Watch:
    """Holds the ending signals back from GDB, and asks for the end on a thread of its own.

    GDB would turn each Ctrl-C into a SIGINT of the daemon, and one that is still pending there at
    the detach would end the daemon.

    seconds: how long to record; None: without a limit
    end: called with the footer's reason, on that thread; after ``done`` once more when the grace
        period is over
    """

    def __init__(self, seconds: float | None, end: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._end = end
        self._closing = False
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        with unsignalled():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing = True
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGUSR1)
        self._thread.join()
        # What came late was meant for the recording, and that has ended.
        while signal.sigtimedwait(_HELD_BACK, 0):
            pass
        # Not USR1: it may be sent when the recording has just ended, and would end GDB.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK - {signal.SIGUSR1})

    def _wait(self) -> None:
        timeout, at_timeout = self._seconds, "limit"
        while True:
            came = (
                signal.sigwaitinfo(_ENDINGS)
                if timeout is None
                else signal.sigtimedwait(_ENDINGS, timeout)
            )
            if self._closing:
                return
            reason = _ENDINGS[signal.Signals(came.si_signo)] if came else at_timeout
            timeout, at_timeout = (None, "")
            if reason == "done" and came:
                timeout, at_timeout = GRACE_SECONDS, "done"
            try:
                self._end(reason)
            except Exception:
                # Nothing else can end the recording.
                timeout, at_timeout = _RETRY_SECONDS, reason
