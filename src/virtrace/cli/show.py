"""``virtrace show``: a trace as call trees, to read or as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from virtrace.analysis.spans import Call, CallBuilder
from virtrace.analysis.summary import summarize
from virtrace.analysis.waiting import ended_ns, waiting
from virtrace.errors import DONE, TraceError, UsageError
from virtrace.report import document, text
from virtrace.report import summary as many
from virtrace.report.highlight import style_for
from virtrace.report.lines import copyable
from virtrace.trace.reader import Trace, read_trace, require_whole
from virtrace.trace.writer import write_new


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "show",
        help="show a trace as call trees",
        description="Show every traced call: its answer first, then how it came about.",
        epilog="Exit status: 0 shown, 2 not a trace, 4 shown, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl) or a bundle")
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="every QMP reply whole")
    form.add_argument(
        "--summary", action="store_true", help="all calls at once: disks, counts, latencies"
    )
    form.add_argument(
        "--html",
        metavar="OUT",
        type=Path,
        help="write it as one page for a browser; must not exist",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.json and (args.full or args.html):
        raise UsageError(
            "--json goes with --summary or alone", "leave out --full or --html: JSON has it all"
        )
    trace = read_trace(args.file)
    for line in _lines(trace, args):
        print(line)
    require_whole(trace, args.file)
    return DONE


def _lines(trace: Trace, args: argparse.Namespace) -> Iterator[str]:
    if args.html:
        return _html(trace, args.html)
    if args.summary:
        return _summary(trace, args.file, as_json=args.json)
    return _json(trace, args.file) if args.json else _text(trace, args.file, full=args.full)


def _text(trace: Trace, path: str, *, full: bool) -> Iterator[str]:
    style = style_for(sys.stdout, full=full)
    builder = CallBuilder()
    nodes = list(builder.everything(trace.events))
    yield from text.heading(trace.header, style)
    yield from text.switched_off(trace.switched_off, style)
    yield from text.still_waiting(waiting(nodes, ended_ns(trace), trace.switched_off), style)
    for node in nodes:
        if isinstance(node, Call):
            yield from text.call_tree(node, style)
        else:
            yield from text.apart(node, style)
    more = "--json" if full else "--full"
    yield from text.summary(
        trace.footer,
        style,
        tally=builder.tally,
        output=path,
        next_step=f"virtrace show {more} {shlex.quote(path)}",
    )


def _summary(trace: Trace, path: str, *, as_json: bool) -> Iterator[str]:
    nodes = list(CallBuilder().everything(trace.events))
    summary = summarize(nodes)
    if as_json:
        yield json.dumps(document.summary_record(summary, trace.problems), indent=2)
        return
    style = style_for(sys.stdout)
    yield from text.switched_off(trace.switched_off, style)
    yield from text.still_waiting(waiting(nodes, ended_ns(trace), trace.switched_off), style)
    yield from many.lines(summary, style)
    if summary.disks:
        yield copyable("why", f"virtrace explain {shlex.quote(path)}", style)
    yield copyable("next", f"virtrace show {shlex.quote(path)}", style)


def _html(trace: Trace, output: Path) -> Iterator[str]:
    # Imported late: the rest of `show` does without Jinja2.
    from virtrace.report import html

    nodes = list(CallBuilder().everything(trace.events))
    write_new(output, "the page", html.page(trace, nodes))
    yield f"wrote {output}; like the trace it can hold secrets, and only you can read it"


def _json(trace: Trace, path: str) -> Iterator[str]:
    try:
        yield from document.lines(trace, CallBuilder().everything(trace.events))
    except RecursionError as error:
        raise TraceError(
            f"{path}: its calls are nested too deep for one JSON document",
            f"read the trace itself, which is one JSON object a line: jq . {shlex.quote(path)}",
        ) from error
