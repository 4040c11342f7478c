"""``virtrace record``: start GDB, trace by a recipe, and run the command to be traced."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtrace.binary.debuginfo import fetch
from virtrace.binary.elf import debug_file
from virtrace.binary.process import Process, check_traceable, choose_daemon
from virtrace.cli.doctor import gdb_section
from virtrace.cli.host_facts import collect
from virtrace.errors import DONE, INCOMPLETE, INTERRUPTED, TargetError, UsageError
from virtrace.recipe import catalogue, selection
from virtrace.trace.format import Record
from virtrace.trace.reader import read_trace
from virtrace.trace.writer import default_path, insert_before_footer

_PACKAGE = Path(__file__).resolve().parents[1]

# Nothing of the user's, of the current folder or of a traced file is executed.
_GDB = ("gdb", "-nx", "-nh", "-q", "-batch", "-iex", "set auto-load no")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "record",
        help="trace a daemon by a recipe",
        description="Trace a libvirt daemon by a recipe until Ctrl-C, a limit, or the end of "
        "COMMAND, which is run once every call is traced.",
        usage="%(prog)s RECIPE [-p PID | --process NAME] [-o FILE] [--where KEY=VALUE]... "
        "[--calls N] [--seconds S] [--source FOLDER] [--host-facts] [-- COMMAND...]",
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help=f"{', '.join(catalogue.shipped())}, or a recipe's file"
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("-p", "--pid", type=int, help="the daemon; without it, the only one there")
    target.add_argument("--process", metavar="NAME", help="the daemon of this name")
    parser.add_argument("-o", "--output", metavar="FILE", help="the trace; must not exist")
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return record_trace(
        args.recipe,
        args.pid if args.pid is not None else choose_daemon(args.process),
        output=args.output,
        where=args.where,
        calls=args.calls,
        seconds=args.seconds,
        source=args.source,
        command=args.traced,
        host_facts=args.host_facts,
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
) -> int:
    """Trace a daemon, and show it live on standard output. The exit status of errors.py.

    where, calls, seconds, host_facts: as the options of `virtrace record` have them. command:
    run once every call is traced; the trace ends when it and the calls it made have ended.
    """
    # All that can be wrong is found before the daemon is touched.
    loaded = catalogue.find(recipe)
    selection.parse(loaded, where, calls, seconds)
    if command and shutil.which(command[0]) is None:
        raise UsageError(f"there is no command {command[0]}", "write the command after `--`")
    process = check_traceable(pid)
    require_gdb()
    output = Path(output) if output else default_path(loaded.name, pid)
    settings = {
        "PID": str(pid),
        "OUTPUT": str(output),
        "WHERE": shlex.join(where),
        "CALLS": calls or "",
        "SECONDS": seconds or "",
        **({"SOURCE": os.path.abspath(source)} if source else {}),
        **({"COMMAND": shlex.join(command)} if command else {}),
    }
    if debug_files := _fetch_debug_info(process, loaded.modules):
        settings["DEBUG_FILES"] = json.dumps(debug_files)
    status = _run_gdb(recipe, settings, command)
    if host_facts and status in (DONE, INCOMPLETE, INTERRUPTED):
        _add_host_facts(output, pid)
    return status


def require_gdb() -> None:
    if shutil.which("gdb") is None:
        raise TargetError("gdb is not installed", "apt-get install gdb, or dnf install gdb")


def _add_host_facts(output: Path, pid: int) -> None:
    records = collect(read_trace(output), pid)
    insert_before_footer(output, records)
    print(f"  host     facts of {len(records)} disks are in the trace")


def _fetch_debug_info(process: Process, modules: Sequence[str]) -> dict[str, str]:
    """Ask the user's debuginfod servers, if any, for what this host lacks.

    Files in debuginfod's own cache, by build-id. A GDB that can ask by itself does so without
    a bound and without a word.
    """
    found: dict[str, str] = {}
    for name in modules:
        module = process.module(name)
        if module is None or module.build_id is None or module.elf.has_debug_info:
            continue
        if debug_file(module.build_id, module.elf.debuglink, module.path, root=process.root):
            continue
        fetched = fetch(module.build_id, name)
        if fetched is not None:
            found[module.build_id] = str(fetched)
    return found


def _run_gdb(recipe: str, settings: dict[str, str], command: Sequence[str]) -> int:
    ready, ready_for_gdb = os.pipe()
    environment = {f"VIRTRACE_{name}": value for name, value in settings.items()}
    environment["VIRTRACE_READY_FD"] = str(ready_for_gdb)
    gdb = subprocess.Popen(
        _gdb_command(f"virtrace start {recipe}"),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        pass_fds=[ready_for_gdb],
        preexec_fn=_end_with_us,
    )
    os.close(ready_for_gdb)
    with open(ready, "rb") as ready_file, _signals_passed_to(gdb):
        # Until every call is traced, or GDB has ended.
        traced = ready_file.readline() == b"ready\n"
        if traced and command:
            _run_traced(command, gdb)
        status = gdb.wait()
    return _gdb_status(status)


def check(recipe: str, modules: Sequence[str], process: Process) -> tuple[int, Record]:
    """GDB's exit status, and the header of the trace that a recipe would make of the process.

    Where it is not 0 there is none, and GDB has said why. The process is not stopped.
    """
    settings = {"VIRTRACE_PID": str(process.pid)}
    if debug_files := _fetch_debug_info(process, modules):
        settings["VIRTRACE_DEBUG_FILES"] = json.dumps(debug_files)
    done = subprocess.run(
        _gdb_command(f"virtrace check {recipe}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **settings},
    )
    if done.returncode:
        return _gdb_status(done.returncode), {}
    header: Record = json.loads(done.stdout.splitlines()[-1])
    return DONE, header


def _gdb_status(status: int) -> int:
    if status == 1:
        # Not one of ours: GDB could not even run the script.
        problem = gdb_section().problem
        if problem is not None:
            raise TargetError(problem.text, problem.remedy or "run `virtrace doctor`")
    return status if status >= 0 else INCOMPLETE


def _gdb_command(action: str) -> list[str]:
    installed = _PACKAGE / "gdb_scripts"
    scripts = installed if installed.is_dir() else _PACKAGE.parents[1] / "gdb_scripts"
    # GDB has no quoting of its own for this argument: it is the rest of the line.
    actions = ("-x", str(scripts / "virtrace.py"), "-ex", action)
    return [*_GDB, *actions]


def _run_traced(command: Sequence[str], gdb: subprocess.Popen[bytes]) -> None:
    try:
        ended = subprocess.run(command)
    except OSError as error:
        print(f"virtrace: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
    else:
        if ended.returncode:
            print(f"virtrace: {command[0]} ended with {ended.returncode}", file=sys.stderr)
    if gdb.poll() is None:
        gdb.send_signal(signal.SIGUSR1)


@contextmanager
def _signals_passed_to(gdb: subprocess.Popen[bytes]) -> Iterator[None]:
    """GDB ends the trace on these and comes clean; we wait for that."""

    def pass_on(number: int, _: object) -> None:
        if gdb.poll() is None:
            gdb.send_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_us() -> None:
    """In GDB's process: end the trace, cleanly, should this one be killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
