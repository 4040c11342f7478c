"""``virtrace import``: make a trace from the output of a compiled recipe."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from virtrace.binary import given
from virtrace.cli.arguments import add_json
from virtrace.cli.without_rights import run_in_child
from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engines.uprobes.compile import programs_of
from virtrace.engines.uprobes.frames import SIZE
from virtrace.engines.uprobes.hits import DamagedRecordError
from virtrace.engines.uprobes.layout import END, END_RECORD
from virtrace.engines.uprobes.program import Program, fingerprint
from virtrace.engines.uprobes.replay import Replayer
from virtrace.engines.uprobes.standalone import FORMAT, VERSION
from virtrace.errors import DONE, INCOMPLETE, NOT_TRACED, IncompleteError, TraceError, typed
from virtrace.plan.file import MAX_BYTES, StoredPlan
from virtrace.printing import print_lines
from virtrace.recipe import loader, selection
from virtrace.record.header import needed_but_missing
from virtrace.record.job import Job
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.trace.format import Event, Footer, Header, SwitchedOff, Target
from virtrace.trace.writer import Writer

if TYPE_CHECKING:
    from virtrace.cli.results import ImportResult

# A plan as text in JSON in JSON is at most twice as long.
_LONGEST_FIRST_LINE = 2 * MAX_BYTES + (1 << 16)
# More than a text with all its parts.
_LARGEST_RECORD = 1 << 21
_YEAR_10000 = 253_402_300_800


@dataclass(frozen=True)
class _Beginning:
    """The first line of the output.

    bases: load biases, by the path of the file. own_tids: as of ``Hits``.
    """

    plan: StoredPlan
    programs: Sequence[Program]
    started_ns: int
    epoch: float
    pid: int
    bases: Mapping[str, int]
    own_tids: bool


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "import",
        description="Make a trace of what a script of `virtrace recipe compile` has written.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="what the script has written")
    parser.add_argument(
        "-o", "--output", metavar="TRACE", type=Path, required=True, help="must not exist"
    )
    add_json(parser, "import")
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
    # Where a probe is missing there is a trace; where nothing could be read, the file is empty.
    if status in (DONE, INCOMPLETE, NOT_TRACED) and os.fstat(writer.descriptor).st_size:
        writer.close()
    else:
        writer.discard()
    return status


def _import(args: argparse.Namespace, writer: Writer, files: Sequence[BinaryIO], _: int) -> int:
    stream = files[0]
    beginning = _beginning(args.file, stream)
    plan = _completed(beginning)
    recipe = loader.loads(loader.dumps(plan.header["recipe"]), str(args.file))
    job = Job(recipe, beginning.pid, args.output, selection.parse_selection(recipe, [], None, None))
    view = _NullView()
    output = Output(Answers(recipe.points), job.limits, writer, view)
    replayer = Replayer(job, plan, beginning.programs, output, own_tids=beginning.own_tids)
    replayer.begin(beginning.started_ns, beginning.epoch)
    damage, lost = None, None
    try:
        for record in _records(stream):
            if record[0] == END:
                lost = _lost(record, replayer)
                break
            replayer.hits.take(record)
            if replayer.is_over:
                break
    except DamagedRecordError as error:
        damage = error
    recording = replayer.recording
    recording.lost = max(recording.lost, lost or 0)
    is_whole = lost is not None
    replayer.finish("interrupt" if is_whole else "error")
    if recording.ending.failure is not None:
        raise recording.ending.failure
    missing = needed_but_missing(recipe, plan.header)
    result: ImportResult = {
        "trace": str(args.output),
        "whole": is_whole,
        "events": view.footer["events"],
        "dropped": view.footer["dropped"],
        "missing": [*missing],
    }
    args.result = result
    print_lines(text.lacking(missing, style_for(sys.stdout)))
    print(f"{args.output}: next: virtrace show {typed(args.output)}")
    if damage is not None:
        raise IncompleteError(f"{args.file}: {damage.what}", damage.remedy)
    if not is_whole or recording.lost:
        return INCOMPLETE
    return NOT_TRACED if missing else DONE


class _NullView:
    """Shows nothing: everything has happened already. footer: with what came into the file."""

    footer: Footer

    def banner(self, header: Header) -> None: ...
    def event(self, event: Event) -> None: ...
    def switched_off(self, record: SwitchedOff) -> None: ...

    def summary(self, footer: Footer) -> None:
        self.footer = footer


def _beginning(file: Path, stream: BinaryIO) -> _Beginning:
    """Raises: TraceError where it is no output of a script that this version has compiled."""
    try:
        said = json.loads(stream.readline(_LONGEST_FIRST_LINE))
        if said["format"] != FORMAT or said["version"] != VERSION:
            raise ValueError("of another format")
        epoch = float(said["epoch"])
        if not 0 <= epoch < _YEAR_10000:
            raise ValueError("no time")
        numbers = (
            given.number(said["started_ns"], 0, (1 << 63) - 1),
            given.number(said["pid"], 1, (1 << 31) - 1),
        )
        bases = {given.text(path): given.address(base) for path, base in said["bases"].items()}
        own_tids = bool(said["own_tids"])
        data, wanted = said["plan"].encode(), said["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TraceError(
            f"{file} is not what a script of `virtrace recipe compile` writes",
            "import the complete output of the script, unchanged",
        ) from error
    plan, programs = programs_of(data)
    if fingerprint(programs) != wanted:
        raise TraceError(
            f"{file} was recorded by programs that this version of virtrace does not make",
            "import it by the version that compiled the script",
        )
    return _Beginning(plan, programs, numbers[0], epoch, numbers[1], bases, own_tids)


def _completed(beginning: _Beginning) -> StoredPlan:
    """Return the plan with what only the host could tell: the process, its load biases."""
    header = beginning.plan.header
    target: Target = {
        **header["target"],
        "pid": beginning.pid,
        "modules": [
            {**module, "base": f"{beginning.bases[module['path']]:#x}"}
            for module in header["target"]["modules"]
            if module["path"] in beginning.bases
        ],
    }
    return replace(beginning.plan, header={**header, "target": target})


def _records(stream: BinaryIO) -> Iterator[bytes]:
    """The records that are whole. Raises: DamagedRecordError."""
    while len(head := stream.read(SIZE.size)) == SIZE.size:
        (size,) = SIZE.unpack(head)
        if not 0 < size <= _LARGEST_RECORD:
            raise DamagedRecordError(f"it has {size} bytes")
        data = stream.read(size)
        if len(data) < size:
            return
        yield data


def _lost(record: bytes, replayer: Replayer) -> int:
    """Return how many events the kernel had no room for, from the last record."""
    if len(record) != END_RECORD.size:
        raise DamagedRecordError("its end has the wrong size")
    _, lost, t_ns = END_RECORD.unpack(record)
    if max(lost, t_ns) >= 1 << 63:
        raise DamagedRecordError("its end has no numbers")
    replayer.since(t_ns)
    return int(lost)
