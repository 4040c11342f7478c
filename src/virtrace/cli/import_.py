"""``virtrace import``: make a trace from the output of a compiled recipe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from virtrace.cli.without_rights import run_in_child
from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engines.bpftrace.recorded import BrokenLine, Happened, Lines, Replayer
from virtrace.errors import DONE, INCOMPLETE, IncompleteError, TraceError, typed
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import StaticProbeSite
from virtrace.recipe import loader, selection
from virtrace.record.job import Job
from virtrace.trace.format import Event, Footer, Header, SwitchedOff, Target
from virtrace.trace.writer import Writer

_LONGEST_LINE = 1 << 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "import",
        description="Make a trace of what a program of `virtrace recipe compile` printed.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="what the program printed")
    parser.add_argument(
        "-o", "--output", metavar="TRACE", type=Path, required=True, help="must not exist"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    writer = Writer(args.output)
    try:
        work = partial(_import, args, writer)
        status = run_in_child(args, [str(args.file)], work, kind="the output")
    except IncompleteError:
        writer.close()
        raise
    except BaseException:
        writer.discard()
        raise
    if status in (DONE, INCOMPLETE):
        writer.close()
    else:
        writer.discard()
    return status


def _import(args: argparse.Namespace, writer: Writer, files: Sequence[BinaryIO], _: int) -> int:
    stream = files[0]
    plan, first = _look_through(args.file, stream)
    recipe = loader.from_document(plan.header["recipe"], str(args.file))
    pid = plan.header["target"]["pid"]
    job = Job(recipe, pid, args.output, selection.parse_selection(recipe, [], None, None))
    output = Output(Answers(recipe.points), job.limits, writer, _NullView())
    replayer = Replayer(job, plan, output, pid)
    lines = Lines(replayer.event, replayer.lost)
    assert first.started is not None
    replayer.begin(first.started)
    broken, first_broken = _feed(args.file, stream, lines)
    lines.finish()
    replayer.finish("interrupt" if lines.ended else "error", lines.lost_events)
    failure = replayer.recording.ending.failure
    if failure is not None:
        raise failure
    print(f"{args.output}: next: virtrace show {typed(args.output)}")
    if broken:
        raise IncompleteError(
            f"lines of {args.file} that are not what a program of virtrace makes bpftrace print "
            f"were left out: {broken} in all, the first of them line {first_broken}",
            "let it print to a file of its own (2> errors): there may be calls missing now",
        )
    return INCOMPLETE if replayer.recording.lost or not lines.ended else DONE


class _NullView:
    """Shows nothing: everything has happened already."""

    def banner(self, header: Header) -> None: ...
    def event(self, event: Event) -> None: ...
    def switched_off(self, record: SwitchedOff) -> None: ...
    def summary(self, footer: Footer) -> None: ...


def _look_through(file: Path, stream: BinaryIO) -> tuple[StoredPlan, Lines]:
    """Return the plan, completed by what only the events show: the process, its load biases."""
    bases: dict[str, int] = {}
    pids: list[int] = []

    def note(event: Happened) -> None:
        if lines.plan is not None and event.number < len(lines.plan.plan.sites):
            site = lines.plan.plan.sites[event.number]
            pids.append(event.pid)
            if event.kind in "ep" and not isinstance(site, StaticProbeSite):
                bases.setdefault(site.file, event.ip - site.addresses[0])

    lines = Lines(note)
    _feed(file, stream, lines)
    if lines.plan is None or lines.started is None:
        raise TraceError(
            f"{file} does not begin with a plan", "import the complete output of the program"
        )
    lines.finish()
    header = lines.plan.header
    target: Target = {
        **header["target"],
        "pid": lines.started.pid or (pids or [header["target"]["pid"]])[0] or 1,
        "modules": [
            {**module, "base": f"{bases[module['path']]:#x}"}
            for module in header["target"]["modules"]
            if bases.get(module["path"], -1) >= 0
        ],
    }
    return replace(lines.plan, header={**header, "target": target}), lines


def _feed(file: Path, stream: BinaryIO, lines: Lines) -> tuple[int, int]:
    """Feed all lines; return how many were not from our program, and the number of the first."""
    broken = first = 0
    try:
        stream.seek(0)
        for number, line in enumerate(_lines(stream), 1):
            try:
                lines.feed(line)
            except BrokenLine:
                broken += 1
                first = first or number
            except TraceError as error:
                raise TraceError(f"{file}:{number}: {error.what}", error.remedy) from error
    except OSError as error:
        raise TraceError(f"cannot read {file}: {error.strerror}", "name another file") from error
    return broken, first


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline(_LONGEST_LINE):
        # What was cut short when bpftrace ended is no line.
        if line.endswith(b"\n") or len(line) == _LONGEST_LINE:
            yield line
