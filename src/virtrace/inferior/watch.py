"""What ends a trace from outside: signals and the time limit. Does not need gdb."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Whoever runs GDB for us sends USR1 when the command to be traced is done.
_ENDINGS = {
    signal.SIGINT: "interrupt",
    signal.SIGTERM: "interrupt",
    signal.SIGHUP: "interrupt",
    signal.SIGUSR1: "done",
}
# A GDB that dies of one of these, or is stopped by it, leaves the daemon at a breakpoint.
_HARMFUL = {signal.SIGPIPE, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_AGAIN_SECONDS = 1.0
_HELD = {*_ENDINGS, *_HARMFUL}


@contextmanager
def unsignalled() -> Iterator[None]:
    """Threads that are begun here get no signal which GDB's own thread waits for.

    GDB suspends that until a SIGCHLD comes, with the process stopped; one that the kernel gives to
    another thread does not wake it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Watch:
    """Holds those signals back from GDB, and asks for the end on a thread of its own.

    GDB would turn each Ctrl-C into a SIGINT of the daemon, and one that is still pending
    there at the detach would end the daemon. ``end`` is called with the footer's reason, on
    that thread; after ``done`` it is called again once ``grace`` seconds are over.
    """

    def __init__(self, seconds: float | None, grace: float, end: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._grace = grace
        self._end = end
        self._closing = False
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
        with unsignalled():
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing = True
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGUSR1)
        self._thread.join()
        # What came late was meant for the trace, and that has ended.
        while signal.sigtimedwait(_HELD, 0):
            pass
        # Not USR1: it may be sent when the trace has just ended, and would end GDB.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD - {signal.SIGUSR1})

    def _wait(self) -> None:
        timeout, at_timeout = self._seconds, "limit"
        while True:
            came = (
                signal.sigwaitinfo(_ENDINGS)
                if timeout is None
                else (signal.sigtimedwait(_ENDINGS, timeout))
            )
            if self._closing:
                return
            reason = _ENDINGS[signal.Signals(came.si_signo)] if came else at_timeout
            timeout, at_timeout = (self._grace, "done") if reason == "done" and came else (None, "")
            try:
                self._end(reason)
            except Exception:
                # Nobody else can end the trace.
                timeout, at_timeout = _AGAIN_SECONDS, reason
