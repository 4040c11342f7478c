"""Run the host's programs, within a time limit."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable

from virtrace.errors import Unavailable
from virtrace.files import Owner
from virtrace.trace.format import Json, unavailable

_SECONDS_EACH = 10.0


class Failed(Unavailable):
    """A program failed; the message contains its output, names of the host included."""


class Programs:
    """Runs programs, each for a bounded time, all of them until a deadline."""

    def __init__(self, deadline: float, owner: Owner | None = None) -> None:
        """deadline: by time.monotonic(). owner: runs the programs; None: this user."""
        self.deadline = deadline
        self._owner = owner

    def run(self, name: str, *arguments: str | bytes) -> bytes:
        """Standard output of a program.

        Raises: Unavailable: it cannot be run or takes too long; Failed: its exit status is not 0.
        """
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise Unavailable(f"{name} is not installed")
        # Names in a trace are UTF-8, whatever the locale.
        encoded = [
            argument.encode(errors="surrogatepass") if isinstance(argument, str) else argument
            for argument in arguments
        ]
        if any(b"\0" in argument for argument in encoded):
            raise Unavailable(f"{name} cannot be given a name with a NUL byte")
        seconds = min(_SECONDS_EACH, self.deadline - time.monotonic())
        if seconds <= 0:
            raise Unavailable("the time for all programs of the host is over")
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [program, *encoded],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # The plain C locale escapes every name that is not ASCII.
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            **(self._owner.credentials if self._owner else {}),
        )
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # Not waited for: if the storage hangs, not even SIGKILL ends it.
            process.kill()
            raise Unavailable(f"{name} did not end within {seconds:.1f} s") from None
        if process.returncode != 0:
            reason = errors.decode(errors="replace").strip() or f"ended with {process.returncode}"
            raise Failed(f"{name}: {reason}")
        return output


def fact(ask: Callable[[], Json]) -> Json:
    """The answer to a question, or why there is none."""
    try:
        return ask()
    except Unavailable as reason:
        return unavailable(str(reason))
