"""Commands that read what others made do that in a child without rights."""

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
from virtrace.errors import DONE, INCOMPLETE, IncompleteError
from virtrace.files import create_private, open_input
from virtrace.report.highlight import prepare, style_for
from virtrace.trace.format import Header
from virtrace.trace.reader import TraceStream

# Does the work on the files that are open, and on a new one for what is made of them (-1: none).
Work = Callable[[Sequence[BinaryIO], int], int]

_MEMORY = 1 << 30
# More of it for the size of the files, which a trace can have compressed to a twentieth.
_SECONDS, _SECONDS_EACH_MIB, _PACKED = 120, 2, 20


def run_in_child(
    args: argparse.Namespace,
    inputs: Sequence[str],
    work: Work,
    output: Path | None = None,
    what: str = "",
    kind: str = "the trace",
) -> int:
    """The exit status of the work. Whatever it needs besides is imported and read before.

    args: of the command; done here and now where virtrace is not run as a program. output: the
    file to be made, which is none where the work fails; what: it is, for messages; kind: what the
    inputs are.
    """
    files = [open_input(path, kind) for path in inputs]
    made = -1 if output is None else create_private(output, what)
    try:
        status = _done(args, inputs, files, partial(work, files, made))
    except IncompleteError:
        # It is written, and says all that there was.
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
    if output is not None and status not in (DONE, INCOMPLETE):
        output.unlink()
    return status


def read_header(path: str) -> Header:
    """Of a trace or a bundle."""

    def begin() -> Callable[[Tell], Header]:
        file = open_input(path)
        _prepare_for(file)
        return lambda _: TraceStream(path, file).header

    header: Header = run(path, begin, Bounds())
    return header


def _prepare_for(file: BinaryIO) -> bool:
    """Whether it is compressed: then what unpacks it is imported."""
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
    prepare(style_for(sys.stdout))
    bounds = Bounds(_MEMORY, seconds, seconds)
    return status_of(" and ".join(inputs), partial(handled, work), bounds)
