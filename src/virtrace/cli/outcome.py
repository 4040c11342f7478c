"""``--json`` of commands that do something: one document of what came of it.

`python -m virtrace.cli.outcome` prints its JSON Schema, which is kept as schema.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, Optional, TypedDict

from virtrace import __version__
from virtrace.cli.results import RESULTS
from virtrace.errors import OwnError, TraceError, VirtraceError
from virtrace.printing import print_lines
from virtrace.trace.document import DocumentFormat
from virtrace.trace.format import Count, Record
from virtrace.trace.schema import ShapeError, check, schema_of

FORMAT = "virtrace-outcome"
VERSION = 1
_LARGEST = 16 << 20
RecordOrNull = Optional[Record]


class ErrorRecord(TypedDict):
    """What is wrong, and what to do."""

    what: str
    remedy: str


ErrorOrNull = Optional[ErrorRecord]


class Outcome(TypedDict):
    """What came of a command. status: its exit status. result: null if there is none."""

    type: str
    format: str
    version: int
    virtrace: str
    command: str
    status: Count
    error: ErrorOrNull
    result: RecordOrNull


_DOCUMENT = DocumentFormat(FORMAT, "outcome of a command", VERSION, Outcome, _LARGEST)


def schema() -> Record:
    """Return the JSON Schema (2020-12) of an outcome, which is kept as schema.json."""
    described = _DOCUMENT.schema("The outcome of a virtrace command", "docs/scripts.md")
    described["properties"].update(type={"const": "outcome"}, command={"enum": [*RESULTS]})
    described["allOf"] = [
        {
            "if": {"properties": {"command": {"const": command}}},
            "then": {"properties": {"result": {"anyOf": [schema_of(result), {"type": "null"}]}}},
        }
        for command, result in RESULTS.items()
    ]
    return described


def run(args: argparse.Namespace, handled: Callable[[Callable[[], int]], int]) -> int:
    """Run the command, print its outcome, and return the exit status.

    handled: prints errors
    """
    with _text_to_standard_error():
        status = handled(partial(_noting_errors, args, partial(args.run, args)))
    outcome: Outcome = {
        "type": "outcome",
        "format": FORMAT,
        "version": VERSION,
        "virtrace": __version__,
        "command": args.outcome,
        "status": status,
        "error": args.error,
        "result": args.result,
    }
    print_lines(json.dumps(outcome, indent=2).split("\n"))
    return status


@contextmanager
def _text_to_standard_error() -> Iterator[None]:
    """Whoever prints, also GDB and the traced command, leaves standard output alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _noting_errors(args: argparse.Namespace, work: Callable[[], int]) -> int:
    try:
        return work()
    except (BrokenPipeError, MemoryError):
        raise
    except Exception as error:
        told = error if isinstance(error, VirtraceError) else OwnError(error)
        args.error = {"what": told.what, "remedy": told.remedy}
        raise


def keep(args: argparse.Namespace, file: BinaryIO, work: Callable[[], int]) -> int:
    """Do work in a child, and leave what is to be said of it in a file for ``take_over``."""
    try:
        return _noting_errors(args, work)
    finally:
        file.write(json.dumps([args.result, args.error]).encode())
        file.flush()


def take_over(args: argparse.Namespace, file: BinaryIO) -> None:
    """Read what a child has kept, which strangers' files may have taken over.

    Raises: TraceError
    """
    file.seek(0)
    try:
        data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ShapeError(f"it is larger than {_LARGEST >> 20} MiB")
        result, error = json.loads(data)
        check(result, Optional[RESULTS[args.outcome]])
        check(error, ErrorOrNull)
    except (ValueError, TypeError, RecursionError) as why:
        raise TraceError(
            f"the outcome of {args.outcome} cannot be told: {why}", "run it without --json"
        ) from why
    args.result, args.error = result, error


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
