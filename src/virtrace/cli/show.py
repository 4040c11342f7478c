"""``virtrace show``: a trace as call trees, to read or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from virtrace.analysis.spans import Call, CallBuilder
from virtrace.analysis.spent import TimeSpent
from virtrace.analysis.summary import summarize
from virtrace.analysis.waiting import Waiters
from virtrace.cli.progress import reading_trace
from virtrace.cli.snapshot_file import show_snapshot
from virtrace.cli.without_rights import run_in_child
from virtrace.errors import DONE, UsageError, typed
from virtrace.files import fill
from virtrace.printing import print_lines
from virtrace.report import document, text
from virtrace.report import summary as many
from virtrace.report.highlight import style_for
from virtrace.report.lines import copyable
from virtrace.snapshot.format import is_snapshot, may_be_snapshot, read_snapshot
from virtrace.trace.reader import TraceStream, require_whole

# So much of a trace, in bytes unpacked, is read before anything is shown: what a smaller one ends
# with, such as what was still waited for, can stand at the top.
_AT_ONCE = 8 << 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "show",
        description="Show every traced call: its answer, then everything that happened in it. Of a "
        "snapshot: the answer, and who waits for whom.",
        epilog="Exit status: 0 shown, 2 not a trace, 4 shown, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl), a bundle or a snapshot")
    parser.add_argument("--json", action="store_true", help="one JSON document, for scripts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="complete QMP replies")
    form.add_argument(
        "--summary",
        action="store_true",
        help="statistics over all calls: disks, counts, where the time went",
    )
    form.add_argument(
        "--html",
        metavar="OUT",
        type=Path,
        help="write one page for a browser to this new file",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.json and (args.full or args.html):
        raise UsageError(
            "--json can only be combined with --summary",
            "leave out --full or --html: JSON has everything",
        )
    prepare = _prepare_page if args.html else None
    work = partial(_show, args)
    return run_in_child(args, [args.file], work, args.html, "the page", prepare=prepare)


def _prepare_page(files: Sequence[BinaryIO]) -> None:
    # Imported late: the rest of `show` does without Jinja2.
    from virtrace.analysis.explain.registry import load_explainers
    from virtrace.report import html, snapshot_page

    load_explainers(files)
    html.prepare_page()
    if may_be_snapshot(files[0]):
        snapshot_page.prepare_snapshot_page()


def _show(args: argparse.Namespace, files: Sequence[BinaryIO], output: int) -> int:
    if is_snapshot(files[0], args.file):
        if args.summary:
            raise UsageError(
                f"{args.file} is a snapshot, and --summary is about traces",
                f"virtrace show --full {typed(args.file)}",
            )
        if args.html:
            from virtrace.report.snapshot_page import snapshot_page

            shown = snapshot_page(read_snapshot(files[0], args.file))
            print_lines(_saved(shown, "snapshot", args.html, output))
            return DONE
        show_snapshot(args.file, files[0], as_json=args.json, full=args.full)
        return DONE
    is_printed = not (args.html or args.summary)
    with reading_trace(args.file, files[0], beside_output=is_printed) as trace:
        print_lines(_lines(trace, args, output))
        require_whole(trace, args.file)
    return DONE


def _lines(trace: TraceStream, args: argparse.Namespace, output: int) -> Iterator[str]:
    if args.html:
        return _html(trace, args.file, args.html, output)
    if args.summary:
        return _summary(trace, args.file, as_json=args.json)
    if args.json:
        return document.document_lines(trace, CallBuilder(trace.most_open).everything(trace))
    return _text(trace, args.file, full=args.full)


def _text(trace: TraceStream, path: str, *, full: bool) -> Iterator[str]:
    style = style_for(sys.stdout, full=full)
    builder = CallBuilder(trace.most_open)
    pending = Waiters()
    nodes = pending.watch(builder.everything(trace))
    first = []
    for node in nodes:
        first.append(node)
        if trace.length > _AT_ONCE:
            break
    is_whole = trace.length <= _AT_ONCE

    def stopped() -> Iterator[str]:
        yield from text.switched_off(trace.switched_off, style)
        yield from text.still_waiting(pending.found(trace), style)

    yield from text.heading(trace.header, style)
    if is_whole:
        yield from stopped()
    else:
        yield from text.long_trace(style)
    for node in chain(first, nodes):
        if isinstance(node, Call):
            yield from text.call_tree(node, style)
        else:
            yield from text.apart(node, style)
    if not is_whole:
        yield from stopped()
    more = "--json" if full else "--full"
    yield from text.summary(
        trace.footer,
        style,
        engine_name=trace.header["tool"]["engine"]["name"],
        tally=builder.tally,
        output=path,
        next_step=f"virtrace show {more} {typed(path)}",
    )


def _summary(trace: TraceStream, path: str, *, as_json: bool) -> Iterator[str]:
    pending = Waiters()
    time = TimeSpent(trace)
    nodes = pending.watch(CallBuilder(trace.most_open).everything(trace))
    summary = summarize(time.watch(nodes))
    if as_json:
        yield from json.dumps(
            document.summary_record(summary, time, trace.problems), indent=2
        ).split("\n")
        return
    style = style_for(sys.stdout)
    yield from text.switched_off(trace.switched_off, style)
    yield from text.still_waiting(pending.found(trace), style)
    yield from many.summary_lines(summary, time, style)
    if summary.disks:
        yield copyable("why", f"virtrace explain {typed(path)}", style)
    yield copyable("next", f"virtrace show {typed(path)}", style)


def _html(trace: TraceStream, path: str, output: Path, descriptor: int) -> Iterator[str]:
    from virtrace.report import html

    nodes = []
    for node in CallBuilder(trace.most_open).everything(trace):
        nodes.append(node)
        if trace.count > html.MOST_EVENTS:
            raise UsageError(
                f"{path} has more than {html.MOST_EVENTS:,} events, too many for a page",
                f"virtrace show --summary {typed(path)}, or export --to perfetto",
            )
    yield from _saved(html.page(trace, nodes), "trace", output, descriptor)


def _saved(page: str, what: str, output: Path, descriptor: int) -> Iterator[str]:
    """Write a page. what: it is made of."""
    fill(descriptor, output, "the page", [page])
    yield f"wrote {output}; like the {what}, it can contain secrets, and only you can read it"
