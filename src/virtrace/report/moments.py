"""The events of each thread as a flat list, for trace viewers.

The reply to a QMP command arrives on another thread than the command. Each is a moment of its own
thread, and both have the same ``flow``; so has what QEMU does for the command, if that was traced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from virtrace.analysis.in_qemu import dispatched
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Event, Record
from virtrace.trace.roles import ERROR

CALL, QMP = "call", "qmp"


@dataclass(frozen=True)
class Moment:
    """Something on one thread, at ``t_ns`` since the start of the trace.

    duration_ns: of a function that returned; None for all else, also for a function whose return
    was not seen, because its length is unknown.
    flow: the same number, from 1, for a QMP command, QEMU's function for it, and its reply.
    replies: whether it is the reply.
    """

    name: str
    category: str
    tid: int
    t_ns: int
    values: Record
    duration_ns: int | None = None
    flow: int | None = None
    replies: bool = False


def moments(nodes: Iterable[Call | Point | Exchange]) -> Iterator[Moment]:
    """Yield the moments of the calls, and of what is outside; a function before its contents."""
    for node in nodes:
        if isinstance(node, Call):
            flows = {span: _flow(exchange) for span, exchange in dispatched(node).items()}
            for child in node.nodes():
                if isinstance(child, Span):
                    problems = node.problems if child is node.root else []
                    yield _of_span(child, problems, flows.get(child.id))
                else:
                    yield from _of(child, flows.values())
        else:
            yield from _of(node)


def _of(node: Point | Exchange, flows: Collection[int] = ()) -> Iterator[Moment]:
    """flows: of the commands that QEMU was seen to begin with."""
    if isinstance(node, Exchange):
        yield from _of_exchange(node, flows)
    else:
        event = node.event
        yield _of_event(event, event.name, event.role if event.role == ERROR else event.type)


def _of_span(span: Span, problems: list[str], flow: int | None) -> Moment:
    values: Record = {"span": span.id, "arguments": span.arguments}
    name, duration = span.name, span.duration_ns
    if duration is None:
        name += " (no return seen)"
    else:
        values["returned"] = span.returned
    if problems:
        values["problems"] = problems
    return Moment(name, CALL, span.tid, span.t_enter_ns, values, duration, flow)


def _flow(exchange: Exchange) -> int:
    return exchange.send.seq + 1


def _of_exchange(exchange: Exchange, flows: Collection[int]) -> Iterator[Moment]:
    send, reply = exchange.send, exchange.reply
    command = exchange.command or "command of unknown name"
    flow: int | None = _flow(exchange)
    if reply is None and flow not in flows:
        flow = None
    yield _of_event(send, f"{send.name} {command}", QMP, flow)
    if reply is not None:
        yield _of_event(reply, f"{reply.name} {command}", QMP, flow, replies=True)


def _of_event(
    event: Event, name: str, category: str, flow: int | None = None, replies: bool = False
) -> Moment:
    return Moment(name, category, event.tid, event.t_ns, event.values, None, flow, replies)
