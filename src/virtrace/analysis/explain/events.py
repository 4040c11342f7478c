"""Which events of guests libvirt sent to which clients; texts in events.yaml.

libvirt queues an event, and its event loop takes it up: for each registration that matches, it
makes a message to the client. Nothing in a message says of which event it is, so that both are
joined by their order, kind and domain. Numbers of messages: libvirt's
src/remote/remote_protocol.x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Union

from virtrace.analysis import rpc
from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point, Span
from virtrace.analysis.values.meaning import lifecycle, one_of
from virtrace.trace.format import Event, Json, Record

_QUEUED, _TIMER, _MATCHED = "event.queued", "event.timer", "event.matched"
_MESSAGE, _DEREGISTERED = "event.message", "event.deregistered"
_REGISTER = "virConnectDomainEventRegisterAny"
_LIFECYCLE, _MADE = "event.lifecycle", "event."
_LATE_NS = 1_000_000_000
# virNetMessageType, REMOTE_PROGRAM.
_IS_EVENT, _PROGRAM = 2, 0x20008086
# By number of a message: a virDomainEventID.
_KINDS = {
    **{318 + kind: kind for kind in range(16)},
    **dict(zip((339, 346, 348, 354, 359, 363, 367, 379, 385), range(16, 25))),
    **dict(zip((423, 438, 453, 454, 455), range(25, 30))),
    # To clients that are older than 1.3.
    **dict(zip((107, 169, 170, 171, 172, 173, 195, 224, 241, 248, 268, 269, 270, 276), range(14))),
    **{292: 14, 311: 15},
}
_MOST = 100_000
# Before what is no longer kept: what became of an event of that time may be in there.
_UNSURE_NS = 1_000_000_000
_MOST_SHOWN = 20


@dataclass(frozen=True)
class _Registration:
    """client: its address. domain: None for all guests."""

    client: str
    kind: Json
    domain: Json

    @property
    def words(self) -> str:
        whose = self.domain if isinstance(self.domain, str) else "all guests"
        return f"registered for {_kind_words(self.kind)} of {whose}"


@dataclass
class EventCase(model.Case):
    """An event of a guest that was queued.

    what: the event, in words. clients: who they are, by address.
    messages: to clients. others: registrations in the trace that do not match.
    taken: when the event loop took it up, by the trace's clock.
    withheld: whether a registration matched without a message.
    """

    event: Event
    what: str
    end_ns: int
    messages: list[Exchange] = field(default_factory=list)
    connections: set[str] = field(default_factory=set)
    clients: dict[str, str] = field(default_factory=dict)
    others: list[_Registration] = field(default_factory=list)
    taken: int | None = None
    withheld: bool = False

    @property
    def domain(self) -> str:
        name = self.event.values.get("name")
        return name if isinstance(name, str) else "a guest"

    @property
    def kind(self) -> Json:
        return self.event.values.get("kind")

    @property
    def registered(self) -> int | None:
        """The number of all registrations with the driver."""
        number = self.event.values.get("registered")
        return number if type(number) is int else None

    @property
    def slowest(self) -> Exchange | None:
        """The message that was not written, else the one that was written last."""
        return max(self.messages, key=lambda one: _written(one) or self.end_ns + 1, default=None)

    def who(self, message: Exchange) -> str:
        return self.clients.get(_client(message), "a client that connected before the trace")

    @property
    def waited(self) -> int:
        """How long the slowest message took, ns."""
        slowest = self.slowest
        until = slowest.reply.t_ns if slowest and slowest.reply else self.end_ns
        return max(until - self.event.t_ns, 0)

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self.what

    @property
    def names(self) -> Mapping[str, Json]:
        slowest = self.slowest
        return {
            "domain": self.domain,
            "kind": _kind_words(self.kind).replace(" ", "-"),
            "receivers": self._receivers,
            "slow": self.who(slowest) if slowest else None,
            "unasked": "the only registration is for something else"
            if self.registered == 1
            else f"none of the {self.registered} registrations is for it",
        }

    @property
    def _receivers(self) -> str | None:
        return " and ".join(dict.fromkeys(map(self.who, self.messages))) or None

    @property
    def numbers(self) -> Mapping[str, int | None]:
        return {"since": Nanoseconds(self.waited)}

    @property
    def key(self) -> object:
        ends = tuple((each.reply is None, _written(each) is None) for each in self.messages)
        how = (self.registered, self._receivers, self.taken is None, self.withheld, ends)
        is_late = _all_written(self) and self.waited >= _LATE_NS
        return self.subject, how, tuple(self.others), is_late

    @property
    def facts(self) -> Sequence[Fact]:
        shown = []
        for message in self.messages[:_MOST_SHOWN]:
            until = _written(message)
            took = "not taken" if until is None else Nanoseconds(max(until - self.event.t_ns, 0))
            how = "" if until is None else "from the event until its socket had taken it"
            shown.append(Fact(self.who(message), took, how, message.send.seq))
        for each in self.others[:_MOST_SHOWN]:
            shown.append(Fact(self.clients[each.client], "nothing sent", each.words))
        if self.registered is not None:
            shown.append(Fact("registrations in all", self.registered, "with this driver"))
        return shown

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.event.call] if self.event.call is not None else ()


def _kind_words(kind: Json) -> str:
    words = one_of("virDomainEventID", kind) if type(kind) is int else None
    return words or f"kind {kind}"


def _written(message: Exchange) -> int | None:
    """When the client's socket had taken the message, by the trace's clock; None: it had not."""
    values = message.reply.values if message.reply else {}
    sent = values.get("sent")
    is_sent = type(sent) is int and sent == values.get("length")
    return message.reply.t_ns if message.reply and is_sent else None


def _client(message: Exchange) -> str:
    return str(message.send.values.get("client"))


@dataclass
class _Loop:
    """A thread that takes events up: of which timer, and the last match without a message yet."""

    timer: Json = None
    match: Event | None = None


class _Called(NamedTuple):
    """A call of a client: its address, and who it is."""

    client: str
    who: str


class _Registered(NamedTuple):
    """A registration in a call of a client."""

    client: str
    values: Record
    number: int


# Of a call, which can have many events, no more is kept.
_Step = Union[Event, Exchange, _Called, _Registered]


class _Reader:
    """Keeps all of events and their messages, and goes through it when the trace ends."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, _Step]] = []
        # From when on not everything is kept.
        self._cut_ns: int | None = None
        self._made: dict[str, Event] = {}
        # By timer, in their order.
        self._pending: dict[Json, list[EventCase]] = {}
        self._loops: dict[int, _Loop] = {}
        self._clients: dict[str, str] = {}
        self._registered: dict[tuple[str, Json], _Registration] = {}

    def take(self, node: Node) -> Sequence[EventCase]:
        if isinstance(node, Call):
            self._called(node)
        elif isinstance(node, Exchange):
            if node.send.values.get("type") == _IS_EVENT:
                self._keep(node.send.t_ns, node.send.seq, node)
        else:
            self._happened(node.event, None)
        return ()

    def _called(self, call: Call) -> None:
        client = str(call.root.arguments.get("client"))
        if call.client is not None:
            called = _Called(client, rpc.client_words(call.client))
            self._keep(call.root.t_enter_ns, 0, called)
        for each in call.nodes():
            if isinstance(each, Point):
                self._happened(each.event, call)
            elif isinstance(each, Span) and each.name == _REGISTER:
                number = (each.returned or {}).get("result")
                if type(number) is int and number >= 0:
                    made = _Registered(client, each.arguments, number)
                    self._keep(each.t_exit_ns or each.t_enter_ns, 0, made)

    def _happened(self, event: Event, call: Call | None) -> None:
        wanted = event.name.startswith(_MADE)
        if event.name == _TIMER:
            # Another time is that of another timer.
            wanted = event.values.get("timeout") == -1
        if event.name == _MATCHED:
            wanted = call is None
        if wanted:
            self._keep(event.t_ns, event.seq, event)

    def _keep(self, t_ns: int, seq: int, step: _Step) -> None:
        if len(self._steps) < _MOST:
            self._steps.append((t_ns, seq, step))
        elif self._cut_ns is None:
            self._cut_ns = t_ns

    def finish(self, end_ns: int) -> Iterator[EventCase]:
        found: list[EventCase] = []
        for _, _, step in sorted(self._steps, key=itemgetter(0, 1)):
            if isinstance(step, Exchange):
                self._sent(step)
            elif isinstance(step, _Called):
                self._clients[step.client] = step.who
            elif isinstance(step, _Registered):
                self._register(step)
            elif step.name == _QUEUED:
                found += self._queued(step, end_ns)
            elif step.name == _TIMER:
                self._taken_up(step)
            elif step.name == _MATCHED:
                self._close_match(self._loops.setdefault(step.tid, _Loop()), step)
            elif step.name == _DEREGISTERED:
                connection, number = (
                    step.values.get(name) for name in ("connection", "registration")
                )
                self._registered.pop((str(connection), number), None)
            else:
                self._made[str(step.values.get("event"))] = step
        for loop in self._loops.values():
            self._close_match(loop, None)
        cut_ns = None if self._cut_ns is None else self._cut_ns - _UNSURE_NS
        yield from (each for each in found if cut_ns is None or each.event.t_ns < cut_ns)

    def _register(self, made: _Registered) -> None:
        kind, domain = made.values.get("kind"), made.values.get("domain")
        registration = _Registration(
            made.client, kind, None if isinstance(domain, dict) else domain
        )
        self._registered[str(made.values.get("connection")), made.number] = registration

    def _queued(self, event: Event, end_ns: int) -> Iterator[EventCase]:
        made = self._made.pop(str(event.values.get("event")), None)
        kind = event.values.get("kind")
        # A lifecycle has been made before, and of others it is known of what they are.
        if (made is None and kind == 0) or (made is not None and made.name != _LIFECYCLE):
            return
        what = f"{_kind_words(kind)} event"
        if made is not None:
            how = lifecycle(made.values.get("type"), made.values.get("detail"))
            what += f" ({how})" if how else ""
        case = EventCase(event, what, end_ns, clients=dict(self._clients))
        case.others = [each for each in self._registered.values() if not _matches(each, case)]
        self._pending.setdefault(event.values.get("timer"), []).append(case)
        yield case

    def _taken_up(self, event: Event) -> None:
        timer = event.values.get("timer")
        pending = self._pending.get(timer, [])
        # What was taken up before is over, unless it came to the queue just then.
        pending[:] = [each for each in pending if each.taken is None or not each.messages][-_MOST:]
        for case in pending:
            case.taken = case.taken or event.t_ns
        if pending:
            loop = self._loops.setdefault(event.tid, _Loop())
            self._close_match(loop, None)
            loop.timer = timer

    def _close_match(self, loop: _Loop, match: Event | None) -> None:
        """Note that the registration of the last match got no message."""
        if loop.match is not None:
            for case in self._pending.get(loop.timer, []):
                if case.domain == loop.match.values.get("domain") and case.taken is not None:
                    case.withheld = True
        loop.match = match

    def _sent(self, message: Exchange) -> None:
        values, loop = message.send.values, self._loops.get(message.send.tid)
        kind = _KINDS.get(values["procedure"]) if values.get("program") == _PROGRAM else None
        if loop is None or loop.match is None or kind is None:
            return
        match, loop.match = loop.match, None
        connection = str(match.values.get("connection"))
        fitting = [
            case
            for case in self._pending.get(loop.timer, [])
            if case.taken is not None
            and (case.kind, case.domain) == (kind, match.values.get("domain"))
        ]
        # Each registration gets the events in their order; a second one of a client, again.
        fresh = [case for case in fitting if connection not in case.connections]
        for case in (fresh or fitting[-1:])[:1]:
            case.connections.add(connection)
            case.messages.append(message)


def _matches(registration: _Registration, case: EventCase) -> bool:
    return registration.kind == case.kind and registration.domain in (None, case.domain)


_CAUSES: Catalogue[EventCase] = Catalogue(Path(__file__).with_name("events.yaml"))
EXPLAINER = Explainer("events", _CAUSES, lambda _: _Reader())


def _register(name: str, holds: Callable[[EventCase], bool]) -> None:
    @_CAUSES.condition(name)
    def condition(case: EventCase) -> list[Evidence] | None:
        if not holds(case):
            return None
        sent = [Evidence("libvirt made the message", None, each.send.seq) for each in case.messages]
        return [Evidence("libvirt queued the event", None, case.event.seq), *sent[:_MOST_SHOWN]]


def _is_closed(case: EventCase) -> bool:
    replies = [each.reply.values for each in case.messages if each.reply]
    sizes = [(each.get("sent"), each.get("length")) for each in replies]
    return any(type(sent) is int and sent != length for sent, length in sizes)


def _all_written(case: EventCase) -> bool:
    return bool(case.messages) and None not in map(_written, case.messages)


_register("closed", _is_closed)
_register("not-taken", lambda case: any(each.reply is None for each in case.messages))
_register("late", lambda case: _all_written(case) and case.waited >= _LATE_NS)
_register("sent", _all_written)
_register("withheld", lambda case: case.withheld and not case.messages)
_register("nobody", lambda case: case.registered == 0)
_register("loop-busy", lambda case: bool(case.registered) and case.taken is None)
_register(
    "not-asked",
    lambda case: bool(case.registered) and case.taken is not None and not case.messages,
)
_register("unknown", lambda _: True)
