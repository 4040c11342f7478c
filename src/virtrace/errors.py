"""What a user can meet, each with its remedy and its exit status.

Whoever raises one says what is wrong and what to do about it; only the outermost
layer (the command line, or the script inside GDB) prints, as two lines on standard
error: ``virtrace: what is wrong`` and ``try: what to do``.
"""

from __future__ import annotations

DONE = 0
ANSWER_IS_NO = 1
BAD_INPUT = 2
NOT_TRACED = 3
INCOMPLETE = 4
INTERRUPTED = 130


class VirtraceError(Exception):
    """Something that stops the work and that the user can act on."""

    exit_status = BAD_INPUT

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def lines(self) -> list[str]:
        return [f"virtrace: {self.what}", f"try: {self.remedy}"]


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


def incomplete(failure: Exception) -> IncompleteError:
    """What ended a trace, for the person who reads it."""
    if isinstance(failure, VirtraceError):
        return IncompleteError(failure.what, failure.remedy)
    return IncompleteError(
        f"an error of its own ended the trace: {type(failure).__name__}: {failure}",
        "report it, with what VIRTRACE_DEBUG=1 prints; what was traced until then is whole",
    )
