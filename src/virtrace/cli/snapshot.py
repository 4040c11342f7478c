"""``virtrace snapshot``: why a daemon hangs now, without stopping it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from virtrace.cli.without_rights import run_in_child
from virtrace.errors import ANSWER_IS_NO, DONE, UsageError, typed
from virtrace.files import fill, write_new
from virtrace.host.coredumps import is_named, stored_core
from virtrace.image.process import inspect
from virtrace.printing import print_lines
from virtrace.record.progress import Progress
from virtrace.report.highlight import style_for
from virtrace.report.snapshot import snapshot_lines
from virtrace.snapshot.document import snapshot_of, snapshot_of_core, snapshot_of_text
from virtrace.snapshot.format import WELL, Snapshot, encoded
from virtrace.snapshot.modules_here import ModulesHere
from virtrace.snapshot.take import take
from virtrace.snapshot.verdicts import catalogue
from virtrace.targets import LIBVIRT, known_targets
from virtrace.targets.processes import choose_daemon, require_target

# The kernel cuts names of processes (TASK_COMM_LEN).
_COMM = 15
# Bytes of stacks.
_MOST_TEXT = 64 << 20


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
    source.add_argument("--process", metavar="NAME", help="the daemon of this name")
    source.add_argument(
        "--core",
        metavar="CORE",
        help="a core file of a daemon, which can be compressed (.zst, .lz4, .xz, .gz); or of "
        "coredumpctl: a PID, or `latest`",
    )
    source.add_argument(
        "--stacks",
        metavar="FILE",
        help="a text from a report: GDB's `thread apply all bt`, `coredumpctl info`, the kernel's "
        "lines on a crash (dmesg), or a daemon's log with calls that did not get a job",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        default=Path("/"),
        help="folder with the files of the host of the core, or of a crash in a text (default: /)",
    )
    parser.add_argument(
        "--registers",
        action="store_true",
        help="stop each thread that runs for a moment, a millisecond or less, for its stack; none "
        "is stopped where one of them waits for a file system that may not answer",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="save it to this new file"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form.add_argument("--full", action="store_true", help="with the stack of each thread at work")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.registers and (args.core is not None or args.stacks is not None):
        raise UsageError("--registers is for a daemon that runs", "leave it out")
    if args.stacks is not None:
        # Read once, before no file can be opened any more.
        catalogue()
        work = partial(_of_stacks, args, ModulesHere(LIBVIRT, args.root))
        return run_in_child(
            args, [args.stacks], work, args.output, "the snapshot", kind="the stacks"
        )
    if args.core is not None:
        snapshot, again = _of_core(args.core, args.root), f"--core {typed(args.core)}"
    else:
        pid = choose_daemon(args.process) if args.pid is None else args.pid
        process = require_target(inspect(pid))
        look = take(process, registers=args.registers)
        snapshot, again = snapshot_of(look, process, "process"), f"-p {pid}"
    if args.output is not None:
        write_new(args.output, "the snapshot", [encoded(snapshot)])
    return _printed(args, snapshot, again)


def _of_core(core: str, root: Path) -> Snapshot:
    """core: as of --core."""
    file = Path(core)
    if is_named(core) and not file.exists():
        names = [name[:_COMM] for target in known_targets() for name in target.daemons]
        file = stored_core(core, names)
        print(f"virtrace: the core is {file}", file=sys.stderr)
    with Progress(file.name) as progress:
        return snapshot_of_core(file, root, progress.show)


def _of_stacks(
    args: argparse.Namespace, modules: ModulesHere, files: Sequence[BinaryIO], output: int
) -> int:
    data = files[0].read(_MOST_TEXT)
    snapshot = snapshot_of_text(data.decode("utf-8", "replace"), args.stacks, modules)
    if args.output is not None:
        fill(output, args.output, "the snapshot", [encoded(snapshot)])
    return _printed(args, snapshot, f"--stacks {typed(args.stacks)}")


def _printed(args: argparse.Namespace, snapshot: Snapshot, again: str) -> int:
    """Print a snapshot, and return the exit status. again: arguments that repeat it."""
    if args.json:
        print_lines(json.dumps(snapshot, ensure_ascii=False, indent=2).split("\n"))
    else:
        step = None if args.full else f"virtrace snapshot --full {again}"
        if args.output is not None:
            step = f"virtrace show --full {typed(args.output)}"
        print_lines(snapshot_lines(snapshot, style_for(sys.stdout, full=args.full), step))
    well = all(verdict["verdict"] in WELL for verdict in snapshot["verdicts"])
    return DONE if well else ANSWER_IS_NO
