"""Errors shown to the user, each with its remedy and its exit status.

Whoever raises one says what is wrong and what to do about it. Only the outermost
layer (the command line, or the script inside GDB) prints, on standard error:
``virtrace: what is wrong`` and ``try: what to do``.
"""

from __future__ import annotations

import os
import shlex

DONE = 0
ANSWER_IS_NO = 1
BAD_INPUT = 2
NOT_TRACED = 3
INCOMPLETE = 4
INTERRUPTED = 130


def typed(file: str | os.PathLike[str]) -> str:
    """Quote a file name for a command that the user will type: one word, and no option.

    >>> print(typed("my trace.jsonl"), typed("-rf"))
    'my trace.jsonl' ./-rf
    """
    name = os.fspath(file)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


class VirtraceError(Exception):
    """An error that the user can act on. is_told: whether another process has printed it."""

    exit_status = BAD_INPUT
    is_told = False

    def __init__(self, what: str, remedy: str, *more: str) -> None:
        """more: lines below the remedy, such as the choices."""
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.more = more

    def lines(self) -> list[str]:
        """Return the lines to print, one by one: a newline within one comes from a stranger."""
        below = (f"     {line}" for line in self.more)
        return [f"virtrace: {self.what}", f"try: {self.remedy}", *below]


class Unavailable(Exception):
    """A value that cannot be known; the message is the reason."""


class UsageError(VirtraceError):
    """The command line, or a setting, is invalid."""


class RecipeError(VirtraceError):
    """A recipe is missing or invalid; ``what`` names file, line and column."""


class TraceError(VirtraceError):
    """A trace cannot be read or written."""


class LabError(VirtraceError):
    """The private libvirt daemon could not be set up."""

    exit_status = NOT_TRACED


class TargetError(VirtraceError):
    """The process cannot be traced, and was not modified."""

    exit_status = NOT_TRACED


class EngineError(TargetError):
    """An engine cannot trace a process that another engine may be able to trace."""


class IncompleteError(VirtraceError):
    """A trace was written, but it is incomplete."""

    exit_status = INCOMPLETE


class OwnError(VirtraceError):
    """A bug in virtrace."""

    exit_status = NOT_TRACED

    def __init__(self, fault: Exception) -> None:
        super().__init__(
            f"internal error: {type(fault).__name__}: {fault}",
            "report it, with the output of VIRTRACE_DEBUG=1",
        )


def incomplete(failure: Exception) -> IncompleteError:
    """Turn the error that ended a trace into one for the user."""
    if isinstance(failure, VirtraceError):
        return IncompleteError(failure.what, failure.remedy, *failure.more)
    return IncompleteError(
        f"internal error, the trace ended: {type(failure).__name__}: {failure}",
        "report it, with the output of VIRTRACE_DEBUG=1; everything traced before is complete",
    )
