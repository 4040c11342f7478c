"""Puts together what a trace needs: symbols, guard, recorder and view, around one trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from virtrace.binary.abi import Abi
from virtrace.binary.source import Sources
from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engine.tracer import RawEvent
from virtrace.errors import TargetError
from virtrace.guard.journal import Journal
from virtrace.guard.process import Guard
from virtrace.image.process import Process
from virtrace.inferior import target
from virtrace.inferior.backtrace import Backtraces
from virtrace.inferior.recorder import Recorder, WritingProcess
from virtrace.inferior.session import GdbTrace, Means, Traced
from virtrace.inferior.terminal import terminal_without_gdb
from virtrace.inferior.witness import resolved
from virtrace.plan.infer import infer
from virtrace.plan.model import LineSite, Plan, StaticProbeSite
from virtrace.plan.resolve import convention_of, require_traceable
from virtrace.plan.witness import installed_packs
from virtrace.printing import complain
from virtrace.recipe.model import Recipe
from virtrace.record.job import Job
from virtrace.record.live import TerminalView
from virtrace.targets import target_of
from virtrace.targets.hazards import Look
from virtrace.trace.rotation import new_writer
from virtrace.trace.writer import TraceWriter


@contextmanager
def assembled(job: Job, process: Process, ready: Callable[[], None]) -> Iterator[GdbTrace]:
    """A trace that can run, with GDB attached to the process and all its threads stopped.

    ready: called when every call from then on is traced
    """
    recipe = job.recipe
    abi = convention_of(process)
    with terminal_without_gdb() as terminal, target.quiet_settings(), target.no_files():
        writer = new_writer(job.output, job.rotation)
        with ExitStack() as resources:
            try:
                look = Look(process, target_of(process))
                inferred = infer(recipe, process)
                packs = installed_packs(recipe, process, job.packs)
                debug_files = {build_id: str(file) for build_id, file in job.debug_files.items()}
                resources.enter_context(
                    target.symbols(process, recipe.modules, debug_files, recipe.has_backtraces)
                )
                plan = resolved(recipe, process, packs, inferred)
                require_traceable(recipe, plan)
                backtraces = (
                    Backtraces(process, plan, packs.packs) if recipe.has_backtraces else None
                )
                journal = resources.enter_context(_guarded(recipe, process, abi, plan))
                warnings = list(_warn(look, job))
                view = TerminalView(terminal, writer, job)
                recorder = resources.enter_context(
                    closing(_recorder(job, process, plan, writer, view))
                )
                target.attach(process, recipe.modules)
            except BaseException:
                writer.discard()
                raise
            # The recorder has it.
            writer.close()
            means = Means(recorder, journal, backtraces, ready)
            yield GdbTrace(job, Traced(process, abi, plan), means, warnings)


def _recorder(
    job: Job, process: Process, plan: Plan, writer: TraceWriter, view: TerminalView
) -> Recorder:
    # The functions whose lines are traced: name, and line of the declaration.
    declared = {
        probe.name: (probe.function, site.declared)
        for probe in plan.probes
        for site in probe.sites
        if isinstance(site, LineSite)
    }
    folders = [*job.sources, *target_of(process).source_folders()]
    sources = Sources(folders, job.source_files)

    def add_source(event: RawEvent) -> None:
        if event.type == "line":
            file, line = event.values["file"], event.values["line"]
            text = sources.text(file, line, *declared[event.name])
            if text is not None:
                event.values["text"] = text

    output = Output(Answers(job.recipe.points), job.limits, writer, view, add_source)
    try:
        return Recorder(WritingProcess(output, view, job.descriptors))
    except OSError as error:
        raise TargetError(
            f"the process that writes the trace cannot be started: {error.strerror}",
            "let root have more processes and open files (ulimit -u, ulimit -n)",
        ) from error


@contextmanager
def _guarded(recipe: Recipe, process: Process, abi: Abi, plan: Plan) -> Iterator[Journal | None]:
    """Start a guard that knows where breakpoints will be; yields None if there can be none."""
    modules = [module for module in map(process.module, recipe.modules) if module is not None]
    modules += [process.linker[0]] if process.linker else []
    try:
        if abi.breakpoint is None:
            raise OSError(f"its breakpoints on {abi.machine} are not known")
        journal = Journal(process, modules, abi.breakpoint)
        guard = Guard(journal, process.pid)
    except OSError as error:
        complain(
            TargetError(
                f"the guard could not be started ({error}): if GDB is killed while it traces, "
                "the next traced call ends the daemon",
                "end the trace by Ctrl-C or SIGTERM only",
            )
        )
        yield None
        return
    try:
        for site in plan.sites:
            module = process.module(site.module)
            assert module is not None
            for address in site.addresses:
                journal.breakpoint(module.base + address)
            if isinstance(site, StaticProbeSite):
                for address in site.semaphores:
                    journal.semaphore(module.base + address)
        if process.linker is not None:
            journal.breakpoint(process.linker[1])
        yield journal
    finally:
        guard.release()


def _warn(look: Look, job: Job) -> Iterator[str]:
    """Warn about what makes this trace dangerous, before the process is stopped."""
    for hazard in look.hazards(job.limits.stop_ms):
        complain(TargetError(hazard.what, hazard.remedy))
        yield hazard.what
