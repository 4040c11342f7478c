"""What ended a recording in another process, which has printed it."""

from __future__ import annotations

import json

from virtrace.errors import INCOMPLETE, IncompleteError, OwnError, VirtraceError

# Of one text: a pipe that nobody reads yet takes the line as a whole.
_LONGEST = 1000


def error_line(error: Exception) -> bytes:
    told = error if isinstance(error, VirtraceError) else OwnError(error)
    return json.dumps([told.what[:_LONGEST], told.remedy[:_LONGEST]]).encode() + b"\n"


def told_error(line: bytes, status: int) -> VirtraceError:
    """Return the error of ``error_line``. status: the other process's exit status."""
    what, remedy = json.loads(line)
    error = (IncompleteError if status == INCOMPLETE else VirtraceError)(what, remedy)
    error.exit_status = status
    error.is_told = True
    return error
