"""``virtrace export``: a trace in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from virtrace.cli.arguments import add_json
from virtrace.cli.progress import reading_trace
from virtrace.cli.without_rights import run_in_child
from virtrace.errors import DONE, TraceError
from virtrace.files import fill
from virtrace.report.formats import FORMATS, Make
from virtrace.trace.reader import require_whole

if TYPE_CHECKING:
    from virtrace.cli.results import FileResult


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export",
        description=(
            "Write a trace in the format of another tool. perfetto, chrome: a timeline of the "
            "threads, for ui.perfetto.dev and other trace viewers; otlp: spans for OpenTelemetry, "
            "as OTLP/JSON Lines; csv: each call of each function, for pandas or a spreadsheet; "
            "folded, speedscope: where the time went, as a flame graph; mermaid, svg: the call "
            "chain as a picture."
        ),
        epilog="Exit status: 0 written, 2 nothing written, 4 written, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl) or a bundle")
    parser.add_argument(
        "--to", choices=FORMATS, metavar="FORMAT", required=True, help=", ".join(FORMATS)
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="the output, a new file"
    )
    add_json(parser, "export")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    chosen = FORMATS[args.to]
    work = partial(_export, args, chosen.what, chosen.prepare())
    return run_in_child(args, [args.file], work, args.output, chosen.what)


def _export(
    args: argparse.Namespace, what: str, make: Make, files: Sequence[BinaryIO], output: int
) -> int:
    with reading_trace(args.file, files[0]) as trace:
        made = make(trace)
        first = next(made, None)
        if first is None:
            raise TraceError(
                f"{args.file} has no calls to export",
                "record again, and make a call while the trace runs",
            )
        fill(output, args.output, what, chain([first], made))
        print(f"wrote {args.output}")
        result: FileResult = {"file": str(args.output)}
        args.result = result
        require_whole(trace, args.file)
    return DONE
