"""What an engine is: something that records a job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from virtrace.errors import TargetError, UsageError
from virtrace.image.process import Process
from virtrace.record.check import Check
from virtrace.record.debug_info import fetch_debug_files
from virtrace.record.job import Job
from virtrace.targets.processes import check_traceable, require_modules


class Engine(Protocol):
    """Traces a process with one tool of the system.

    name: in `--engine` and in a trace's header
    title: the tool's own name
    refuses: options of `virtrace record` that it cannot honour, and why
    """

    name: str
    title: str
    refuses: Mapping[str, str]

    def problem(self) -> TargetError | None:
        """Return why it cannot work on this host, as far as a quick look tells."""

    def checks(self) -> Iterator[Check]:
        """Check in full whether it works on this host, for `virtrace doctor`."""

    def run(self, job: Job, process: Process) -> int:
        """Record the job, show it on standard output, and return the exit status.

        Raises: TargetError if the process cannot be traced; IncompleteError if the trace was cut
            short
        """


def record(job: Job, engine: Engine) -> int:
    """Record the job by the engine and return the exit status.

    Everything that can be checked is checked before the process is touched.

    Raises: VirtraceError, as ``Engine.run``
    """
    _require_usable(job)
    process = check_traceable(job.pid)
    require_modules(process, job.recipe.required_modules)
    problem = engine.problem()
    if problem is not None:
        raise problem
    debug_files = {**fetch_debug_files(process, job.recipe), **job.debug_files}
    return engine.run(replace(job, debug_files=debug_files), process)


def refuse_meaningless(engine: Engine, given: Mapping[str, object]) -> None:
    """Refuse an option that the engine cannot honour.

    given: the values of the options by name; None or empty if not given

    Raises: UsageError naming the option
    """
    for name, why in engine.refuses.items():
        if given.get(name):
            raise UsageError(f"--{name} has no meaning here: {why}", "leave it out")


def _require_usable(job: Job) -> None:
    words: Sequence[str] = [*job.command, *job.selection.where.values()]
    # A replayed trace comes from a stranger and can name anything.
    try:
        has_nul = any(b"\0" in os.fsencode(word) for word in job.command)
        "".join(job.selection.where.values()).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        has_nul = True
    if has_nul or any("\0" in word for word in words):
        raise UsageError(
            "the command, or a filter, has a character that no program can be given here",
            "give another command after `--`, or another --where",
        )
    if job.command and shutil.which(job.command[0]) is None:
        raise UsageError(f"there is no command {job.command[0]}", "write the command after `--`")
