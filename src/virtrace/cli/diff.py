"""``virtrace diff``: the differences between two traces of the same calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from tempfile import TemporaryFile
from typing import IO, BinaryIO

from virtrace.analysis.compare.model import Comparison
from virtrace.analysis.compare.traces import compare_traces
from virtrace.analysis.explain.registry import load_explainers
from virtrace.cli.progress import reading_trace
from virtrace.cli.without_rights import run_in_child
from virtrace.errors import ANSWER_IS_NO, DONE, IncompleteError, TraceError
from virtrace.printing import print_lines
from virtrace.report import difference, difference_document
from virtrace.report.highlight import style_for
from virtrace.report.snapshot import changes_lines
from virtrace.snapshot.changes import changes
from virtrace.snapshot.format import is_snapshot, read_snapshot
from virtrace.trace.reader import ReadableTrace


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "diff",
        description="Compare two traces call by call: answers and their causes first, then the "
        "path through libvirt and to QEMU, then all values. Values that must differ, such as "
        "addresses and times, are ignored; counters that grew are not a difference. Of two "
        "snapshots: what has not moved, what ended and began, and what grew.",
        epilog="Exit status: 0 equal, 1 they differ, 2 not a trace or no call in either, "
        "4 compared, but a trace is incomplete.",
    )
    parser.add_argument("a", metavar="A", help="a trace (.jsonl), a bundle or a snapshot")
    parser.add_argument("b", metavar="B", help="what to compare it with")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form.add_argument("--full", action="store_true", help="every difference, without folding")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # For calls that do not fit into memory.
    with TemporaryFile(prefix="virtrace-") as spill:
        work = partial(_diff, args, spill)
        return run_in_child(args, [args.a, args.b], work, prepare=load_explainers)


def _diff(args: argparse.Namespace, spill: IO[bytes], files: Sequence[BinaryIO], _: int) -> int:
    paths = args.a, args.b
    if is_snapshot(files[0], args.a) and is_snapshot(files[1], args.b):
        return _diff_snapshots(args, files)
    with reading_trace(args.a, files[0]) as a, reading_trace(args.b, files[1]) as b:
        found = compared(a, b, paths, spill)
        if args.json:
            print_lines(difference_document.difference_json(found, paths).split("\n"))
            return exit_status(found, paths)
        return report(found, paths, full=args.full)


def _diff_snapshots(args: argparse.Namespace, files: Sequence[BinaryIO]) -> int:
    found = changes(read_snapshot(files[0], args.a), read_snapshot(files[1], args.b))
    if args.json:
        print_lines(json.dumps(found, ensure_ascii=False, indent=2).split("\n"))
    else:
        print_lines(changes_lines(found, style_for(sys.stdout, full=args.full)))
    return ANSWER_IS_NO if found["stuck"] or found["counts"] else DONE


def compared(
    a: ReadableTrace, b: ReadableTrace, paths: tuple[str, str], spill: IO[bytes]
) -> Comparison:
    found = compare_traces(a, b, spill)
    if not found.pairs and not found.alone:
        raise TraceError(
            f"neither {paths[0]} nor {paths[1]} has a call to compare",
            "record one: virtrace record blockinfo -- virsh domblkinfo DOMAIN DISK",
        )
    return found


def report(found: Comparison, paths: tuple[str, str], *, full: bool = False) -> int:
    """Print the differences; return the exit status."""
    print_lines(difference.difference_lines(found, style_for(sys.stdout, full=full), paths=paths))
    return exit_status(found, paths)


def exit_status(found: Comparison, paths: tuple[str, str]) -> int:
    """Return the exit status. Raises IncompleteError: a call or a file is incomplete."""
    _check_complete(found, paths)
    return DONE if found.equal else ANSWER_IS_NO


def _check_complete(found: Comparison, paths: tuple[str, str]) -> None:
    told = [
        f"{path}: {'; '.join(problems)}"
        for side, path in zip("ab", paths)
        if (problems := found.problems(side))
    ]
    if told:
        sys.stdout.flush()
        raise IncompleteError(
            "; ".join(told),
            "what was compared is reliable; record again for the rest",
        )
