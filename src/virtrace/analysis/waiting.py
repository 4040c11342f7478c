"""What was still waited for when a trace ended: the answer where something hangs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from virtrace.analysis import rpc
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Record
from virtrace.trace.reader import Trace


@dataclass(frozen=True)
class Waiting:
    """A QMP command without a reply, a function that had not returned, an RPC call not taken up.

    call: the traced call that it is in. ns: how long until the trace ended.
    """

    node: Span | Exchange | Point
    call: Call | None
    ns: int


def ended_ns(trace: Trace) -> int:
    """When it ended, on the clock of its events; where it does not say so, when it last heard."""
    last = max((event.t_ns for event in trace.events), default=0)
    t_ns = (trace.footer or {}).get("t_ns")
    return max(t_ns, last) if type(t_ns) is int else last


def waiting(
    nodes: Iterable[Call | Point | Exchange], end_ns: int, switched_off: Collection[Record] = ()
) -> list[Waiting]:
    """Longest first; of a call that had not returned, what in it waited for nothing else.

    nodes: calls, and what is outside of them, of a whole trace. switched_off: its probes that
    were; where any was, it cannot be told what was waited for.
    """
    if switched_off:
        return []
    found = [
        Waiting(node, call, end_ns - begun)
        for top in nodes
        for node, call, begun in (_open(top) if isinstance(top, Call) else _apart(top))
    ]
    return sorted(found, key=lambda one: -one.ns)


def _apart(node: Point | Exchange) -> Iterator[tuple[Point | Exchange, None, int]]:
    if isinstance(node, Exchange):
        # Without an id its reply cannot be told from others.
        if node.reply is None and node.id is not None:
            yield node, None, node.t_enter_ns
    elif rpc.is_call(node.event):
        yield node, None, node.event.t_ns


def _open(call: Call) -> Iterator[tuple[Span | Exchange, Call, int]]:
    span = call.root
    if not span.unfinished:
        return
    # On one thread only the last one can be.
    while inner := [one for one in span.children if isinstance(one, Span) and one.unfinished]:
        span = inner[-1]
    unanswered: list[Span | Exchange] = [
        child
        for child in span.children
        if isinstance(child, Exchange) and child.reply is None and child.id is not None
    ]
    for node in unanswered or [span]:
        yield node, call, node.t_enter_ns
