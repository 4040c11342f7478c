"""Call trees as one JSON document, for scripts; docs/trace-format.md describes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Span
from virtrace.trace.format import Event, Record
from virtrace.trace.reader import Trace

FORMAT = "virtrace-calls"
VERSION = 1


def lines(trace: Trace, calls: Iterable[Call]) -> Iterator[str]:
    """The document, a call a line. RecursionError where a call is nested too deep for JSON."""
    yield f'{{"format": "{FORMAT}", "version": {VERSION},'
    yield f'"header": {json.dumps(trace.header)},'
    yield '"calls": ['
    waiting = ""
    for call in calls:
        if waiting:
            yield waiting + ","
        waiting = json.dumps(call_record(call))
    if waiting:
        yield waiting
    yield f'], "footer": {json.dumps(trace.footer)}, "problems": {json.dumps(trace.problems)}}}'


def call_record(call: Call) -> Record:
    errors = call.errors()
    return {
        "call": call.id,
        "complete": call.complete,
        "problems": call.problems,
        "failed": call.failed,
        "errors": [event.values for event in errors],
        "root": _node(call.root),
    }


def _node(node: Child) -> Record:
    if isinstance(node, Span):
        return {
            "kind": "span",
            "span": node.id,
            "name": node.name,
            "tid": node.tid,
            "t_enter_ns": node.t_enter_ns,
            "t_exit_ns": node.t_exit_ns,
            "duration_ns": node.duration_ns,
            "arguments": node.arguments,
            "returned": node.returned,
            "lost": node.lost,
            "children": [_node(child) for child in node.children],
        }
    if isinstance(node, Exchange):
        return {
            "kind": "qmp",
            "command": node.command,
            "id": node.id,
            "duration_ns": node.duration_ns,
            "send": _moment(node.send),
            "reply": _moment(node.reply) if node.reply else None,
        }
    return {"kind": "point", "name": node.event.name, **_moment(node.event)}


def _moment(event: Event) -> Record:
    return {"t_ns": event.t_ns, "tid": event.tid, "values": event.values}
