"""What a call asked QEMU for, and how that ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from virtrace.analysis import qmp
from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import (
    brief,
    errors_of,
    no_return,
    path_in,
    quoted_errors,
    told,
)
from virtrace.analysis.explain.model import Catalogue, Fact, Nanoseconds, Node, Traced
from virtrace.analysis.explain.refusals import Refusal
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, FailureRecord, Json

# Commands that change nothing.
_ASKING = ("query-", "qom-list", "qom-get", "device-list-properties")
_MOST_FACTS = 30
# Calls, and events of QEMU, beyond these are not kept.
_MOST_CALLS = 1000
_MOST_EVENTS = 10_000


def commands_of(call: Call, *names: str) -> list[Exchange]:
    """Return the commands of a call in order of time; with names, only these."""
    return [
        node
        for node in call.nodes()
        if isinstance(node, Exchange) and node.is_qmp and (not names or node.command in names)
    ]


def arguments_of(exchange: Exchange) -> Mapping[str, Json]:
    """Return the arguments of a command; empty if there are none."""
    return _mapping(exchange.send, "arguments")


def data_of(event: Event | None) -> Mapping[str, Json]:
    """Return the data of an event of QEMU; empty if there is none."""
    return {} if event is None else _mapping(event, "data")


def _mapping(event: Event, key: str) -> Mapping[str, Json]:
    document = event.values.get("json")
    found = document.get(key) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def event_name(event: Event) -> Json:
    """Return QEMU's name of its event."""
    document = event.values.get("json")
    return document.get("event") if isinstance(document, dict) else None


def monitor_of(event: Event) -> str:
    """Return the monitor of a command or an event, as a key."""
    return str(event.values.get("mon"))


def command_facts(call: Call) -> Iterator[Fact]:
    """Yield what QEMU was asked to do, with its answer; questions are left out."""
    told = [
        each
        for each in commands_of(call)
        if each.failed or not (each.command or "").startswith(_ASKING)
    ]
    for each in told[:_MOST_FACTS]:
        ns = each.duration_ns
        error = qmp.error_of(each.reply) if each.reply is not None else None
        took = "no reply" if ns is None else Nanoseconds(ns)
        yield Fact(f"QMP {each.command or '?'}", took, error or "", each.send.seq)
    if len(told) > _MOST_FACTS:
        yield Fact("further QMP commands", len(told) - _MOST_FACTS)


def refusal(call: Call) -> list[Evidence] | None:
    """Return what QEMU and libvirt said where a call failed; None if it did not fail."""
    if not call.failed:
        return None
    said_by_qemu = [
        Evidence(f"QEMU refused {node.command}: {qmp.error_of(node.reply)}", None, node.reply.seq)
        for node in commands_of(call)
        if node.failed and node.reply is not None
    ]
    return [*said_by_qemu, *quoted_errors(call)]


def of_event(event: Event | None) -> list[Evidence]:
    """Return an event of QEMU as evidence; nothing if there is none."""
    return [] if event is None else [Evidence(f"QEMU: {event_name(event)}", None, event.seq)]


@dataclass
class AskingCase(model.Case):
    """One call in which libvirt asks QEMU for something, and what QEMU said of it later.

    events: those of QEMU that can be about it, in order of time. end_ns: of the trace.
    said: by the host, as the call failed.
    """

    call: Call
    events: Sequence[Event]
    end_ns: int
    said: FailureRecord | None

    @cached_property
    def error(self) -> str | None:
        """The message that the client got."""
        return brief(told(self.call, errors_of(self.call)))

    @cached_property
    def commands(self) -> list[Exchange]:
        return commands_of(self.call)

    def command(self, *names: str) -> Exchange | None:
        """Return the last command of these names that QEMU did not refuse."""
        found = [each for each in self.commands if each.command in names and not each.failed]
        return found[-1] if found else None

    @property
    def succeeded(self) -> bool:
        return self.call.root.returned is not None and not self.call.failed

    @property
    def domain(self) -> str:
        return str(self.call.root.arguments.get("domain"))

    @property
    def flags(self) -> int:
        """The flags of the call; 0 if it has none."""
        flags = self.call.root.arguments.get("flags")
        return flags if type(flags) is int else 0

    @property
    def names(self) -> Mapping[str, Json]:
        file = path_in(self.error)
        return {
            "domain": self.domain,
            "error": self.error,
            "file": file,
            **self.refusal.names(file or "a file"),
        }

    @property
    def refusal(self) -> Refusal:
        return Refusal(self.said, self.error)

    @property
    def note(self) -> str | None:
        return self.refusal.note if self.call.failed else None

    @property
    def numbers(self) -> Mapping[str, int | None]:
        ns = self.call.root.duration_ns
        return {"duration": None if ns is None else Nanoseconds(ns)}

    @property
    def key(self) -> object:
        return self.call.id

    @property
    def facts(self) -> Sequence[Fact]:
        return [*command_facts(self.call), *self.refusal.facts]

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.call.id]


A = TypeVar("A", bound=AskingCase)


@dataclass
class AskingReader(Generic[A]):
    """Keeps calls, and QEMU's events, as something can happen long after a call has returned.

    apis: the calls. names: of events.
    """

    traced: Traced
    case: Callable[[Call, Sequence[Event], int, FailureRecord | None], A]
    apis: Collection[str]
    names: Collection[str]
    _calls: list[Call] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    def take(self, node: Node) -> Sequence[A]:
        if isinstance(node, Call):
            for each in node.nodes():
                if isinstance(each, Point):
                    self._happened(each.event)
            if node.root.name in self.apis and len(self._calls) < _MOST_CALLS:
                self._calls.append(node)
        elif isinstance(node, Point):
            self._happened(node.event)
        return ()

    def _happened(self, event: Event) -> None:
        kept = event.role == roles.QMP_EVENT and event_name(event) in self.names
        if kept and len(self._events) < _MOST_EVENTS:
            self._events.append(event)

    def finish(self, end_ns: int) -> Sequence[A]:
        events = sorted(self._events, key=lambda each: (each.t_ns, each.seq))
        said = self.traced.failure
        return [self.case(call, events, end_ns, said(call)) for call in self._calls]


def register_failures(causes: Catalogue[A], messages: Mapping[str, Sequence[str]]) -> None:
    """Register the causes of a call that did not succeed, and those that the trace does not show.

    messages: texts by cause; the message has to have one of them.
    """

    def condition(texts: Sequence[str]) -> Callable[[A], list[Evidence] | None]:
        def refused(case: A) -> list[Evidence] | None:
            has = case.error is not None and any(text in case.error for text in texts)
            said = refusal(case.call) if has else None
            return None if said is None else [*said, *case.refusal.evidence]

        return refused

    for name, texts in {**messages, "error": [""]}.items():
        causes.condition(name)(condition(texts))
    causes.condition("incomplete")(lambda case: no_return(case.call))
    causes.condition("unknown")(lambda case: refusal(case.call) or [])
