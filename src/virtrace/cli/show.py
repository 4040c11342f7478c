"""``virtrace show``: a trace as call trees, to read or as JSON."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator

from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import DONE, IncompleteError, TraceError
from virtrace.report import document, text
from virtrace.report.highlight import style_for
from virtrace.trace.reader import Trace, read_trace


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "show",
        help="show a trace as call trees",
        description="Show every traced call: its answer first, then how it came about.",
        epilog="Exit status: 0 shown, 2 not a trace, 4 shown, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form.add_argument("--full", action="store_true", help="every QMP reply whole")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    trace = read_trace(args.file)
    for line in _json(trace, args.file) if args.json else _text(trace, args.file, full=args.full):
        print(line)
    if trace.problems:
        # Before the reason, also where both go into one file.
        sys.stdout.flush()
        raise IncompleteError(
            f"{args.file}: {'; '.join(trace.problems)}",
            "rely on what is shown, it was read whole; record again for the rest",
        )
    return DONE


def _calls(trace: Trace, builder: CallBuilder) -> Iterator[Call]:
    for event in trace.events:
        call = builder.feed(event)
        if call is not None:
            yield call
    yield from builder.finish()


def _text(trace: Trace, path: str, *, full: bool) -> Iterator[str]:
    style = style_for(sys.stdout, full=full)
    builder = CallBuilder()
    yield from text.heading(trace.header, style)
    for call in _calls(trace, builder):
        yield from text.call_tree(call, style)
    more = "--json" if full else "--full"
    yield from text.summary(
        trace.footer,
        style,
        tally=builder.tally,
        output=path,
        next_step=f"virtrace show {more} {shlex.quote(path)}",
    )


def _json(trace: Trace, path: str) -> Iterator[str]:
    try:
        yield from document.lines(trace, _calls(trace, CallBuilder()))
    except RecursionError as error:
        raise TraceError(
            f"{path}: its calls are nested too deep for one JSON document",
            f"read the trace itself, which is one JSON object a line: jq . {shlex.quote(path)}",
        ) from error
