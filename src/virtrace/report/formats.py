"""The formats of other tools into which a trace is exported; FORMATS has one entry for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Union

from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import TraceError, UsageError
from virtrace.trace.reader import TraceStream

# A document in pieces; none if the trace contains nothing that the format can show.
Pieces = Iterator[Union[str, bytes]]
Make = Callable[[TraceStream], Pieces]


@dataclass(frozen=True)
class ExportFormat:
    """A format.

    what: noun for the document, in messages.
    prepare: imports and reads whatever the format needs, before rights are dropped; returns what
        makes the document.
    """

    what: str
    prepare: Callable[[], Make]


def _calls(trace: TraceStream) -> Iterator[Call]:
    return CallBuilder(trace.most_open).calls(trace)


def _perfetto() -> Make:
    try:
        from virtrace.report.perfetto import perfetto_pieces
    except ImportError as error:
        raise UsageError(
            f"the package perfetto is not usable here: {error}",
            "pip install perfetto; or --to chrome, which Perfetto's UI opens as well",
        ) from error
    from virtrace.report.moments import moments

    def make(trace: TraceStream) -> Pieces:
        if not any(True for _ in trace):
            return
        nodes = CallBuilder(trace.most_open).everything(trace)
        try:
            yield from perfetto_pieces(trace.header, moments(nodes))
        except (ValueError, OverflowError) as error:
            raise TraceError(
                f"a number or date of this trace cannot be written for Perfetto: {error}",
                "take a fresh copy of the trace: virtrace writes no such values",
            ) from error

    return make


def _chrome() -> Make:
    from virtrace.report.chrome import chrome_lines
    from virtrace.report.moments import moments

    def make(trace: TraceStream) -> Pieces:
        if any(True for _ in trace):
            nodes = CallBuilder(trace.most_open).everything(trace)
            yield from (f"{line}\n" for line in chrome_lines(trace.header, moments(nodes)))

    return make


def _otlp() -> Make:
    from virtrace.report.otlp import otlp_lines

    def make(trace: TraceStream) -> Pieces:
        nodes = CallBuilder(trace.most_open).everything(trace)
        return (f"{line}\n" for line in otlp_lines(trace.header, nodes))

    return make


def _csv() -> Make:
    from virtrace.report.table import csv_lines, values

    def make(trace: TraceStream) -> Pieces:
        columns = values(_calls(trace))
        if columns is not None:
            yield from csv_lines(_calls(trace), columns)

    return make


def _folded() -> Make:
    from virtrace.report.flame import folded_lines

    return lambda trace: (f"{line}\n" for line in folded_lines(_calls(trace)))


def _speedscope() -> Make:
    from virtrace.report.flame import speedscope

    def make(trace: TraceStream) -> Pieces:
        exporter = f"virtrace@{trace.header['tool']['virtrace']}"
        document = speedscope(_calls(trace), exporter)
        if document is not None:
            yield document + "\n"

    return make


def _mermaid() -> Make:
    from virtrace.analysis.chain import chains
    from virtrace.report.diagram import mermaid

    def make(trace: TraceStream) -> Pieces:
        links = chains(_calls(trace))
        yield from (f"{line}\n" for line in mermaid(links)) if links else ()

    return make


def _svg() -> Make:
    from virtrace.analysis.chain import chains
    from virtrace.report import drawing
    from virtrace.report.diagram import chain_svg

    for name in drawing.SHEETS:
        drawing.style_sheet(name)

    def make(trace: TraceStream) -> Pieces:
        links = chains(_calls(trace))
        if links:
            yield chain_svg(links, alone=True) + "\n"

    return make


FORMATS = {
    "perfetto": ExportFormat("the Perfetto trace", _perfetto),
    "chrome": ExportFormat("the Chrome trace", _chrome),
    "otlp": ExportFormat("the OpenTelemetry trace", _otlp),
    "csv": ExportFormat("the table", _csv),
    "folded": ExportFormat("the stacks", _folded),
    "speedscope": ExportFormat("the flame graph", _speedscope),
    "mermaid": ExportFormat("the picture", _mermaid),
    "svg": ExportFormat("the picture", _svg),
}
