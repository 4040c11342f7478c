"""``virtrace explain``: what a trace means, and where its numbers came from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import BinaryIO

from virtrace.analysis.explain.registry import load_explainers
from virtrace.analysis.explain.trace import explain_trace
from virtrace.cli.progress import reading_trace
from virtrace.cli.snapshot_file import show_snapshot
from virtrace.cli.without_rights import run_in_child
from virtrace.errors import ANSWER_IS_NO, DONE
from virtrace.printing import print_lines
from virtrace.report import explanation, explanation_document
from virtrace.report.highlight import style_for
from virtrace.snapshot.format import is_snapshot
from virtrace.trace.reader import require_whole


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "explain",
        description="Explain what a trace has: the answer first, then its causes with their "
        "evidence, and the path of each number from QEMU or the host. "
        "Works from the file alone. Of a snapshot: why the daemon hangs.",
        epilog="Exit status: 0 explained, 1 an answer contradicts what QEMU said, or the trace has "
        "nothing that can be explained, 2 not a trace, 4 explained, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl), a bundle or a snapshot")
    parser.add_argument(
        "--call", metavar="N", type=int, help="only the call with this number in its events"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return run_in_child(args, [args.file], partial(_explain, args), prepare=load_explainers)


def _explain(args: argparse.Namespace, files: Sequence[BinaryIO], _: int) -> int:
    if is_snapshot(files[0], args.file):
        show_snapshot(args.file, files[0], as_json=args.json, full=False)
        return DONE
    with reading_trace(args.file, files[0]) as trace:
        explained = explain_trace(trace, args.file, args.call)
        if args.json:
            print_lines(explanation_document.explanation_json(trace, explained).split("\n"))
        elif not explained:
            print_lines(
                explanation.nothing_explained(explained, style_for(sys.stdout), path=args.file)
            )
        else:
            style = style_for(sys.stdout)
            print_lines(explanation.explanation_lines(explained, style, path=args.file))
            print_lines(explanation.further(explained, style, path=args.file))
        require_whole(trace, args.file)
    return DONE if explained and not explained.contradicts else ANSWER_IS_NO
