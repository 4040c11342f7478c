"""``virtrace record``: start GDB, trace by a recipe, and run the command to be traced."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from virtrace.binary.debuginfo import fetch, has_servers
from virtrace.engines.gdb.launch import command as gdb_command
from virtrace.engines.gdb.launch import end_with_us
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, IncompleteError, TargetError, UsageError
from virtrace.image.model import Program
from virtrace.image.process import Process
from virtrace.printing import OutputError
from virtrace.recipe import catalogue, selection
from virtrace.recipe.model import Recipe
from virtrace.record.command import ending_signals, say_status, started
from virtrace.targets.processes import check_traceable, choose_daemon, require_modules
from virtrace.trace.format import Record
from virtrace.trace.reader import TraceStream
from virtrace.trace.rotation import last_file
from virtrace.trace.writer import default_path, insert_before_footer

ENGINES = ("gdb", "bpftrace")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "record",
        description="Trace a libvirt daemon by a recipe until Ctrl-C, a limit, or the end of "
        "COMMAND, which is run once every call is traced.",
        usage="%(prog)s RECIPE [-p PID | --process NAME] [-o FILE] [--where KEY=VALUE]... "
        "[--calls N] [--seconds S] [--max-stop-ms N] [--max-load PERCENT] [--max-events N] "
        "[--max-bytes N] [--rotate N [--keep N]] [--source FOLDER] [--host-facts] "
        "[--engine gdb|bpftrace] [-- COMMAND...]",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"{', '.join(catalogue.shipped())}, or a recipe's file"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("-p", "--pid", type=int, help="the daemon; without it, the only one there")
    target.add_argument("--process", metavar="NAME", help="the daemon of this name")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the trace, compressed where it ends in .gz or .zst; must not exist",
    )
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="only these calls"
    )
    parser.add_argument("--calls", metavar="N", help="end after N calls")
    parser.add_argument(
        "--source", metavar="FOLDER", help="libvirt's source, for the text of its lines"
    )
    parser.add_argument("--seconds", metavar="S", help="end after S seconds")
    parser.add_argument(
        "--host-facts",
        action="store_true",
        help="add to the trace what the host says of each disk in it, once it is over",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="gdb",
        help="bpftrace: trace by uprobes; the daemon never stands still, and some is left out",
    )
    add_limits(parser)
    parser.add_argument(
        "--rotate",
        metavar="N",
        help="go on in a new file after N bytes; FILE.jsonl is FILE.000001.jsonl then, and so on",
    )
    parser.add_argument("--keep", metavar="N", help="only the last N of these files")
    parser.set_defaults(run=run)


def add_limits(parser: argparse.ArgumentParser) -> None:
    for name, (value, help_) in selection.LIMITS.items():
        parser.add_argument(f"--{name}", metavar=value, help=help_)


def limits_of(args: argparse.Namespace) -> dict[str, str]:
    """Those that the user gave, by name."""
    given = {name: getattr(args, name.replace("-", "_")) for name in selection.LIMITS}
    return {name: value for name, value in given.items() if value}


def chosen_pid(args: argparse.Namespace, modules: Collection[str] = ()) -> int:
    """The process that the options name, or the only daemon that has loaded these modules."""
    if args.pid is not None:
        return int(args.pid)
    return choose_daemon(args.process, modules)


def run(args: argparse.Namespace) -> int:
    return record_trace(
        args.recipe,
        chosen_pid(args, catalogue.find(args.recipe).required_modules),
        output=args.output,
        where=args.where,
        calls=args.calls,
        seconds=args.seconds,
        source=args.source,
        command=args.traced,
        host_facts=args.host_facts,
        limits=limits_of(args),
        rotate=args.rotate,
        keep=args.keep,
        engine=args.engine,
    )


def record_trace(
    recipe: str,
    pid: int,
    *,
    output: str | Path | None = None,
    where: Sequence[str] = (),
    calls: str | None = None,
    seconds: str | None = None,
    source: str | None = None,
    command: Sequence[str] = (),
    host_facts: bool = False,
    limits: Mapping[str, str] = MappingProxyType({}),
    rotate: str | None = None,
    keep: str | None = None,
    engine: str = "gdb",
) -> int:
    """Trace a daemon, and show it live on standard output. The exit status of errors.py.

    where, calls, seconds, host_facts, limits, rotate, keep: as the options of `virtrace record`
    have them. command: run once every call is traced; the trace ends when it and the calls it made
    have ended.
    """
    # All that can be wrong is found before the daemon is touched.
    loaded = catalogue.find(recipe)
    selected = selection.parse(loaded, where, calls, seconds)
    limited = selection.limits(limits)
    rotation = selection.rotation(rotate, keep)
    _require_words(command, where)
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"there is no command {command[0]}", "write the command after `--`")
    process = check_traceable(pid)
    require_modules(process, loaded.required_modules)
    require_gdb()
    output = Path(output) if output else default_path(loaded.name, pid)
    if engine == "bpftrace":
        # Longer to import than all that the other engine needs.
        from virtrace.engines.bpftrace import run as bpftrace

        require_bpftrace(limits)
        if source:
            raise UsageError(
                "--source has no meaning here: this engine traces no source lines", "leave it out"
            )
        resolved = bpftrace.plan(recipe, process, fetch_debug_info(process, loaded.modules))
        words = shlex.join(command) if command else None
        status = bpftrace.record(
            loaded, selected, limited, process, resolved, output, rotation, command, words
        )
        if host_facts:
            _add_host_facts(last_file(output, rotation), pid)
        return status
    settings = {
        "RECIPE": recipe,
        "PID": str(pid),
        "OUTPUT": str(output),
        "WHERE": shlex.join(where),
        "CALLS": calls or "",
        "SECONDS": seconds or "",
        "ROTATE": rotate or "",
        "KEEP": keep or "",
        **{name.upper().replace("-", "_"): value for name, value in limits.items()},
        **({"SOURCE": os.path.abspath(source)} if source else {}),
        **({"COMMAND": shlex.join(command)} if command else {}),
    }
    if debug_files := fetch_debug_info(process, loaded.modules):
        settings["DEBUG_FILES"] = json.dumps(debug_files)
    if source_files := _fetch_sources(process, loaded, debug_files):
        settings["SOURCE_FILES"] = json.dumps(source_files)
    status = _run_gdb(settings, command)
    if host_facts and status in (DONE, INCOMPLETE, INTERRUPTED):
        _add_host_facts(last_file(output, rotation), pid)
    return status


def _require_words(command: Sequence[str], where: Sequence[str]) -> None:
    """UsageError where no program can get them: a stranger's trace can name anything."""
    try:
        words = b"".join(map(os.fsencode, command))
        words += "".join(where).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        words = b"\0"
    if b"\0" in words:
        raise UsageError(
            "the command, or a filter, has a character that no program can be given here",
            "give another command after `--`, or another --where",
        )


def require_gdb() -> None:
    if shutil.which("gdb") is None:
        raise TargetError("gdb is not installed", "apt-get install gdb, or dnf install gdb")


def require_bpftrace(limits: Mapping[str, str]) -> None:
    from virtrace.cli.doctor import bpftrace_problem

    problem = bpftrace_problem()
    if problem is not None:
        raise TargetError(*problem)
    for name in ("max-stop-ms", "max-load"):
        if name in limits:
            raise UsageError(
                f"--{name} has no meaning here: this engine never keeps the daemon standing",
                "leave it out",
            )


def _add_host_facts(output: Path, pid: int) -> None:
    from virtrace.cli.host_facts import collect

    def made(file: BinaryIO) -> list[Record]:
        records.extend(collect(TraceStream(output, file), pid))
        return records

    records: list[Record] = []
    insert_before_footer(output, made)
    # Where it goes nowhere, the live view has said so.
    with suppress(OutputError):
        print(f"  host     facts of {len(records)} disks are in the trace", flush=True)


def fetch_debug_info(process: Program, modules: Sequence[str]) -> dict[str, str]:
    """Ask the user's debuginfod servers, if any, for what this host lacks.

    Files in debuginfod's own cache, by build-id. A GDB that can ask by itself does so without
    a bound and without a word.
    """
    found: dict[str, str] = {}
    # Looking for what is here means to read it.
    if not has_servers():
        return found
    for name in modules:
        module = process.module(name)
        if module is None or module.build_id is None or process.debug_info(module):
            continue
        fetched = fetch(module.build_id, name)
        if fetched is not None:
            found[module.build_id] = str(fetched)
    return found


def _fetch_sources(
    process: Process, recipe: Recipe, debug_files: Mapping[str, str]
) -> dict[str, str]:
    """The sources of the functions whose lines are traced, by the names that lines give them."""
    found: dict[str, str] = {}
    if not has_servers():
        return found
    from virtrace.binary.dwarf import source_paths

    for name in recipe.modules:
        functions = {span.function for span in recipe.spans if span.module == name and span.lines}
        module = process.module(name)
        if not functions or module is None or module.build_id is None:
            continue
        fetched = debug_files.get(module.build_id)
        installed = None if fetched else process.debug_info(module)
        debug = Path(fetched) if fetched else installed and installed.path
        for file, path in source_paths(debug, functions).items() if debug else ():
            source = fetch(module.build_id, name, path)
            if source is not None:
                found[file] = str(source)
    return found


def _run_gdb(settings: dict[str, str], command: Sequence[str]) -> int:
    ready, ready_for_gdb = os.pipe()
    # A trace that is replayed names what the locale may have no bytes for.
    environment: dict[str, str | bytes] = {**os.environ}
    for name, value in {**settings, "READY_FD": str(ready_for_gdb)}.items():
        environment[f"VIRTRACE_{name}"] = value.encode("utf-8", "surrogateescape")
    gdb = subprocess.Popen(
        gdb_command("start"),
        stdin=subprocess.DEVNULL,
        env=environment,
        pass_fds=[ready_for_gdb],
        preexec_fn=end_with_us,
    )
    os.close(ready_for_gdb)
    with open(ready, "rb") as ready_file, ending_signals(partial(_tell, gdb)):
        # Until every call is traced, or GDB has ended.
        traced = ready_file.readline() == b"ready\n"
        if traced and command:
            _run_traced(command, gdb)
        status = gdb.wait()
    if status == 1:
        # Not one of ours: GDB could not even run the script.
        from virtrace.cli.doctor import gdb_section

        problem = gdb_section().problem
        if problem is not None:
            raise TargetError(problem.text, problem.remedy or "run `virtrace doctor`")
    if status < 0:
        raise IncompleteError(
            f"GDB was ended by {signal.Signals(-status).name} while it traced",
            "every whole line of the trace counts; "
            f"`virtrace rescue {settings['PID']}` says whether anything was left in the daemon",
        )
    return status


def _run_traced(command: Sequence[str], gdb: subprocess.Popen[bytes]) -> None:
    traced = started(command)
    if traced is not None:
        say_status(command, traced.wait())
    _tell(gdb, signal.SIGUSR1)


def _tell(gdb: subprocess.Popen[bytes], number: int) -> None:
    """GDB ends the trace on these and comes clean; we wait for that."""
    if gdb.poll() is None:
        gdb.send_signal(number)
