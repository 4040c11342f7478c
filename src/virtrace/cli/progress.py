"""How far long work has come: one line that changes, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from virtrace.printing import obeys, own
from virtrace.trace.reader import TraceStream

# After so long a user wants to know that something is going on, and then so often, in seconds.
_PATIENCE = 1.0
_PAUSE = 0.1


class Progress:
    """The line, which is gone in the end. name: of what is worked on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._can_change = obeys(sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def show(self, line: str) -> None:
        self._print(f"{self._name}: {line}")

    def clear(self) -> None:
        self._print("")

    def __exit__(self, *_: object) -> None:
        self.clear()

    def _print(self, text: str) -> None:
        if self._can_change:
            print(own("\r\x1b[K") + text, end="", file=sys.stderr, flush=True)


@contextmanager
def reading(path: str, file: BinaryIO, *, beside_output: bool = False) -> Iterator[TraceStream]:
    """A trace, with a line of how much of it was read, each time that it is.

    path: how errors name the file. beside_output: what it tells is printed meanwhile, which on a
    terminal is progress enough.
    """
    with TraceStream(path, file) as trace, Progress(Path(path).name) as progress:
        due = time.monotonic() + _PATIENCE

        def told(is_over: bool) -> None:
            nonlocal due
            if is_over:
                progress.clear()
            elif time.monotonic() >= due:
                due = time.monotonic() + _PAUSE
                done = 100 * trace.position // max(trace.size, 1)
                progress.show(f"{done} % read, {trace.count:,} events")

        if not (beside_output and sys.stdout.isatty()):
            trace.told = told
        yield trace
