"""``virtrace explain``: where each number of a trace came from, and why it surprises."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from virtrace.analysis.blockinfo import API
from virtrace.analysis.explain import explain
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import ANSWER_IS_NO, DONE, TraceError, UsageError
from virtrace.report import explanation, explanation_document
from virtrace.report.highlight import style_for
from virtrace.trace.reader import Trace, read_trace, require_whole


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="say where each number came from, and why it surprises",
        description="Explain the answers of virDomainGetBlockInfo (virsh domblkinfo) in a trace: "
        "the cause first, then its evidence, then the way of each number from QEMU or the host. "
        "Works from the file alone.",
        epilog="Exit status: 0 explained, 1 an answer contradicts what QEMU said, 2 not a trace or "
        f"no call of {API} in it, 4 explained, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl)")
    parser.add_argument("--call", metavar="N", type=int, help="only call N, as its events name it")
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    trace = read_trace(args.file)
    explanations = explain(_calls(trace, args.call, args.file), trace.header["probes"], trace.host)
    if args.json:
        print(explanation_document.text(trace, explanations))
    else:
        for line in explanation.lines(explanations, style_for(sys.stdout), path=args.file):
            print(line)
    require_whole(trace, args.file)
    return ANSWER_IS_NO if any(each.contradicts for each in explanations) else DONE


def _calls(trace: Trace, wanted: int | None, path: str) -> list[Call]:
    calls = list(CallBuilder().calls(trace.events))
    asked = [call for call in calls if call.root.name == API]
    if not asked:
        names = sorted({call.root.name for call in calls})
        raise TraceError(
            f"{path} has no call of {API} to explain, "
            + (f"only of {', '.join(names)}" if names else "nor any other call"),
            "record one: virtrace record blockinfo -- virsh domblkinfo DOMAIN DISK",
        )
    if wanted is None:
        return asked
    chosen = [call for call in asked if call.id == wanted]
    if not chosen:
        some = ", ".join(str(call.id) for call in asked[:8]) + (", ..." if len(asked) > 8 else "")
        raise UsageError(f"{path} has no call {wanted} of {API}", f"one of its calls: {some}")
    return chosen
