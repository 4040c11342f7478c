"""What a call asked QEMU for, and how that ended."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Generic, TypeVar

from virtrace.analysis import qmp
from virtrace.analysis.explain.messages import brief, errors_of, no_return, path_in, told
from virtrace.analysis.explain.model import (
    Catalogue,
    Fact,
    Nanoseconds,
    Node,
    Traced,
    events_in,
    register_messages,
)
from virtrace.analysis.explain.refusals import RefusableCase
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
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


def of_event(event: Event | None) -> list[Evidence]:
    """Return an event of QEMU as evidence; nothing if there is none."""
    return [] if event is None else [Evidence(f"QEMU: {event_name(event)}", None, event.seq)]


@dataclass(frozen=True)
class AskingCase(RefusableCase):
    """One call in which libvirt asks QEMU for something."""

    @cached_property
    def error(self) -> str | None:
        return brief(told(self.call, errors_of(self.call)))

    @property
    def reasons(self) -> list[Evidence] | None:
        refused = [
            Evidence(f"QEMU refused {each.command}: {qmp.error_of(each.reply)}", seq=each.reply.seq)
            for each in self.commands
            if each.failed and each.reply is not None
        ]
        errors = super().reasons
        return None if errors is None else [*refused, *errors]

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
            **super().names,
            "domain": self.domain,
            "file": file,
            **self.refusal.names(file or "a file"),
        }

    @property
    def facts(self) -> Sequence[Fact]:
        return [*command_facts(self.call), *self.refusal.facts]


class QemuEvents:
    """Events of QEMU, found in a time that does not grow with their number."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._found: dict[str, list[Event]] = {}
        for event in sorted(events, key=lambda each: (each.t_ns, each.seq)):
            device = data_of(event).get("device")
            key = monitor_of(event), event_name(event), device if isinstance(device, str) else None
            self._found.setdefault(str(key), []).append(event)
        self._times = {key: [each.t_ns for each in found] for key, found in self._found.items()}

    def between(
        self,
        monitor: str,
        name: str,
        since_ns: int,
        until_ns: int | None,
        device: str | None = None,
    ) -> Sequence[Event]:
        """Return events about a device, or about none, in order of time.

        since_ns, until_ns: both included; None: to the end of the trace
        """
        key = str((monitor, name, device))
        times = self._times.get(key, [])
        end = len(times) if until_ns is None else bisect_right(times, until_ns)
        return self._found.get(key, [])[bisect_left(times, since_ns) : end]

    def first_after(self, command: Event, *names: str, device: str | None = None) -> Event | None:
        """Return the first event that the QEMU of a command sent after it."""
        found = (
            self.between(monitor_of(command), name, command.t_ns, None, device)[:1]
            for name in names
        )
        return min(chain.from_iterable(found), key=lambda each: (each.t_ns, each.seq), default=None)


@dataclass(frozen=True)
class FollowedCase(AskingCase):
    """One call in which libvirt asks QEMU for something, and what QEMU said of it later.

    events: those of QEMU that can be about it. end_ns: of the trace.
    """

    events: QemuEvents
    end_ns: int


A = TypeVar("A", bound=AskingCase)
B = TypeVar("B", bound=FollowedCase)


@dataclass
class FollowingReader(Generic[B]):
    """Keeps calls, and QEMU's events, as something can happen long after a call has returned.

    apis: the calls. names: of events.
    """

    traced: Traced
    case: Callable[[Call, FailureRecord | None, QemuEvents, int], B]
    apis: Collection[str]
    names: Collection[str]
    _calls: list[Call] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    def take(self, node: Node) -> Sequence[B]:
        for event in events_in(node):
            self._happened(event)
        has_room = len(self._calls) < _MOST_CALLS
        if has_room and isinstance(node, Call) and node.root.name in self.apis:
            self._calls.append(node)
        return ()

    def _happened(self, event: Event) -> None:
        kept = event.role == roles.QMP_EVENT and event_name(event) in self.names
        if kept and len(self._events) < _MOST_EVENTS:
            self._events.append(event)

    def finish(self, end_ns: int) -> Sequence[B]:
        events = QemuEvents(self._events)
        said = self.traced.failure
        return [self.case(call, said(call), events, end_ns) for call in self._calls]


def register_failures(causes: Catalogue[A], messages: Mapping[str, Sequence[str]]) -> None:
    """Register the causes of a call that did not succeed, and those that the trace does not show.

    messages: texts by cause, as of `register_messages`.
    """
    register_messages(causes, {**messages, "error": [""]})
    causes.condition("incomplete")(lambda case: no_return(case.call))
    causes.condition("unknown")(lambda case: case.reasons or [])
