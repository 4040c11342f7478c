"""Call trees, built event by event, live inside GDB or from a file.

Threads interleave, and a reply comes in on another thread than its command: where an
event belongs is decided by its ``span``, ``parent`` and ``call`` alone, never by its
thread or its place in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Union

from virtrace.analysis import rpc
from virtrace.analysis.qmp import Exchange
from virtrace.errors import TraceError
from virtrace.trace import roles
from virtrace.trace.format import ENDED, Event, Json, Record, is_unavailable

# Functions inside one another, of which a tree shows each inside the other. No thread of libvirt's
# comes near; what walks over a tree would take too long, or too much of Python's stack.
MOST_NESTED = 50
_TOO_DEEP = f"more than {MOST_NESTED} functions inside one another: the rest is side by side"


@dataclass
class Span:
    """A function from its entry to its return.

    arguments: what was read at its entry. returned: what was read at its return; None
    where no return was seen. lost: why not, where the engine knew. exit_seq: ``seq`` of the
    event of its return. children: spans, points and exchanges in order of time.
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
        """It had not returned when the trace ended."""
        return self.t_exit_ns is None and self.lost in (None, ENDED)

    def errors(self) -> list[Event]:
        """The errors that libvirt raised in it, in order of time."""
        return [
            node.event
            for node in self.nodes()
            if isinstance(node, Point) and node.event.role == roles.ERROR
        ]

    @property
    def failed(self) -> bool:
        """It says so by what it returned: a negative number, or NULL after an error.

        An error that was raised on the way and got over does not make a call a failed one.
        """
        result = (self.returned or {}).get("result")
        if type(result) is int:
            return result < 0
        return result == "0x0" and bool(self.errors())

    def nodes(self) -> Iterator[Child]:
        """It and every node below, parents first, children in order of time."""
        rest: list[Child] = [self]
        while rest:
            node = rest.pop()
            yield node
            if isinstance(node, Span):
                rest.extend(reversed(node.children))


@dataclass
class Point:
    """Anything else that happened inside a span: a static probe, a watched line, an error."""

    event: Event


Child = Union[Span, Point, Exchange]


@dataclass
class Call:
    """One call of a traced API, with all that happened in it.

    id: ``call`` of its events. problems: what is missing from the tree, in words; known
    once the tree is handed out. received: where a client asked for it, the message that it came
    in.
    """

    id: int | None
    root: Span
    problems: list[str] = field(default_factory=list)
    received: Event | None = None

    @property
    def complete(self) -> bool:
        """Every return in it was seen, and every event of it found its place."""
        return not self.problems

    def errors(self) -> list[Event]:
        """The errors that libvirt raised in it, in order of time."""
        return self.root.errors()

    @property
    def failed(self) -> bool:
        """The API says so by what it returned; to a client, by what it replied."""
        return self.root.failed or self._own(roles.RPC_REPLY, "status") == rpc.ERROR

    @property
    def procedure(self) -> str | None:
        """Of a client's call: what libvirt calls the procedure."""
        return self._name(roles.RPC_PROCEDURE)

    @property
    def domain(self) -> str | None:
        """Of a client's call: the domain that it is about, where that is one alone."""
        return self._name(roles.RPC_DOMAIN)

    @property
    def client(self) -> Record | None:
        """Of a client's call: who the client is, by the names of libvirt's identities."""
        identity = self._own(roles.RPC_CLIENT, "identity")
        return identity if isinstance(identity, dict) and not is_unavailable(identity) else None

    @property
    def queued_ns(self) -> int | None:
        """Of a client's call: how long it waited until a worker took it up."""
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
        """Every node of the tree, parents first, children in order of time."""
        return self.root.nodes()

    def alone(self) -> Call:
        """Without what happened in it, but for what says what it was: to be kept for long."""
        own = [child for child in self.root.children if isinstance(child, Point)]
        return replace(self, root=replace(self.root, children=list(own)))


@dataclass
class Tally:
    """Calls that were handed out. apart: points and QMP commands outside of calls.

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
    """A function that has not returned. inside: below which span its own events come, depth deep.

    That is itself, but for one that is nested too deep.
    """

    span: Span
    tree: _Tree
    inside: Span
    depth: int


class CallBuilder:
    """Feed it every event in the order of the file; it hands out each tree as it ends.

    It holds only what is still open or not taken yet, so that it can run as long as the trace
    does.
    """

    def __init__(self, most_open: int | None = None) -> None:
        """most_open: so many events can be of calls that are open, TraceError where more are."""
        self.tally = Tally()
        self._most_open = most_open
        self._held = 0
        self._open: dict[int, _Open] = {}
        # Requests that wait for their reply, by `seq`.
        self._requests: dict[int, Exchange] = {}
        self._apart: list[Point | Exchange] = []
        # Those of them outside of calls.
        self._unanswered: dict[int, Exchange] = {}
        # Calls of clients that no worker has taken up yet.
        self._received: dict[str, Event] = {}

    def take_apart(self) -> list[Point | Exchange]:
        """What happened outside of calls and was not taken yet; a command once it is answered."""
        taken, self._apart = self._apart, []
        self.tally.apart += len(taken)
        return taken

    def feed(self, event: Event) -> Call | None:
        """The whole tree, where this event is the return of its outermost span."""
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
        """Every tree of a whole trace: each as it ends, and last those that never did."""
        return (node for node in self.everything(events) if isinstance(node, Call))

    def everything(self, events: Iterable[Event]) -> Iterator[Call | Point | Exchange]:
        """Every tree of a whole trace, and what is outside of them: each as it ends."""
        for event in events:
            call = self.feed(event)
            if call is not None:
                yield call
            yield from self.take_apart()
        yield from self.finish()
        yield from self.take_apart()

    def finish(self) -> list[Call]:
        """The trees that are still open, in the order they began; none of them complete.

        Commands outside of calls that were never answered can be taken from now on.
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
            self._apart.append(Point(event))

    def _home(self, event: Event) -> _Open | None:
        """The open function that an event happened in.

        Where that span is not in the trace (its entry was dropped), the call still is:
        the event hangs at the call's root, and the tree is marked.
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
        self.tally.calls += 1
        self.tally.failed += call.failed
        self.tally.incomplete += not call.complete
        return call
