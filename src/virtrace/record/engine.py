"""What an engine is: something that records a job."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from virtrace.errors import EngineError, TargetError, UsageError, VirtraceError
from virtrace.image.model import Program
from virtrace.printing import complain, print_lines
from virtrace.recipe.model import Recipe
from virtrace.record.check import Check
from virtrace.record.debug_info import fetch_debug_files
from virtrace.record.job import Job
from virtrace.targets import target_of
from virtrace.targets.processes import check_traceable, installed, require_modules


class Engine(Protocol):
    """Traces a process with one tool of the system.

    name: in `--engine` and in a trace's header
    title: the tool's own name
    refuses: options of `virtrace record` that it cannot honour, and why
    stops: whether it stops threads of the process at each hit
    resolves_here: whether it resolves the recipe in this process, not in another program
    """

    name: str
    title: str
    refuses: Mapping[str, str]
    stops: bool
    resolves_here: bool

    def problem(self) -> TargetError | None:
        """Return why it cannot work on this host, as far as a quick look tells."""

    def checks(self) -> Iterator[Check]:
        """Check in full whether it works on this host, for `virtrace doctor`."""

    def run(self, job: Job, process: Program) -> int:
        """Record the job, show it on standard output, and return the exit status.

        process: a live one, or, if the job has a program, the files of one that is to start

        Raises: EngineError if it cannot trace this process, and has written nothing; TargetError if
            the process cannot be traced at all; IncompleteError if the trace was cut short
        """


def record(
    job: Job, engines: Sequence[Engine], given: Mapping[str, object] = MappingProxyType({})
) -> int:
    """Record the job by the first engine that can, and return the exit status.

    Everything that can be checked is checked before the process is touched. Where there is a
    choice, one line says which engine records, and why not a better one.

    given: the values of options by name; None or empty if not given

    Raises: VirtraceError, as ``Engine.run``; UsageError naming an option that no engine can honour
    """
    refusals = [_refusal(engine, given) for engine in engines]
    if refusals[0] is not None and None not in refusals:
        raise refusals[0]
    _require_usable(job)
    if job.program is None:
        process: Program = check_traceable(job.pid)
    else:
        process = installed(job.program)
    if job.qemu is None:
        require_modules(process, job.recipe.required_modules)
    else:
        daemon_part, qemu_part = (job.recipe.part(of) for of in job.recipe.of)
        require_modules(process, daemon_part.required_modules)
        require_modules(check_traceable(job.qemu), qemu_part.required_modules)
    debug_files = {**fetch_debug_files(process, job.recipe), **job.debug_files}
    job = replace(job, debug_files=debug_files)
    why: VirtraceError | None = None
    for engine, refusal in zip(engines, refusals):
        problem = (
            refusal or _late(engine, job) or _halting(engine, process, is_chosen=len(engines) == 1)
        )
        if problem is None and engine.resolves_here:
            _prepare(job.recipe, process)
        problem = problem or engine.problem()
        if problem is None:
            if len(engines) > 1:
                because = "" if why is None else f": {why.what}"
                print_lines([f"tracing by {engine.title}{because}"])
                # An engine may be another program, which prints by itself.
                sys.stdout.flush()
            try:
                return engine.run(job, process)
            except EngineError as error:
                problem = error
        why = problem if why is None else TargetError(f"{why.what}; {problem.what}", problem.remedy)
    assert why is not None
    raise why


def _prepare(recipe: Recipe, process: Program) -> None:
    """Let the modules be looked through while other things are done."""
    of_static = {span.module for span in recipe.spans if span.find is not None}
    for name in recipe.modules:
        module = process.module(name)
        if module is not None:
            module.elf.prepare(calls=name in of_static)


def _refusal(engine: Engine, given: Mapping[str, object]) -> VirtraceError | None:
    """Return why an engine cannot honour an option."""
    for name, why in engine.refuses.items():
        if given.get(name):
            return UsageError(f"--{name} has no meaning here: {why}", "leave it out")
    return None


def _late(engine: Engine, job: Job) -> EngineError | None:
    """Why an engine cannot trace a process from its start."""
    if job.program is None or not engine.stops:
        return None
    return EngineError(
        f"{engine.title} takes longer to attach than a daemon to start",
        "--engine uprobes, or hold the start by a hook script: docs/daemon-start.md",
    )


def _halting(engine: Engine, process: Program, *, is_chosen: bool) -> TargetError | None:
    """Why an engine that stops threads is not used here, unless it was chosen by name."""
    target = target_of(process)
    if not engine.stops or target.halts is None:
        return None
    what = f"{engine.title} stops {target.halts} at each hit"
    if is_chosen:
        complain(TargetError(what, "--engine uprobes stops nothing"))
        return None
    return TargetError(what, f"--engine {engine.name} traces all the same")


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
