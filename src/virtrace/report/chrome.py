"""A trace in Chrome's Trace Event Format (JSON), which most trace viewers open.

The format's numbers are doubles, and its times are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from virtrace.report.moments import QMP, Moment
from virtrace.trace.format import Header, Json, Record

# Above this, a double cannot represent every integer.
_EXACT = 2**53


def chrome_lines(header: Header, moments: Iterable[Moment]) -> Iterator[str]:
    """Yield the document, one event a line. Integers that a double cannot hold become text."""
    pid = header["target"]["pid"]
    process = {"name": "process_name", "ph": "M", "pid": pid, "tid": pid}
    yield '{"displayTimeUnit": "ns", "traceEvents": ['
    yield _line({**process, "args": {"name": header["target"]["exe"]}}, "")
    for moment in moments:
        for event in _events(moment):
            yield _line({**event, "pid": pid, "tid": moment.tid, "ts": moment.t_ns / 1000})
    yield f'], "otherData": {json.dumps(_readable(header))}}}'


def _events(moment: Moment) -> Iterator[Record]:
    event = {"name": moment.name, "cat": moment.category, "args": _readable(moment.values)}
    # Arrows connect only slices, so an event with a flow becomes a slice of length zero.
    if moment.duration_ns is not None or moment.flow is not None:
        yield {**event, "ph": "X", "dur": (moment.duration_ns or 0) / 1000}
    else:
        yield {**event, "ph": "i", "s": "t"}
    if moment.flow is not None:
        flow = {"name": QMP, "cat": QMP, "id": moment.flow}
        yield {**flow, "ph": "f", "bp": "e"} if moment.replies else {**flow, "ph": "s"}


def _line(event: Record, separator: str = ",") -> str:
    return separator + json.dumps(event)


def _readable(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _readable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_readable(inner) for inner in value]
    if type(value) is int and abs(value) > _EXACT:
        return str(value)
    return value
