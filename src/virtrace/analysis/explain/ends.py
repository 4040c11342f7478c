"""Who ended, paused or crashed a guest: conditions here, texts in ends.yaml.

What became of a guest is what libvirt told its clients (virConnectDomainEventLifecycle). Numbers of
types and details: libvirt's include/libvirt/libvirt-domain.h.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis import rpc
from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import data_of, event_name
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node, events_in
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# virDomainEventType.
_STARTED, _SUSPENDED, _RESUMED, _STOPPED, _SHUTDOWN, _CRASHED = 2, 3, 4, 5, 6, 8
# virDomainEventSuspendedDetailType, virDomainEventStoppedDetailType.
_IO_ERROR, _WATCHDOG = 2, 3
_STOPPED_CRASHED, _STOPPED_FAILED = 2, 5
# Calls during which QEMU pauses a guest for libvirt, and calls that ask a guest to end.
_PAUSING = ("Suspend", "Save", "Migrate", "Dump", "Snapshot", "Revert", "MonitorCommand")
_ASKING = ("Shutdown", "Reboot")
_COMMANDING = "MonitorCommand"
# A command to QEMU so long before its end can have ended it, ns.
_COMMAND_BEFORE_NS = 10_000_000_000
# Kept of each guest; guests beyond these are not kept.
_MOST_EVENTS = 30
_MOST_GUESTS = 1000
_MOST_CALLS = 1000


@dataclass
class EndCase(model.Case):
    """An end, a pause or a crash of a guest.

    done: `ended`, `paused` or `crashed`.
    told: what libvirt said of it, in order of time. qemu: QEMU's events that led to it.
    within: the client's call in which libvirt ended or paused it.
    during: a call of a kind that pauses guests, while QEMU did.
    asked: the last call before that asked the guest to end.
    commanded: the last call before that sent QEMU a command of the client's own.
    resumed: when it went on.
    """

    domain: str
    done: str
    told: list[Event]
    qemu: list[Event]
    within: Call | None = None
    during: Call | None = None
    asked: Call | None = None
    commanded: Call | None = None
    resumed: Event | None = None

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain,)

    @property
    def last(self) -> Event:
        return self.told[-1]

    @property
    def shutdown(self) -> Event | None:
        """The first SHUTDOWN of QEMU: libvirt itself ends QEMU after it."""
        return self.event("SHUTDOWN")

    def event(self, name: str) -> Event | None:
        """Return the first of QEMU's events of this name."""
        return next((each for each in self.qemu if event_name(each) == name), None)

    @property
    def detail(self) -> Json:
        return self.last.values.get("detail")

    @property
    def call(self) -> Call | None:
        return self.within or self.during or self.asked or self.commanded

    @property
    def names(self) -> Mapping[str, Json]:
        data = data_of(self.event("BLOCK_IO_ERROR"))
        reason = data_of(self.shutdown).get("reason")
        return {
            "domain": self.domain,
            "done": self.done,
            "procedure": _procedure(self.call) if self.call else None,
            "client": rpc.client_words(self.call.client) if self.call else None,
            "reason": reason if isinstance(reason, str) else "it does not say why",
            "device": data.get("device") or data.get("node-name") or "a disk",
            "error": data.get("reason") or "an error that QEMU does not name",
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        since = self.shutdown or self.last
        asked = self.asked or self.commanded
        begun = asked.root.t_enter_ns if asked else since.t_ns
        return {"since": Nanoseconds(max(since.t_ns - begun, 0))}

    @property
    def key(self) -> object:
        return self.domain, self.last.seq

    @property
    def facts(self) -> Sequence[Fact]:
        steps = sorted([*self.qemu, *self.told], key=lambda each: each.t_ns)
        shown = [
            Fact(_step(each), Nanoseconds(each.t_ns), "after the trace began", each.seq)
            for each in steps
        ]
        if self.resumed is not None:
            ns = Nanoseconds(max(self.resumed.t_ns - self.last.t_ns, 0))
            shown.append(Fact("went on", ns, "later", self.resumed.seq))
        return shown

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.call.id] if self.call else ()


def _step(event: Event) -> str:
    if event.role == roles.QMP_EVENT:
        reason = data_of(event).get("reason")
        return f"QEMU: {event_name(event)}" + (f" ({reason})" if isinstance(reason, str) else "")
    words = {_SUSPENDED: "paused", _STOPPED: "stopped", _SHUTDOWN: "shut down", _CRASHED: "crashed"}
    return f"libvirt: {words[event.values['type']]}"


def _procedure(call: Call) -> str:
    name = call.procedure or call.root.name
    return name.removeprefix("remoteDispatch").removeprefix("qemuDispatch")


def _any(words: Sequence[str], name: str) -> bool:
    return any(word in name for word in words)


@dataclass
class _Guest:
    """What is pending of a guest, and QEMU's last events, of its monitor."""

    told: list[Event] = field(default_factory=list)
    within: Call | None = None
    paused: EndCase | None = None
    qemu: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS))


class _Reader:
    """Takes all, and finds cases when all is known: a call is known only when it has returned."""

    def __init__(self) -> None:
        self._happened: list[tuple[Event, Call | None]] = []
        self._calls: deque[Call] = deque(maxlen=_MOST_CALLS)
        self._guests: dict[str, _Guest] = {}
        # QEMU's events by monitor, and those of the monitor that a thread served last: libvirt says
        # what became of the guest on the thread on which it received the event.
        self._monitors: dict[str, deque[Event]] = {}
        self._received: dict[int, deque[Event]] = {}
        self._found: list[EndCase] = []

    def take(self, node: Node) -> Sequence[EndCase]:
        call = node if isinstance(node, Call) else None
        for event in events_in(node):
            self._keep(event, call)
        if isinstance(node, Call):
            words = (*_PAUSING, *_ASKING, _COMMANDING)
            if node.domain is not None and _any(words, _procedure(node)):
                self._calls.append(node)
        return ()

    def _keep(self, event: Event, call: Call | None) -> None:
        kept = event.role in (roles.QMP_EVENT, roles.GUEST_LIFECYCLE)
        if kept and len(self._happened) < _MOST_GUESTS * _MOST_EVENTS:
            self._happened.append((event, call))

    def finish(self, end_ns: int) -> Iterator[EndCase]:
        for event, call in sorted(self._happened, key=lambda each: (each[0].t_ns, each[0].seq)):
            if event.role == roles.QMP_EVENT:
                monitor = str(event.values.get("mon"))
                events = self._monitors.setdefault(monitor, deque(maxlen=_MOST_EVENTS))
                events.append(event)
                self._received[event.tid] = events
            elif isinstance(domain := event.values.get("domain"), str):
                guest = self._guests.setdefault(domain, _Guest())
                if call is None and event.tid in self._received:
                    guest.qemu = self._received[event.tid]
                self._became(domain, guest, event, call)
        for domain, guest in self._guests.items():
            self._end(domain, guest)
        yield from self._found

    def _became(self, domain: str, guest: _Guest, event: Event, call: Call | None) -> None:
        kind = event.values.get("type")
        if kind == _STARTED:
            self._end(domain, guest)
            self._guests[domain] = _Guest()
        elif kind == _RESUMED:
            if guest.paused is not None:
                guest.paused.resumed = event
            guest.paused = None
            guest.qemu.clear()
        elif kind == _SUSPENDED:
            guest.paused = self._case(domain, "paused", [event], guest, call)
            self._found.append(guest.paused)
        elif kind in (_SHUTDOWN, _CRASHED, _STOPPED):
            if kind == _CRASHED and guest.paused is not None:
                # QEMU pauses a guest that reports a panic: it is one case.
                self._found.remove(guest.paused)
                guest.told, guest.paused = guest.paused.told, None
            guest.told.append(event)
            guest.within = call or guest.within
            if kind == _STOPPED:
                self._end(domain, guest)
                guest.qemu.clear()
                self._guests[domain] = _Guest()

    def _end(self, domain: str, guest: _Guest) -> None:
        """Take what was told of a guest, if anything, for the end of its life."""
        if guest.told:
            done = "crashed" if guest.told[-1].values.get("type") == _CRASHED else "ended"
            self._found.append(self._case(domain, done, guest.told, guest, guest.within))

    def _case(
        self, domain: str, done: str, told: list[Event], guest: _Guest, call: Call | None
    ) -> EndCase:
        # What QEMU said after libvirt had told of it came of what libvirt did then.
        before = [each for each in guest.qemu if each.t_ns <= told[0].t_ns]
        case = EndCase(domain, done, told, before, call)
        first = min(each.t_ns for each in (*case.told, *case.qemu))
        for each in self._calls:
            begun, name = each.root.t_enter_ns, _procedure(each)
            if each.domain != domain or begun > case.last.t_ns:
                continue
            if done == "paused":
                if begun <= first <= (each.root.t_exit_ns or first) and _any(_PAUSING, name):
                    case.during = each
            elif _guest_asked(case):
                if begun <= first and _any(_ASKING, name):
                    case.asked = each
            elif _COMMANDING in name and _without_a_word(case):
                recent = case.last.t_ns - begun < _COMMAND_BEFORE_NS
                case.commanded = each if recent else None
        return case


_CAUSES: Catalogue[EndCase] = Catalogue(Path(__file__).with_name("ends.yaml"))
EXPLAINER = Explainer("ends", _CAUSES, lambda _: _Reader())


def _told(case: EndCase) -> list[Evidence]:
    return [Evidence(_step(case.last), None, case.last.seq)]


def _saw(case: EndCase, name: str) -> list[Evidence] | None:
    event = case.event(name)
    return None if event is None else [Evidence(_step(event), None, event.seq)]


def _register(name: str, holds: Callable[[EndCase], bool], event: str | None = None) -> None:
    @_CAUSES.condition(name)
    def condition(case: EndCase) -> list[Evidence] | None:
        if not holds(case):
            return None
        return (_saw(case, event) if event else None) or _told(case)


def _guest_asked(case: EndCase) -> bool:
    return data_of(case.shutdown).get("guest") is True


def _of_host(case: EndCase, reason: str) -> bool:
    return not _guest_asked(case) and data_of(case.shutdown).get("reason") == reason


def _paused_for(detail: int) -> Callable[[EndCase], bool]:
    return lambda case: case.done == "paused" and case.detail == detail


def _panicked(case: EndCase) -> bool:
    return case.event("GUEST_PANICKED") is not None or any(
        each.values.get("type") == _CRASHED for each in case.told
    )


_register("panic", _panicked, "GUEST_PANICKED")
_register("io-error", _paused_for(_IO_ERROR), "BLOCK_IO_ERROR")
_register("watchdog", _paused_for(_WATCHDOG), "WATCHDOG")
_register("by-call", lambda case: case.within is not None)
_register("during-call", lambda case: case.during is not None, "STOP")
_register("guest-was-asked", lambda case: case.asked is not None, "SHUTDOWN")
_register("by-guest", _guest_asked, "SHUTDOWN")
_register("by-signal", lambda case: _of_host(case, "host-signal"), "SHUTDOWN")
_register("by-qmp", lambda case: _of_host(case, "host-qmp-quit"), "SHUTDOWN")


def _without_a_word(case: EndCase) -> bool:
    failed = case.detail in (_STOPPED_CRASHED, _STOPPED_FAILED)
    return case.done == "ended" and case.shutdown is None and failed


_register("after-command", lambda case: case.commanded is not None)
_register("without-a-word", _without_a_word)
_register("paused-by-qemu", lambda case: case.done == "paused", "STOP")
_CAUSES.condition("unknown")(_told)
