"""Run commands that read strangers' files in a child without rights."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from virtrace.confined import Bounds, Tell, run, status_of
from virtrace.errors import ANSWER_IS_NO, DONE, INCOMPLETE, IncompleteError
from virtrace.files import create_private, open_input
from virtrace.report.highlight import prepare_colour, style_for
from virtrace.trace.format import Header
from virtrace.trace.reader import TraceStream

# Works on the opened inputs; the second argument is the new output file's descriptor, or -1.
Work = Callable[[Sequence[BinaryIO], int], int]
# Looks at the opened inputs, and imports what the work needs for them.
Prepare = Callable[[Sequence[BinaryIO]], None]

_MEMORY = 1 << 30
# More time for large files; a trace can be compressed to a twentieth.
_SECONDS, _SECONDS_EACH_MIB, _PACKED = 120, 2, 20


def run_in_child(
    args: argparse.Namespace,
    inputs: Sequence[str],
    work: Work,
    output: Path | None = None,
    what: str = "",
    kind: str = "the trace",
    prepare: Prepare | None = None,
) -> int:
    """Run ``work`` and return its exit status. Import and read before whatever it needs besides.

    args: of the command. If virtrace is not run as a program, the work is done in this process.
    output: the file to make; it is removed if the work fails.
    what: noun for the output, for messages.
    kind: noun for the inputs, for messages.
    prepare: called before; it still has our rights, and must not parse an input.
    """
    files = [open_input(path, kind) for path in inputs]
    made = -1 if output is None else create_private(output, what)
    try:
        if prepare is not None:
            prepare(files)
        status = _done(args, inputs, files, partial(work, files, made))
    except IncompleteError:
        # The output is written, and contains all that there was.
        raise
    except BaseException:
        if output is not None:
            output.unlink()
        raise
    finally:
        for file in files:
            file.close()
        if made >= 0:
            os.close(made)
    if output is not None and status not in (DONE, ANSWER_IS_NO, INCOMPLETE):
        output.unlink()
    return status


def header_by_child(path: str) -> Header:
    """Read the header of a trace or a bundle."""

    def begin() -> Callable[[Tell], Header]:
        file = open_input(path)
        _prepare_for(file)
        return lambda _: TraceStream(path, file).header

    header: Header = run(path, begin, Bounds())
    return header


def _prepare_for(file: BinaryIO) -> bool:
    """Whether the file is compressed; if so, import what unpacks it."""
    is_packed = os.pread(file.fileno(), 1, 0) != b"{"
    if is_packed:
        with suppress(ImportError):
            import zstandard  # noqa: F401
    return is_packed


def _done(
    args: argparse.Namespace,
    inputs: Sequence[str],
    files: Sequence[BinaryIO],
    work: Callable[[], int],
) -> int:
    handled = getattr(args, "handled", None)
    if handled is None:
        return work()
    seconds = _SECONDS
    for file in files:
        size = os.fstat(file.fileno()).st_size
        seconds += _SECONDS_EACH_MIB * (size >> 20) * (_PACKED if _prepare_for(file) else 1)
    prepare_colour(style_for(sys.stdout))
    bounds = Bounds(_MEMORY, seconds, seconds)
    about = " and ".join(inputs)
    if args.outcome is None:
        return status_of(about, partial(handled, work), bounds)
    from virtrace.cli import outcome

    with open(os.memfd_create("virtrace-outcome"), "w+b") as notes:
        status = status_of(
            about, partial(handled, partial(outcome.keep, args, notes, work)), bounds
        )
        outcome.take_over(args, notes)
    return status
