"""What a user can meet, each with its remedy and its exit status.

Whoever raises one says what is wrong and what to do about it; only the outermost
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
    """A file in a command that somebody is to type: it is one word of a shell, and no option."""
    name = os.fspath(file)
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


class VirtraceError(Exception):
    """Something that stops the work and that the user can act on."""

    exit_status = BAD_INPUT

    def __init__(self, what: str, remedy: str, *more: str) -> None:
        """more: lines below the remedy, such as what there is to choose from."""
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.more = more

    def lines(self) -> list[str]:
        """To be printed one by one: a newline in one of them is a stranger's."""
        below = (f"     {line}" for line in self.more)
        return [f"virtrace: {self.what}", f"try: {self.remedy}", *below]


class Unavailable(Exception):
    """A value that cannot be known; the message is the reason."""


class UsageError(VirtraceError):
    """The command line, or a setting, cannot be acted on."""


class RecipeError(VirtraceError):
    """A recipe that is missing or broken; ``what`` names file, line and column."""


class TraceError(VirtraceError):
    """A trace file that cannot be read or written."""


class LabError(VirtraceError):
    """The private libvirtd could not be set up."""

    exit_status = NOT_TRACED


class TargetError(VirtraceError):
    """The process cannot be traced; nothing has been written to it."""

    exit_status = NOT_TRACED


class IncompleteError(VirtraceError):
    """A trace was written, but not all that was asked for is in it."""

    exit_status = INCOMPLETE


class OwnError(VirtraceError):
    """A fault of virtrace itself, for somebody to mend."""

    exit_status = NOT_TRACED

    def __init__(self, fault: Exception) -> None:
        super().__init__(
            f"internal error: {type(fault).__name__}: {fault}",
            "report it, with the output of VIRTRACE_DEBUG=1",
        )


def incomplete(failure: Exception) -> IncompleteError:
    """What ended a trace, for the person who reads it."""
    if isinstance(failure, VirtraceError):
        return IncompleteError(failure.what, failure.remedy, *failure.more)
    return IncompleteError(
        f"internal error, the trace ended: {type(failure).__name__}: {failure}",
        "report it, with the output of VIRTRACE_DEBUG=1; everything traced before is complete",
    )
