"""A trace in Chrome's Trace Event Format (JSON), which most trace viewers open.

The format's numbers are doubles, and its times are microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from virtrace.report.moments import CALL, QMP, Moment
from virtrace.trace.format import Header, Json, Record, Target
from virtrace.trace.target import in_qemu

# Above this, a double cannot represent every integer.
_EXACT = 2**53


def chrome_lines(header: Header, moments: Iterable[Moment]) -> Iterator[str]:
    """Yield the document, one event a line. Integers that a double cannot hold become text."""
    pid = header["target"]["pid"]
    elsewhere = in_qemu(header)
    yield '{"displayTimeUnit": "ns", "traceEvents": ['
    yield _process(header["target"], "")
    if "qemu" in header:
        yield _process(header["qemu"])
    for moment in moments:
        for event in _events(moment):
            yield _line(
                {
                    **event,
                    "pid": elsewhere.get(moment.name.partition(" ")[0], pid),
                    "tid": moment.tid,
                    "ts": moment.t_ns / 1000,
                }
            )
    yield f'], "otherData": {json.dumps(_readable(header))}}}'


def _process(target: Target, separator: str = ",") -> str:
    pid = target["pid"]
    named = {"name": "process_name", "ph": "M", "pid": pid, "tid": pid}
    return _line({**named, "args": {"name": target["exe"]}}, separator)


def _events(moment: Moment) -> Iterator[Record]:
    event = {"name": moment.name, "cat": moment.category, "args": _readable(moment.values)}
    # Arrows connect only slices, so an event with a flow becomes a slice of length zero.
    if moment.duration_ns is not None or moment.flow is not None:
        yield {**event, "ph": "X", "dur": (moment.duration_ns or 0) / 1000}
    else:
        yield {**event, "ph": "i", "s": "t"}
    if moment.flow is not None:
        flow = {"name": QMP, "cat": QMP, "id": moment.flow}
        # It begins with the command, and passes QEMU's function for it.
        part = "t" if moment.category == CALL else "s"
        yield {**flow, "ph": "f", "bp": "e"} if moment.replies else {**flow, "ph": part}


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
