"""``virtrace snapshot``: why a daemon hangs now, without stopping it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from virtrace.errors import ANSWER_IS_NO, DONE, typed
from virtrace.files import write_new
from virtrace.image.process import inspect
from virtrace.printing import print_lines
from virtrace.report.highlight import style_for
from virtrace.report.snapshot import snapshot_lines
from virtrace.snapshot.document import snapshot_of, snapshot_of_core
from virtrace.snapshot.format import encoded
from virtrace.snapshot.take import take
from virtrace.targets.processes import choose_daemon, require_target

_WELL = ("busy", "healthy")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "snapshot",
        description="Say why a daemon hangs, and who waits for whom. The daemon is not stopped: "
        "everything is read from /proc, as root.",
        epilog="Exit status: 0 nothing hangs, 1 something hangs, 3 the daemon cannot be read.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-p", "--pid", metavar="PID", type=int, help="the daemon; default: the only one that runs"
    )
    source.add_argument(
        "--core", metavar="FILE", type=Path, help="a core file of a daemon, for example a crash"
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        default=Path("/"),
        help="folder with the files of the core's host (default: /)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="save it to this new file"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form.add_argument("--full", action="store_true", help="with the stack of each thread at work")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.core is not None:
        snapshot, again = snapshot_of_core(args.core, args.root), f"--core {typed(args.core)}"
    else:
        pid = choose_daemon() if args.pid is None else args.pid
        process = require_target(inspect(pid))
        snapshot, again = snapshot_of(take(process), process, "process"), f"-p {pid}"
    if args.output is not None:
        write_new(args.output, "the snapshot", [encoded(snapshot)])
    if args.json:
        print_lines(json.dumps(snapshot, ensure_ascii=False, indent=2).split("\n"))
    else:
        step = None if args.full else f"virtrace snapshot --full {again}"
        if args.output is not None:
            step = f"virtrace show --full {typed(args.output)}"
        print_lines(snapshot_lines(snapshot, style_for(sys.stdout, full=args.full), step))
    well = all(verdict["verdict"] in _WELL for verdict in snapshot["verdicts"])
    return DONE if well else ANSWER_IS_NO
