"""``virtrace record``: trace by a recipe, and run the command to be traced."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO

from virtrace import engines, wording
from virtrace.cli.arguments import add_daemon, add_json
from virtrace.engines import AUTO, ENGINES
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, NOT_TRACED, IncompleteError, UsageError
from virtrace.files import open_own
from virtrace.printing import OutputError
from virtrace.recipe import catalogue, selection
from virtrace.recipe.model import OF_QEMU, Recipe
from virtrace.recipe.selection import Limits
from virtrace.trace.format import FailureRecord, HostRecord
from virtrace.trace.rotation import last_file, parts
from virtrace.trace.writer import default_path, insert_before_footer, read_footer

if TYPE_CHECKING:
    from virtrace.cli.results import RecordResult
    from virtrace.record.engine import Engine
    from virtrace.record.job import Job
    from virtrace.targets.qemu.guests import Guest

# The module of a daemon that has guests.
_OF_GUESTS = "libvirt_driver_qemu.so"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "record",
        description="Trace a libvirt daemon with a recipe, until Ctrl-C, a limit, or the end of "
        "COMMAND, which is started when all probes are set.",
        usage="%(prog)s RECIPE [-p PID | --process NAME] [--domain NAME] [-o FILE] "
        "[--classify-writes] "
        "[--where KEY=VALUE]... [--calls N] [--seconds S] [--max-stop-ms N] [--max-load PERCENT] "
        "[--max-events N] [--max-bytes N] [--rotate N [--keep N]] [--source FOLDER] [--host-facts] "
        f"[--engine {'|'.join((AUTO, *ENGINES))}] [--json] [-- COMMAND...]",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"{', '.join(catalogue.shipped())}, or a recipe's file"
    )
    add_daemon(parser, "default: the only one that runs")
    parser.add_argument(
        "--domain", metavar="NAME", help="for a recipe of QEMU: the guest of the daemon to trace"
    )
    parser.add_argument(
        "--classify-writes",
        action="store_true",
        help="for high-water: compare what is written with the beginnings of known formats; the "
        "kernel does, and keeps none of the data",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the trace, a new file; compressed if its name ends in .gz or .zst",
    )
    parser.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="record only calls with this value",
    )
    parser.add_argument("--calls", metavar="N", help="end after N calls")
    parser.add_argument(
        "--source",
        metavar="FOLDER",
        help="folder with libvirt's source, for the text of source lines",
    )
    parser.add_argument("--seconds", metavar="S", help="end after S seconds")
    parser.add_argument(
        "--host-facts",
        action="store_true",
        help="add what the host says: as a call fails, who denied it; after the trace, about "
        "each disk in it",
    )
    parser.add_argument(
        "--engine",
        choices=[AUTO, *ENGINES],
        default=AUTO,
        help="; ".join(f"{name}: {about}" for name, about in ENGINES.items())
        + f"; {AUTO} (default): the first of these that works",
    )
    add_limits(parser)
    parser.add_argument(
        "--rotate",
        metavar="N",
        help="begin a new file every N bytes: FILE.000001.jsonl, FILE.000002.jsonl, and so on",
    )
    parser.add_argument("--keep", metavar="N", help="keep only the last N of these files")
    add_json(parser, "record")
    parser.set_defaults(run=run)


def add_limits(parser: argparse.ArgumentParser) -> None:
    for name, (value, help_) in selection.LIMITS.items():
        parser.add_argument(f"--{name}", metavar=value, help=help_)


def limits_of(args: argparse.Namespace) -> Limits:
    return selection.limits({name: option(args, name) or "" for name in selection.LIMITS})


def chosen_pid(args: argparse.Namespace, modules: Collection[str] = ()) -> int:
    """The process that the options name, or the only daemon that has loaded these modules."""
    from virtrace.targets.processes import choose_daemon

    if args.pid is not None:
        return int(args.pid)
    return choose_daemon(args.process, modules)


def run(args: argparse.Namespace) -> int:
    # Not for `--help`: they look at processes and files.
    from virtrace.record.job import Job
    from virtrace.targets.processes import program_to_start

    recipe = catalogue.find_recipe(args.recipe)
    if not args.classify_writes:
        recipe = recipe.without_contents()
    elif not recipe.classifies:
        raise UsageError(
            f"--classify-writes has no meaning here: {recipe.name} records no writes",
            "the recipe high-water does",
        )
    selected = selection.parse_selection(recipe, args.where, args.calls, args.seconds)
    limits, rotation = limits_of(args), selection.rotation(args.rotate, args.keep)
    program = qemu = None
    if recipe.waits and args.pid is None:
        if args.host_facts:
            raise UsageError(
                f"--host-facts has no meaning here: {recipe.name} waits for a daemon to start",
                "leave it out, or trace one that runs: -p PID",
            )
        program, pid, guest = program_to_start(args.process), 0, None
    else:
        pid, qemu, guest = _chosen(args, recipe)
    if qemu is not None and "domain" in recipe.filters:
        selected = replace(selected, where={"domain": args.domain, **selected.where})
    job = Job(
        recipe,
        pid,
        Path(args.output or default_path(recipe.name, pid)),
        selected,
        limits,
        rotation,
        command=args.traced,
        sources=[Path(args.source).absolute()] if args.source else [],
        packs=[catalogue.file_of(args.recipe).parent],
        guest=guest,
        program=program,
        qemu=qemu,
    )
    given = {name: option(args, name) for name in ("source", *selection.LIMITS)}
    if not args.host_facts:
        return recorded(args, job, engines.chosen(args.engine), given)
    from virtrace.host.failures import FailureWatch

    old = _files(job)
    watch = FailureWatch(job.pid)
    cut_short = None
    try:
        job = replace(job, failures=watch.told)
        status = recorded(args, job, engines.chosen(args.engine), given)
    except IncompleteError as error:
        status, cut_short = INCOMPLETE, error
    finally:
        failures = watch.records()
    # A target that could not be traced in full has a trace, too; one that refused has none.
    written = status in (DONE, INCOMPLETE, INTERRUPTED, NOT_TRACED) and _files(job) - old
    # One that was killed has no footer to add them before.
    if written and (cut_short is None or read_footer(last_file(job.output, job.rotation))):
        _add_host_facts(job, failures)
    if cut_short is not None:
        raise cut_short
    return status


def recorded(
    args: argparse.Namespace,
    job: Job,
    engines: Sequence[Engine],
    given: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Record the job, and return the exit status; with --json, note what was recorded."""
    from virtrace.record.engine import record

    if args.outcome is None:
        return record(job, engines, given)
    old = _files(job)
    try:
        return record(job, engines, given)
    finally:
        new = sorted(_files(job) - old, key=lambda file: (len(file.name), file.name))
        if new:
            args.result = _result(job, new)


def _result(job: Job, traces: Sequence[Path]) -> RecordResult:
    from virtrace.record.header import needed_but_missing
    from virtrace.trace.reader import TraceStream

    with open_own(traces[-1], "the trace") as file, open(file.fileno(), "rb", closefd=False) as own:
        header = TraceStream(traces[-1], own).header
    *before, last = map(read_footer, traces)
    footers = [footer for footer in (*before, last) if footer is not None]
    return {
        "recipe": job.recipe.name,
        "engine": header["tool"]["engine"]["name"],
        "pid": header["target"]["pid"],
        "traces": [str(trace) for trace in traces],
        "reason": last and last["reason"],
        "events": sum(footer["events"] for footer in footers),
        "dropped": sum(footer["dropped"] for footer in footers),
        "hits": last["hits"] if last else {},
        "missing": [*needed_but_missing(job.recipe, header)],
    }


def _chosen(args: argparse.Namespace, recipe: Recipe) -> tuple[int, int | None, Guest | None]:
    """The process to trace; the QEMU to trace with it; and the guest, if `--domain` names it."""
    from virtrace.targets.qemu.guests import qemu_of

    if OF_QEMU in recipe.of and args.domain is not None:
        daemon = chosen_pid(args, [_OF_GUESTS])
        qemu, guest = qemu_of(daemon, args.domain)
        return (qemu, None, guest) if recipe.of == (OF_QEMU,) else (daemon, qemu, guest)
    if args.domain is not None:
        raise UsageError(
            f"--domain has no meaning here: {recipe.name} traces a daemon of libvirt",
            "--where domain=NAME records only calls about this domain, if the recipe captures it",
        )
    if OF_QEMU in recipe.of and (args.pid is None or len(recipe.of) > 1):
        raise UsageError(
            f"{recipe.name} traces the QEMU of a guest", "--domain NAME names the guest"
        )
    return chosen_pid(args, recipe.required_modules), None, None


def option(args: argparse.Namespace, name: str) -> str | None:
    """Return the value of an option, given by its name on the command line."""
    value: str | None = getattr(args, name.replace("-", "_"))
    return value


def _files(job: Job) -> set[Path]:
    """Return the files that there are of the job's trace."""
    return {*(parts(job.output) if job.rotation else filter(Path.exists, [job.output]))}


def _add_host_facts(job: Job, failures: Sequence[FailureRecord]) -> None:
    """Add what the host said as calls failed, and, to the last file, what it says of the disks."""
    from virtrace.host.disks import collect
    from virtrace.trace.reader import TraceStream

    output = last_file(job.output, job.rotation)
    # A call can be in any of the files.
    for file in _files(job) - {output} if failures else ():
        insert_before_footer(file, lambda _: failures)

    def made(file: BinaryIO) -> list[Mapping[str, Any]]:
        records.extend(collect(TraceStream(output, file), job.pid))
        return [*records, *failures]

    records: list[HostRecord] = []
    insert_before_footer(output, made)
    # Where it goes nowhere, the live view has said so.
    with suppress(OutputError):
        disks = wording.count(len(records), "disk")
        failed = f", and of {wording.count(len(failures), 'failed call')}" if failures else ""
        print(f"  host     the trace has the facts of {disks}{failed}", flush=True)
