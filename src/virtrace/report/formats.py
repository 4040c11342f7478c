"""The formats of other tools into which a trace is exported; FORMATS has one entry for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Union

from virtrace.analysis.chain import chains
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import TraceError, UsageError
from virtrace.report import chrome, diagram, drawing, flame, table
from virtrace.report.moments import Moment, moments
from virtrace.trace.reader import TraceStream

# A document in pieces; none if the trace contains nothing that the format can show.
Pieces = Iterator[Union[str, bytes]]


def _calls(trace: TraceStream) -> Iterator[Call]:
    return CallBuilder(trace.most_open).calls(trace)


def _prepare_svg() -> None:
    for name in drawing.SHEETS:
        drawing.style_sheet(name)


def _svg(trace: TraceStream) -> Pieces:
    links = chains(_calls(trace))
    if links:
        yield diagram.chain_svg(links, alone=True) + "\n"


def _mermaid(trace: TraceStream) -> Pieces:
    links = chains(_calls(trace))
    yield from (f"{line}\n" for line in diagram.mermaid(links)) if links else ()


def _moments(trace: TraceStream) -> Iterator[Moment]:
    return moments(CallBuilder(trace.most_open).everything(trace))


def _chrome(trace: TraceStream) -> Pieces:
    if any(True for _ in trace):
        yield from (f"{line}\n" for line in chrome.chrome_lines(trace.header, _moments(trace)))


def _prepare_perfetto() -> None:
    try:
        import virtrace.report.perfetto  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"the package perfetto is not usable here: {error}",
            "pip install perfetto; or --to chrome, which Perfetto's UI opens as well",
        ) from error


def _perfetto(trace: TraceStream) -> Pieces:
    # Importing it takes longer than importing all other formats.
    from virtrace.report import perfetto

    if not any(True for _ in trace):
        return
    try:
        yield from perfetto.perfetto_pieces(trace.header, _moments(trace))
    except (ValueError, OverflowError) as error:
        raise TraceError(
            f"a number or date of this trace cannot be written for Perfetto: {error}",
            "take a fresh copy of the trace: virtrace writes no such values",
        ) from error


def _csv(trace: TraceStream) -> Pieces:
    values = table.values(_calls(trace))
    if values is not None:
        yield from table.csv_lines(_calls(trace), values)


def _folded(trace: TraceStream) -> Pieces:
    yield from (f"{line}\n" for line in flame.folded_lines(_calls(trace)))


def _speedscope(trace: TraceStream) -> Pieces:
    exporter = f"virtrace@{trace.header['tool']['virtrace']}"
    document = flame.speedscope(_calls(trace), exporter)
    if document is not None:
        yield document + "\n"


@dataclass(frozen=True)
class ExportFormat:
    """A format.

    what: noun for the document, in messages.
    make: writes a trace in the format.
    prepare: imports and reads whatever `make` needs, before rights are dropped.
    """

    what: str
    make: Callable[[TraceStream], Pieces]
    prepare: Callable[[], None] = lambda: None


FORMATS = {
    "perfetto": ExportFormat("the Perfetto trace", _perfetto, _prepare_perfetto),
    "chrome": ExportFormat("the Chrome trace", _chrome),
    "csv": ExportFormat("the table", _csv),
    "folded": ExportFormat("the stacks", _folded),
    "speedscope": ExportFormat("the flame graph", _speedscope),
    "mermaid": ExportFormat("the picture", _mermaid),
    "svg": ExportFormat("the picture", _svg, _prepare_svg),
}
