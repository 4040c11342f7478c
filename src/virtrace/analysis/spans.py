"""Call trees, built event by event, live or from a file.

Threads interleave, and a reply is received on another thread than its command. Therefore only
``span``, ``parent`` and ``call`` of an event decide where it belongs, not its thread or its
position in the file.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Union

from virtrace.analysis import rpc
from virtrace.analysis.qmp import Exchange
from virtrace.errors import TraceError
from virtrace.trace import roles
from virtrace.trace.format import ENDED, Event, Json, Record, is_unavailable, unavailable

# Depth of nested functions in a tree. No thread of libvirt comes near; walking over a deeper tree
# would take too long, or too much of Python's stack.
MOST_NESTED = 50
# Errors outside of calls that are kept for a call that fails without an error of its own.
_MOST_MEANWHILE = 16
# What a trace has in place of a text that is NULL.
_NULL_TEXT = unavailable("NULL pointer")
_TOO_DEEP = f"more than {MOST_NESTED} functions inside one another: the rest is side by side"


@dataclass
class Span:
    """A function from its entry to its return.

    arguments: captures at its entry.
    role: of its probe.
    returned: captures at its return; None if no return was seen.
    lost: why no return was seen, if the engine knew.
    exit_seq: ``seq`` of the event of its return.
    children: spans, points and exchanges in order of time.
    """

    id: int
    name: str
    tid: int
    t_enter_ns: int
    arguments: Record
    role: str | None = None
    t_exit_ns: int | None = None
    returned: Record | None = None
    lost: str | None = None
    exit_seq: int | None = None
    children: list[Child] = field(default_factory=list)

    @property
    def duration_ns(self) -> int | None:
        return None if self.t_exit_ns is None else self.t_exit_ns - self.t_enter_ns

    @property
    def unfinished(self) -> bool:
        """Whether it had not returned when the trace ended."""
        return self.t_exit_ns is None and self.lost in (None, ENDED)

    def errors(self) -> list[Event]:
        """Return the errors that were raised in it, in order of time."""
        return [
            node.event
            for node in self.nodes()
            if isinstance(node, Point) and node.event.role == roles.ERROR
        ]

    @property
    def failed(self) -> bool:
        """Whether it returned a negative number, or NULL after an error.

        An error from which it recovered does not count.
        """
        result = (self.returned or {}).get("result")
        if type(result) is int:
            return result < 0
        return self.returns_null and bool(self.errors())

    @property
    def returns_null(self) -> bool:
        """Whether it returned NULL: as a pointer, or where a text was expected."""
        return (self.returned or {}).get("result") in ("0x0", _NULL_TEXT)

    def nodes(self) -> Iterator[Child]:
        """Yield it and every node below, parents first, children in order of time."""
        rest: list[Child] = [self]
        while rest:
            node = rest.pop()
            yield node
            if isinstance(node, Span):
                rest.extend(reversed(node.children))


@dataclass
class Point:
    """Any other event: a static probe, a source line, an error."""

    event: Event


Child = Union[Span, Point, Exchange]


@dataclass
class Call:
    """One call of a traced API, with everything that happened in it.

    id: ``call`` of its events.
    problems: what is missing from the tree, in words; complete once the tree is returned.
    received: the message of the client that asked for it, if there was one.
    apart: if it failed, the last errors that were raised outside of calls while it ran, as on the
    thread that receives QEMU's messages.
    """

    id: int | None
    root: Span
    problems: list[str] = field(default_factory=list)
    received: Event | None = None
    apart: list[Event] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every return in it was seen and every event of it has its place."""
        return not self.problems

    def errors(self) -> list[Event]:
        """Return the errors that were raised in it, in order of time."""
        return self.root.errors()

    @property
    def meanwhile(self) -> list[Event]:
        """Return the errors that were raised outside of calls, if it had none of its own."""
        return [] if self.errors() else self.apart

    # Each explainer asks. A builder returns a call when nothing of this changes any more.
    @functools.cached_property
    def failed(self) -> bool:
        """Whether the API failed, or the reply to the client was an error.

        NULL is a failure if an error was raised, be it on another thread.
        """
        return self.failed_by_itself or (self.root.returns_null and bool(self.meanwhile))

    @property
    def failed_by_itself(self) -> bool:
        """The same, whatever was raised on other threads."""
        return self.root.failed or self._own(roles.RPC_REPLY, "status") == rpc.ERROR

    @property
    def procedure(self) -> str | None:
        """Libvirt's name of the procedure that a client called."""
        return self._name(roles.RPC_PROCEDURE)

    @property
    def domain(self) -> str | None:
        """The domain of a client's call, if it is about exactly one."""
        return self._name(roles.RPC_DOMAIN)

    @property
    def client(self) -> Record | None:
        """The client of a call, by the names of libvirt's identities."""
        identity = self._own(roles.RPC_CLIENT, "identity")
        return identity if isinstance(identity, dict) and not is_unavailable(identity) else None

    @property
    def queued_ns(self) -> int | None:
        """How long a client's call waited for a worker, ns."""
        return None if self.received is None else self.root.t_enter_ns - self.received.t_ns

    def _name(self, role: str) -> str | None:
        name = self._own(role, "name")
        return name if isinstance(name, str) else None

    def _own(self, role: str, name: str) -> Json:
        """Return a value of the only point of this role directly below the root, or None."""
        points = [child.event for child in self.root.children if isinstance(child, Point)]
        events = [event for event in points if event.role == role]
        return events[0].values.get(name) if len(events) == 1 else None

    def nodes(self) -> Iterator[Child]:
        """Yield every node of the tree, parents first, children in order of time."""
        return self.root.nodes()

    def alone(self) -> Call:
        """Return the call without its descendants, except points that identify it."""
        own = [child for child in self.root.children if isinstance(child, Point)]
        return replace(self, root=replace(self.root, children=list(own)))


@dataclass
class Tally:
    """Counts of what a CallBuilder returned.

    calls, failed, incomplete: calls.
    apart: points and exchanges outside of calls.
    outside: events of calls that are not in the trace.
    """

    calls: int = 0
    apart: int = 0
    failed: int = 0
    incomplete: int = 0
    outside: int = 0


@dataclass
class _Tree:
    call: Call
    spans: list[Span] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    held: int = 0


class _Open(NamedTuple):
    """A function that has not returned.

    inside: the span that its events are attached to: itself, unless it is nested too deep.
    depth: of `inside`.
    """

    span: Span
    tree: _Tree
    inside: Span
    depth: int


class CallBuilder:
    """Builds call trees from events in the order of the file, and returns each as it ends.

    It keeps only what is open or was not fetched yet, so it can run as long as the trace.

    >>> from virtrace.trace.reader import read_trace
    >>> trace = read_trace("tests/data/sample-blockinfo.jsonl")
    >>> for call in CallBuilder().calls(trace.events):
    ...     print(call.id, call.failed, call.root.name, call.root.arguments["disk"])
    1 False virDomainGetBlockInfo vda
    8 False virDomainGetBlockInfo vdb
    15 False virDomainGetBlockInfo vdc
    22 False virDomainGetBlockInfo vdd
    """

    def __init__(self, most_open: int | None = None) -> None:
        """most_open: number of events in open calls above which TraceError is raised."""
        self.tally = Tally()
        self._most_open = most_open
        self._held = 0
        self._open: dict[int, _Open] = {}
        # Requests that wait for their reply, by `seq`.
        self._requests: dict[int, Exchange] = {}
        self._apart: list[Point | Exchange] = []
        self._errors_apart: deque[Event] = deque(maxlen=_MOST_MEANWHILE)
        # Those of them outside of calls.
        self._unanswered: dict[int, Exchange] = {}
        # Calls of clients that no worker has picked up yet.
        self._received: dict[str, Event] = {}

    def pop_outside_calls(self) -> list[Point | Exchange]:
        """Return what happened outside of calls since the last time, requests once answered."""
        taken, self._apart = self._apart, []
        self.tally.apart += len(taken)
        return taken

    def feed(self, event: Event) -> Call | None:
        """Take an event, and return the tree that it completes, if any."""
        if event.type in ("point", "line"):
            self._happened(event)
        elif event.span is None:
            self.tally.outside += 1
        elif event.type == "enter":
            self._enter(event, event.span)
        else:
            return self._exit(event, event.span)
        return None

    def calls(self, events: Iterable[Event]) -> Iterator[Call]:
        """Yield every tree of a trace as it ends; those that never end last."""
        return (node for node in self.everything(events) if isinstance(node, Call))

    def everything(self, events: Iterable[Event]) -> Iterator[Call | Point | Exchange]:
        """Yield every tree of a trace, and what is outside of them, as it ends."""
        for event in events:
            call = self.feed(event)
            if call is not None:
                yield call
            yield from self.pop_outside_calls()
        yield from self.finish()
        yield from self.pop_outside_calls()

    def finish(self) -> list[Call]:
        """Return the trees that are open, in the order in which they began.

        Requests outside of calls without a reply can be fetched from now on.
        """
        self._apart += self._unanswered.values()
        self._unanswered.clear()
        self._apart += map(Point, self._received.values())
        self._received.clear()
        trees = {id(one.tree): one.tree for one in self._open.values()}
        return [self._close(tree) for tree in trees.values()]

    def _enter(self, event: Event, id_: int) -> None:
        if id_ in self._open:
            self._open[id_].tree.call.problems.append(f"span {id_} begins twice")
            return
        span = Span(id_, event.name, event.tid, event.t_ns, event.values, event.role)
        home = self._home(event)
        if home is None:
            key = rpc.key(event.values) if event.role == roles.RPC_CALL else None
            received = self._received.pop(key, None) if key is not None else None
            tree = _Tree(Call(event.call, span, received=received))
            if event.parent is not None:
                tree.call.problems.append(f"the caller of {event.name} is not in the trace")
            self._open[id_] = _Open(span, tree, span, 1)
        else:
            tree = home.tree
            home.inside.children.append(span)
            if home.depth < MOST_NESTED:
                self._open[id_] = _Open(span, tree, span, home.depth + 1)
            else:
                self._open[id_] = _Open(span, tree, home.inside, home.depth)
                if tree.call.problems[:1] != [_TOO_DEEP]:
                    tree.call.problems.insert(0, _TOO_DEEP)
        tree.spans.append(span)
        self._hold(tree)

    def _exit(self, event: Event, id_: int) -> Call | None:
        if id_ not in self._open:
            home = self._home(event)
            if home is None:
                self.tally.outside += 1
            else:
                home.tree.call.problems.append(f"the entry of {event.name} is not in the trace")
            return None
        span, tree = self._open[id_].span, self._open[id_].tree
        if event.type == "exit":
            span.t_exit_ns, span.returned, span.exit_seq = event.t_ns, event.values, event.seq
        else:
            span.lost = str(event.values.get("why", "the engine does not say why"))
        return self._close(tree) if span is tree.call.root else None

    def _happened(self, event: Event) -> None:
        if event.answers in self._requests:
            answered = self._requests.pop(event.answers)
            answered.reply = event
            if self._unanswered.pop(event.answers, None):
                self._apart.append(answered)
            return
        if event.call is None and event.parent is None:
            self._happened_apart(event)
            return
        home = self._home(event)
        if home is None:
            self.tally.outside += 1
            return
        self._hold(home.tree)
        if event.role in roles.REQUESTS:
            exchange = self._request(event)
            home.tree.exchanges.append(exchange)
            home.inside.children.append(exchange)
        else:
            home.inside.children.append(Point(event))

    def _request(self, event: Event) -> Exchange:
        exchange = Exchange(event)
        self._requests[event.seq] = exchange
        return exchange

    def _hold(self, tree: _Tree) -> None:
        tree.held += 1
        self._held += 1
        self._check_bound()

    def _check_bound(self) -> None:
        held = self._held + len(self._unanswered) + len(self._received)
        if self._most_open is not None and held > self._most_open:
            raise TraceError(
                f"more than {self._most_open:,} events of the trace are open at a time",
                "if you trust it, unpack it yourself and name the result",
            )

    def _happened_apart(self, event: Event) -> None:
        self._check_bound()
        if event.role in roles.REQUESTS:
            self._unanswered[event.seq] = self._request(event)
        elif rpc.is_call(event) and (key := rpc.key(event.values)):
            # A client freed and made anew can have the address of the old one.
            if key in self._received:
                self._apart.append(Point(self._received[key]))
            self._received[key] = event
        else:
            if event.role == roles.ERROR:
                self._errors_apart.append(event)
            self._apart.append(Point(event))

    def _home(self, event: Event) -> _Open | None:
        """Return the open function that an event happened in.

        If that span is not in the trace because its entry was dropped, the event is attached to the
        root of the call, and the tree is marked.
        """
        if event.parent in self._open:
            return self._open[event.parent]
        outermost = self._open.get(event.call) if event.call is not None else None
        if outermost is None:
            return None
        tree = outermost.tree
        tree.call.problems.append(f"the caller of {event.name} is not in the trace")
        return _Open(tree.call.root, tree, tree.call.root, 1)

    def _close(self, tree: _Tree) -> Call:
        call = tree.call
        self._held -= tree.held
        for span in tree.spans:
            del self._open[span.id]
            if span.returned is None:
                why = f": {span.lost}" if span.lost else ""
                call.problems.append(f"the return of {span.name} was not seen{why}")
        for exchange in tree.exchanges:
            if self._requests.get(exchange.send.seq) is exchange:
                del self._requests[exchange.send.seq]
        if call.failed_by_itself or call.root.returns_null:
            since = call.root.t_enter_ns
            call.apart = [each for each in self._errors_apart if each.t_ns >= since]
        self.tally.calls += 1
        self.tally.failed += call.failed
        self.tally.incomplete += not call.complete
        return call
