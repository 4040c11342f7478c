"""Where the time of calls went: each nanosecond of a call is in one place, the innermost.

A place is a stack: the API, the functions in it, and what was awaited. Its kind says what was
awaited there, as far as the trace's probes tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virtrace.analysis.blockinfo import seen_by
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Span
from virtrace.analysis.summary import Statistics
from virtrace.analysis.waiting import Node
from virtrace.trace import roles
from virtrace.trace.reader import ReadableTrace

# Waiting for a worker, for a lock or job, for QEMU; all else.
WORKER, LOCK, QEMU, REST = "worker", "lock", "qemu", "rest"
KINDS = (WORKER, LOCK, QEMU, REST)
# The probes without which a kind cannot be told from the rest.
_TOLD_BY = {
    WORKER: frozenset({roles.RPC_RECEIVED, roles.RPC_CALL}),
    LOCK: frozenset({roles.LOCK}),
    QEMU: frozenset({roles.QMP_COMMAND, roles.QMP_REPLY}),
}
# Names come from the trace, so their number is limited.
_MOST_ROWS = 1000
_OTHERS = "others"
WAITING_FOR_A_WORKER = "waiting for a worker"

Stack = tuple[str, ...]


class Part(NamedTuple):
    """Time of one call in one place, ns."""

    stack: Stack
    kind: str
    ns: int


def parts(call: Call) -> list[Part] | None:
    """Divide the time of a call, from its arrival to its return.

    None if its end, or the reply to one of its commands, was not seen.
    """
    end = call.root.t_exit_ns
    unanswered = (isinstance(node, Exchange) and node.reply is None for node in call.nodes())
    if end is None or not call.complete or any(unanswered):
        return None
    name = call.procedure or call.root.name
    queued = max(call.queued_ns or 0, 0)
    waited = [Part((name, WAITING_FOR_A_WORKER), WORKER, queued)] if queued else []
    return waited + list(_divide(call.root, (name,), call.root.t_enter_ns, end))


def _divide(span: Span, stack: Stack, start: int, end: int) -> Iterator[Part]:
    """Divide a function's time between start and end among itself and what is in it.

    What overlaps with its neighbour before counts from the neighbour's end.
    """
    own, at = 0, start
    for child in span.children:
        if isinstance(child, Span):
            name, until = child.name, child.t_exit_ns
        elif isinstance(child, Exchange) and child.reply is not None:
            name, until = child.command or "command of unknown name", child.reply.t_ns
        else:
            continue
        begins, ends = max(child.t_enter_ns, at), min(until or 0, end)
        if ends <= begins:
            continue
        own += begins - at
        at = ends
        if isinstance(child, Span):
            yield from _divide(child, (*stack, name), begins, ends)
        elif child.is_qmp:
            yield Part((*stack, f"QMP {name}"), QEMU, ends - begins)
        else:
            yield Part((*stack, name), REST, ends - begins)
    own += end - at
    if own > 0:
        yield Part(stack, LOCK if span.role == roles.LOCK else REST, own)


class Spent(Statistics):
    """Time of calls, with the wait for a worker. ns: the sum of each kind."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ns = dict.fromkeys(KINDS, 0)

    def add_call(self, call: Call, ns: dict[str, int], total_ns: int) -> None:
        self.add(None, total_ns, failed=call.failed)
        for kind, part in ns.items():
            self.ns[kind] += part

    @property
    def total_ns(self) -> int:
        return sum(self.ns.values())


class TimeSpent:
    """Where the time of all calls went.

    told: kinds that the trace's probes tell from the rest.
    kinds: the times of each kind, of the calls with any.
    apis, domains, clients: by name; calls of unknown domain or client are not among these.
    left_out: number of calls whose end, or a reply in them, was not seen.
    """

    def __init__(self, trace: ReadableTrace) -> None:
        seen = seen_by(trace.header["probes"])
        self.told = frozenset(kind for kind, needed in _TOLD_BY.items() if needed <= seen)
        self.calls = Spent("all calls")
        self.kinds = {kind: Statistics(kind) for kind in KINDS}
        self.apis: dict[str, Spent] = {}
        self.domains: dict[str, Spent] = {}
        self.clients: dict[str, Spent] = {}
        self.left_out = 0
        self._trace = trace

    def watch(self, nodes: Iterable[Node]) -> Iterator[Node]:
        """Take the calls among the nodes that pass through."""
        for node in nodes:
            if isinstance(node, Call):
                self.add(node)
            yield node

    @property
    def unknown(self) -> str | None:
        """Why a trace, read to its end, does not tell where the time went; None if it does."""
        if not self.told:
            return "nothing that a call waits for was traced"
        if self._trace.switched_off:
            return "a probe was switched off while it was recorded"
        if self._trace.footer is not None and self._trace.footer["dropped"]:
            return "events were dropped while it was recorded"
        return None

    def add(self, call: Call) -> None:
        divided = parts(call)
        if divided is None:
            self.left_out += 1
            return
        ns: dict[str, int] = {}
        for part in divided:
            ns[part.kind] = ns.get(part.kind, 0) + part.ns
        total = sum(ns.values())
        for kind, each in ns.items():
            self.kinds[kind].add(None, each, failed=call.failed)
        self.calls.add_call(call, ns, total)
        for rows, name in (
            (self.apis, call.procedure or call.root.name),
            (self.domains, domain_of(call)),
            (self.clients, _client(call)),
        ):
            if name is not None:
                if len(rows) >= _MOST_ROWS and name not in rows:
                    name = _OTHERS
                rows.setdefault(name, Spent(name)).add_call(call, ns, total)


def domain_of(call: Call) -> str | None:
    """Return the domain that a call is about, by the name that the trace has."""
    name = call.domain or call.root.arguments.get("domain")
    return name if isinstance(name, str) else None


def _client(call: Call) -> str | None:
    process = (call.client or {}).get("process-id")
    return f"process {process}" if type(process) is int else None
