"""Show the progress of long work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from virtrace.confined import Tell
from virtrace.record.progress import Progress
from virtrace.trace.reader import TraceStream

# Seconds until the first progress is shown, and between two updates.
_PATIENCE = 1.0
_PAUSE = 0.1


@contextmanager
def steps(patience: float = 0, stream: TextIO | None = None) -> Iterator[Tell]:
    """A function that prints what the work does next, with the seconds since it began.

    patience: seconds during which nothing is printed; the step that outlasts them is.
    stream: default: standard output.
    """
    start, current = time.monotonic(), ""

    def show() -> None:
        passed = time.monotonic() - start
        print(f"[{passed:6.1f} s] {current}", file=stream or sys.stdout, flush=True)

    def step(what: str) -> None:
        nonlocal current
        current = what
        if not timer.is_alive():
            show()

    timer = threading.Timer(patience, show)
    timer.daemon = True
    if patience:
        timer.start()
    try:
        yield step
    finally:
        timer.cancel()


@contextmanager
def reading_trace(
    path: str, file: BinaryIO, *, beside_output: bool = False
) -> Iterator[TraceStream]:
    """A trace that shows how much of it was read, each time that it is read.

    path: the file's name for errors.
    beside_output: output is printed meanwhile, which on a terminal is progress enough.
    """
    with TraceStream(path, file) as trace, Progress(Path(path).name) as progress:
        due = time.monotonic() + _PATIENCE

        def show(is_over: bool) -> None:
            nonlocal due
            if is_over:
                progress.clear()
            elif time.monotonic() >= due:
                due = time.monotonic() + _PAUSE
                done = 100 * trace.position // max(trace.size, 1)
                progress.show(f"{done} % read, {trace.count:,} events")

        if not (beside_output and sys.stdout.isatty()):
            trace.told = show
        yield trace
