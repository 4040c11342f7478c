"""Every call of every traced function as a row, for pandas or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator

from virtrace.analysis.spans import Call, Span
from virtrace.analysis.values.meaning import meanings
from virtrace.trace.format import Json, Record, is_unavailable

_PLACE = ("call", "span", "parent", "function", "tid", "t_enter_ns", "duration_ns")
_OUTCOME = ("complete", "failed", "error", "unavailable")
# Characters with which a cell is a formula in a spreadsheet, which would compute it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def values(calls: Iterable[Call]) -> list[str] | None:
    """Return the columns of captured values; None if there is no call."""
    found: dict[str, None] | None = None
    for call in calls:
        found = found or {}
        found.update(dict.fromkeys(name for _, _, told, _ in _rows(call) for name in told))
    return None if found is None else list(found)


def csv_lines(calls: Iterable[Call], values: list[str]) -> Iterator[str]:
    """Yield the lines of a CSV file; docs/trace-format.md describes the columns."""
    out = io.StringIO()
    columns = [*_PLACE, *values, *_OUTCOME]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for call in calls:
        for span, place, told, lacking in _rows(call):
            cells = {**place, **told, **_outcome(call, span, lacking)}
            writer.writerow([_cell(cells.get(name)) for name in columns])
        yield out.getvalue()
        out.seek(0)
        out.truncate()


def _rows(call: Call) -> Iterator[tuple[Span, Record, Record, list[str]]]:
    """Yield place, values and what was unavailable, of the API and of each function in it."""
    rest: list[tuple[Span, int | None]] = [(call.root, None)]
    while rest:
        span, parent = rest.pop()
        rest += [(below, span.id) for below in reversed(span.children) if isinstance(below, Span)]
        place = (call.id, span.id, parent, span.name, span.tid, span.t_enter_ns, span.duration_ns)
        told: Record = {}
        lacking: list[str] = []
        for part, values in (("arguments", span.arguments), ("returned", span.returned or {})):
            _flatten(part, values, told, lacking)
            for name, words in meanings(span.name, span.role, values).items():
                told[f"{part}.{name}.words"] = words
        yield span, dict(zip(_PLACE, place)), told, lacking


def _outcome(call: Call, span: Span, lacking: list[str]) -> Record:
    complete = call.complete if span is call.root else span.duration_ns is not None
    errors = "; ".join(str(error.values.get("message")) for error in span.errors())
    return dict(zip(_OUTCOME, (complete, span.failed, errors, "; ".join(lacking))))


def _flatten(name: str, value: Json, told: Record, lacking: list[str]) -> None:
    if is_unavailable(value):
        lacking.append(f"{name}: {value['unavailable']}")
        told[name] = None
    elif isinstance(value, dict):
        for member, inner in value.items():
            _flatten(f"{name}.{member}", inner, told, lacking)
    else:
        told[name] = json.dumps(value) if isinstance(value, list) else value


def _cell(value: Json) -> Json:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
