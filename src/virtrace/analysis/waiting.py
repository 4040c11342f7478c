"""What was awaited when a trace ended: why something hangs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Union

from virtrace.analysis import rpc
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import SwitchedOff

if TYPE_CHECKING:
    # GDB, which imports this, reads no trace.
    from virtrace.trace.reader import ReadableTrace


class Waiting(NamedTuple):
    """A request without a reply, a function that had not returned, or a message without a worker.

    call: the traced call that it is in.
    ns: time until the trace ended.
    """

    node: Span | Exchange | Point
    call: Call | None
    ns: int


def ended_ns(trace: ReadableTrace) -> int:
    """Return when a trace ended, ns on the clock of its events."""
    t_ns = trace.footer.get("t_ns", 0) if trace.footer is not None else 0
    return max(t_ns, trace.last_ns)


Node = Union[Call, Point, Exchange]


class Waiters:
    """Collects, from the nodes of a trace that pass through, those that had not ended."""

    def __init__(self) -> None:
        self._open: list[tuple[Span | Exchange | Point, Call | None, int]] = []

    def watch(self, nodes: Iterable[Node]) -> Iterator[Node]:
        for node in nodes:
            self._open.extend(_open(node) if isinstance(node, Call) else _apart(node))
            yield node

    def found(self, trace: ReadableTrace) -> list[Waiting]:
        """Return what was awaited, longest first; within a call, only what waited for nothing else.

        trace: read to its end. Empty if any of its probes was switched off.
        """
        return _waiting(self._open, ended_ns(trace), trace.switched_off)


def waiting(
    nodes: Iterable[Node], end_ns: int, switched_off: Collection[SwitchedOff] = ()
) -> list[Waiting]:
    """Find what was awaited among all nodes of a trace; see Waiters.found."""
    waiters = Waiters()
    for _ in waiters.watch(nodes):
        pass
    return _waiting(waiters._open, end_ns, switched_off)


def _waiting(
    found: Iterable[tuple[Span | Exchange | Point, Call | None, int]],
    end_ns: int,
    switched_off: Collection[SwitchedOff],
) -> list[Waiting]:
    if switched_off:
        return []
    waiting = [Waiting(node, call, end_ns - begun) for node, call, begun in found]
    return sorted(waiting, key=lambda awaited: -awaited.ns)


def _apart(node: Point | Exchange) -> Iterator[tuple[Point | Exchange, None, int]]:
    if isinstance(node, Exchange):
        if node.is_awaited:
            yield node, None, node.t_enter_ns
    elif rpc.is_call(node.event):
        yield node, None, node.event.t_ns


def _open(call: Call) -> Iterator[tuple[Span | Exchange, Call, int]]:
    span = call.root
    if not span.unfinished:
        return
    # Only the last child of one thread can still be open.
    while inner := [one for one in span.children if isinstance(one, Span) and one.unfinished]:
        span = inner[-1]
    unanswered: list[Span | Exchange] = [
        child for child in span.children if isinstance(child, Exchange) and child.is_awaited
    ]
    for node in unanswered or [span]:
        yield node, call, node.t_enter_ns
