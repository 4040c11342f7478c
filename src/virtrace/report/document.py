"""Call trees as one JSON document, for scripts; see docs/trace-format.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Point, Span
from virtrace.analysis.spent import REST, Spent, TimeSpent
from virtrace.analysis.summary import Movement, Statistics, Summary, histograms
from virtrace.analysis.values.meaning import meanings
from virtrace.analysis.waiting import Waiters, Waiting
from virtrace.trace.format import Event, Record
from virtrace.trace.reader import ReadableTrace

FORMAT = "virtrace-calls"
VERSION = 1
SUMMARY_FORMAT = "virtrace-summary"
SUMMARY_VERSION = 1


def document_lines(trace: ReadableTrace, nodes: Iterable[Call | Point | Exchange]) -> Iterator[str]:
    """Yield the document, one call a line. nodes: the calls, and what is outside of them."""
    yield f'{{"format": "{FORMAT}", "version": {VERSION},'
    yield f'"header": {json.dumps(trace.header)},'
    yield '"calls": ['
    last = ""
    apart = []
    waiters = Waiters()
    for node in waiters.watch(nodes):
        if not isinstance(node, Call):
            apart.append(_node(node))
            continue
        if last:
            yield last + ","
        last = json.dumps(call_record(node))
    if last:
        yield last
    yield f'], "outside": {json.dumps(apart)},'
    yield f'"switched_off": {json.dumps(trace.switched_off)},'
    yield f'"waiting": {json.dumps([_waiting(one) for one in waiters.found(trace)])},'
    yield f'"footer": {json.dumps(trace.footer)}, "problems": {json.dumps(trace.problems)}}}'


def call_record(call: Call) -> Record:
    errors = call.errors()
    return {
        "call": call.id,
        "complete": call.complete,
        "problems": call.problems,
        "failed": call.failed,
        "errors": [event.values for event in errors],
        "meanwhile": [event.values for event in call.meanwhile],
        "received": _moment(call.received) if call.received else None,
        "root": _node(call.root),
    }


def _waiting(one: Waiting) -> Record:
    return {
        "ns": one.ns,
        "call": one.call.id if one.call else None,
        "for": _node(replace(one.node, children=[]) if isinstance(one.node, Span) else one.node),
    }


def summary_record(summary: Summary, time: TimeSpent, problems: list[str]) -> Record:
    """Return the document of `show --summary --json`; see docs/trace-format.md."""
    return {
        "format": SUMMARY_FORMAT,
        "version": SUMMARY_VERSION,
        "calls": _statistics(summary.calls),
        "incomplete": summary.incomplete,
        "functions": [_statistics(row) for row in summary.functions.values()],
        "commands": [_statistics(row) for row in summary.commands.values()],
        "time": _time(time),
        "disks": [
            {
                "domain": disk.domain,
                "disk": disk.disk,
                "calls": disk.calls,
                "failed": disk.failed,
                **{number: _movement(moved) for number, moved in disk.numbers.items()},
            }
            for disk in summary.disks.values()
        ],
        "problems": problems,
    }


def _time(time: TimeSpent) -> Record:
    return {
        "unknown": time.unknown,
        "left_out": time.left_out,
        **{
            name: [_spent(row, time) for row in rows]
            for name, rows in (
                ("all", [time.calls]),
                ("apis", time.apis.values()),
                ("domains", time.domains.values()),
                ("clients", time.clients.values()),
            )
        },
    }


def _spent(row: Spent, time: TimeSpent) -> Record:
    known = frozenset() if time.unknown else time.told | {REST}
    return {
        "name": row.name,
        "count": row.count,
        "errors": row.errors,
        **{f"{kind}_ns": ns if kind in known else None for kind, ns in row.ns.items()},
        **{f"{name}_ns": ns for name, ns in row.times().items()},
    }


def _statistics(row: Statistics) -> Record:
    return {
        "name": row.name,
        "count": row.count,
        "errors": row.errors,
        "unfinished": row.unfinished,
        **{f"{name}_ns": ns for name, ns in row.times().items()},
        "max_call": row.slowest.id if row.slowest else None,
        "histogram": [vars(bucket) for bucket in histograms([row])[0]],
    }


def _movement(movement: Movement) -> Record:
    values = movement.values
    return {
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "moves": [
            {"call": move.call.id, "t_ns": move.t_ns, "value": move.value}
            for move in movement.moves
        ],
        "told": movement.told,
        "unavailable": movement.unavailable,
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
            **_words(node.name, node.role, {**node.arguments, **(node.returned or {})}),
            "lost": node.lost,
            "children": [_node(child) for child in node.children],
        }
    if isinstance(node, Exchange):
        kind: Record = {"kind": "exchange", "name": node.send.name}
        if node.is_qmp:
            kind = {"kind": "qmp", "command": node.command, "id": node.id}
        return {
            **kind,
            "duration_ns": node.duration_ns,
            "send": _moment(node.send),
            "reply": _moment(node.reply) if node.reply else None,
        }
    event = node.event
    words = _words(event.name, event.role, event.values)
    return {"kind": event.type, "name": event.name, **_moment(event), **words}


def _words(probe: str, role: str | None, values: Record) -> Record:
    found = meanings(probe, role, values)
    return {"words": found} if found else {}


def _moment(event: Event) -> Record:
    return {"t_ns": event.t_ns, "tid": event.tid, "values": event.values}
