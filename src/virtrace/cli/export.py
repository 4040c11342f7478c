"""``virtrace export``: a trace in the formats of other tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Union

from virtrace.analysis.chain import chains
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.cli.progress import reading
from virtrace.cli.without_rights import run_in_child
from virtrace.errors import DONE, TraceError, UsageError
from virtrace.files import fill
from virtrace.report import chrome, diagram, drawing, table
from virtrace.report.moments import Moment, moments
from virtrace.trace.reader import TraceStream, require_whole

# What was made of it, in pieces; none where the trace holds nothing of the kind.
_Made = Iterator[Union[str, bytes]]


def _calls(trace: TraceStream) -> Iterator[Call]:
    return CallBuilder(trace.most_open).calls(trace)


def _prepare_svg() -> None:
    for name in drawing.SHEETS:
        drawing.style_sheet(name)


def _svg(trace: TraceStream) -> _Made:
    links = chains(_calls(trace))
    if links:
        yield diagram.svg(links, alone=True) + "\n"


def _mermaid(trace: TraceStream) -> _Made:
    links = chains(_calls(trace))
    yield from (f"{line}\n" for line in diagram.mermaid(links)) if links else ()


def _moments(trace: TraceStream) -> Iterator[Moment]:
    return moments(CallBuilder(trace.most_open).everything(trace))


def _chrome(trace: TraceStream) -> _Made:
    if any(True for _ in trace):
        yield from (f"{line}\n" for line in chrome.lines(trace.header, _moments(trace)))


def _prepare_perfetto() -> None:
    try:
        import virtrace.report.perfetto  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the package perfetto is not usable here: {error}",
            "pip install perfetto; or --to chrome, which Perfetto's UI opens as well",
        ) from error


def _perfetto(trace: TraceStream) -> _Made:
    # Longer to import than all other formats: by what prepares for it.
    from virtrace.report import perfetto

    if not any(True for _ in trace):
        return
    try:
        yield from perfetto.pieces(trace.header, _moments(trace))
    except (ValueError, OverflowError) as error:
        raise TraceError(
            f"a number or date of this trace cannot be written for Perfetto: {error}",
            "take a fresh copy of the trace: virtrace writes no such values",
        ) from error


def _csv(trace: TraceStream) -> _Made:
    values = table.values(_calls(trace))
    if values is not None:
        yield from table.lines(_calls(trace), values)


@dataclass(frozen=True)
class _Format:
    """what: that it is, in a message. make: see _Made. prepare: reads what that needs."""

    what: str
    make: Callable[[TraceStream], _Made]
    prepare: Callable[[], None] = lambda: None


_FORMATS = {
    "perfetto": _Format("the Perfetto trace", _perfetto, _prepare_perfetto),
    "chrome": _Format("the Chrome trace", _chrome),
    "csv": _Format("the table", _csv),
    "mermaid": _Format("the picture", _mermaid),
    "svg": _Format("the picture", _svg, _prepare_svg),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export",
        description=(
            "Write a trace in the format of another tool. perfetto, chrome: a timeline of the "
            "threads, for ui.perfetto.dev and other trace viewers; csv: each call of each "
            "function, for pandas or a spreadsheet; mermaid, svg: the call chain as a picture."
        ),
        epilog="Exit status: 0 written, 2 nothing written, 4 written, but the trace is incomplete.",
    )
    parser.add_argument("file", metavar="FILE", help="a trace (.jsonl) or a bundle")
    parser.add_argument("--to", choices=_FORMATS, required=True, help="the format")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, required=True, help="the output, a new file"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    chosen = _FORMATS[args.to]
    chosen.prepare()
    work = partial(_export, args, chosen)
    return run_in_child(args, [args.file], work, args.output, chosen.what)


def _export(
    args: argparse.Namespace, chosen: _Format, files: Sequence[BinaryIO], output: int
) -> int:
    with reading(args.file, files[0]) as trace:
        made = chosen.make(trace)
        first = next(made, None)
        if first is None:
            raise TraceError(
                f"{args.file} has no calls to export",
                "record again, and make a call while the trace runs",
            )
        fill(output, args.output, chosen.what, chain([first], made))
        print(f"wrote {args.output}")
        require_whole(trace, args.file)
    return DONE
