"""``virtrace export``: a trace in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from virtrace.analysis.chain import Link, chains
from virtrace.analysis.spans import CallBuilder
from virtrace.errors import DONE, TraceError
from virtrace.report import diagram
from virtrace.trace.reader import read_trace, require_whole
from virtrace.trace.writer import write_new


def _svg(links: Sequence[Link]) -> str:
    return diagram.svg(links, alone=True) + "\n"


def _mermaid(links: Sequence[Link]) -> str:
    return "".join(f"{line}\n" for line in diagram.mermaid(links))


_FORMATS = {"mermaid": _mermaid, "svg": _svg}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export",
        help="the call chain of a trace as a picture",
        description="Draw who called whom, down to the QMP commands, over all calls of a trace.",
        epilog="Exit status: 0 written, 2 nothing written, 4 written, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl) or a bundle")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="the file; must not exist"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    trace = read_trace(args.file)
    links = chains(CallBuilder().calls(trace.events))
    if not links:
        raise TraceError(
            f"{args.file} holds no calls, there is nothing to draw",
            "record again, and make a call while it is traced",
        )
    write_new(args.output, "the picture", _FORMATS[args.to](links))
    print(f"wrote {args.output}")
    require_whole(trace, args.file)
    return DONE
