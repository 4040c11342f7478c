"""What a daemon did until it served clients; texts in daemons.yaml.

Drivers are initialised one after the other, on one thread (virStateInitialize of libvirt's
src/libvirt.c). Clients are served when all are; guests that run are connected to again by a thread
of each, which may take longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import UNSEEN, brief, said, text_of
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace import roles
from virtrace.trace.format import Event, Json
from virtrace.wording import count

_INITIALISE, _LOAD, _PROBE = (
    *("virStateInitialize", "virDriverLoadModule"),
    "virQEMUCapsNewForBinaryInternal",
)
_HOOK, _RUN = "virHookCall", "virCommandRun"
_DRIVER, _SERVES, _READY = "start.driver", "start.serves", "start.ready"
_THREAD, _THREAD_ENDS, _GIVES_UP = "start.thread", "start.thread.end", "start.gives-up"
_POOL = "start.pool"
# The name of a thread that connects to a guest.
_CONNECTS = "init-"
_MOST = 20_000
_MOST_SHOWN = 30


@dataclass
class _Connection:
    """A thread that connects to a guest again, and how it ended, if it did."""

    guest: str
    begun: Event
    ended: Event | None = None
    asked: list[Exchange] = field(default_factory=list)
    errors: list[Event] = field(default_factory=list)
    is_lost: bool = False

    @property
    def unanswered(self) -> Exchange | None:
        return next((each for each in self.asked if each.reply is None), None)


@dataclass
class DaemonCase(model.Case):
    """The start of the daemon.

    calls_made: what it did, by the functions that the recipe traces as roots.
    events: points outside of them and in them, in order of time.
    """

    calls_made: list[Call]
    events: list[Event]
    asked: list[Exchange]
    end_ns: int

    @cached_property
    def spans(self) -> list[Span]:
        return [node for call in self.calls_made for node in call.nodes() if isinstance(node, Span)]

    @cached_property
    def drivers(self) -> list[Event]:
        return [each for each in self._of(_DRIVER) if each.values.get("name") == "driver"]

    @property
    def initialised(self) -> Span | None:
        return next((each for each in self.spans if each.name == _INITIALISE), None)

    @cached_property
    def serves(self) -> Event | None:
        found = [each for each in self._of(_SERVES) if each.values.get("enabled") is True]
        return found[0] if found else None

    def _of(self, name: str) -> list[Event]:
        return [each for each in self.events if each.name == name]

    @cached_property
    def connections(self) -> list[_Connection]:
        """What the thread of each guest did, in the order in which they began."""
        found: list[_Connection] = []
        running: dict[int, _Connection] = {}
        for event in self.events:
            name = event.values.get("name")
            if event.name == _THREAD and isinstance(name, str):
                running.pop(event.tid, None)
                if name.startswith(_CONNECTS):
                    running[event.tid] = _Connection(name[len(_CONNECTS) :], event)
                    found.append(running[event.tid])
            elif event.name == _THREAD_ENDS and event.tid in running:
                running.pop(event.tid).ended = event
            elif event.name == _GIVES_UP and event.tid in running:
                running[event.tid].is_lost = True
            elif event.role == roles.ERROR and event.tid in running:
                running[event.tid].errors.append(event)
        for each in found:
            until = each.ended.t_ns if each.ended else self.end_ns
            each.asked = [
                one
                for one in self.asked
                if one.send.tid == each.begun.tid and each.begun.t_ns <= one.send.t_ns <= until
            ]
        return found

    @cached_property
    def lost(self) -> list[_Connection]:
        """Guests that libvirt stopped because it could not connect to them."""
        return [each for each in self.connections if each.is_lost]

    @property
    def waiting(self) -> list[_Connection]:
        return [each for each in self.connections if each.ended is None]

    @cached_property
    def steps(self) -> list[tuple[Event, int]]:
        """Each driver, and until when it was initialised, by the trace's clock."""
        ends = [each.t_ns for each in self.drivers[1:]]
        last = self.serves.t_ns if self.serves else self.end_ns
        span = self.initialised
        if span is not None and span.t_exit_ns is not None:
            last = span.t_exit_ns
        return list(zip(self.drivers, [*ends, last]))

    @property
    def longest(self) -> tuple[Event, int] | None:
        return max(self.steps, key=lambda step: step[1] - step[0].t_ns, default=None)

    @property
    def probed(self) -> list[Span]:
        return [each for each in self.spans if each.name == _PROBE]

    @property
    def inner(self) -> Span | None:
        """The innermost function that had not returned when the trace ended."""
        found = [each for each in self.spans if each.t_exit_ns is None and each.name != _INITIALISE]
        return found[-1] if found else None

    @property
    def error(self) -> str | None:
        """The last error of the thread that initialises drivers, or of any if none did."""
        span = self.initialised
        own = [each for each in self.events if each.role == roles.ERROR]
        if span is not None:
            own = [each for each in own if each.tid == span.tid and each.t_ns >= span.t_enter_ns]
        return brief(said(own))

    @property
    def subject(self) -> tuple[str, ...]:
        return ("the daemon",)

    @property
    def names(self) -> Mapping[str, Json]:
        last, longest, inner = self.drivers[-1:], self.longest, self.inner
        waits = self.waiting[0] if self.waiting else None
        unanswered = waits.unanswered if waits else None
        words = [brief(said(each.errors)) for each in self.lost]
        probed = max(self.probed, key=lambda each: each.duration_ns or 0, default=None)
        return {
            "driver": _driver(last[0]) if last else "its first driver",
            "slowest": _driver(longest[0]) if longest else None,
            "doing": _doing(inner),
            "guests": " and ".join(each.guest for each in self.waiting or self.lost),
            "guest": waits.guest if waits else None,
            "command": unanswered.command if unanswered else None,
            "words": (words[0] if words else None) or UNSEEN,
            "error": self.error or UNSEEN,
            "program": probed.arguments.get("program") if probed else None,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        longest, waits = self.longest, self.waiting[:1]
        probed = [each.duration_ns or 0 for each in self.probed]
        since = self.drivers[-1].t_ns if self.drivers else self.end_ns
        return {
            "served": Nanoseconds(self.serves.t_ns) if self.serves else None,
            "longest": Nanoseconds(longest[1] - longest[0].t_ns) if longest else None,
            "probing": Nanoseconds(sum(probed)),
            "since": Nanoseconds(max(self.end_ns - since, 0)),
            "waited": Nanoseconds(self.end_ns - waits[0].begun.t_ns) if waits else None,
        }

    @property
    def facts(self) -> Sequence[Fact]:
        return [*self._steps_shown(), *self._connections_shown()][: 2 * _MOST_SHOWN]

    def _steps_shown(self) -> Iterator[Fact]:
        modules = [each for each in self.spans if each.name == _LOAD]
        if modules:
            spent = Nanoseconds(sum(each.duration_ns or 0 for each in modules))
            yield Fact("loads modules", spent, count(len(modules), "module"))
        for event, until in self.steps[:_MOST_SHOWN]:
            took = Nanoseconds(max(until - event.t_ns, 0))
            inside = [
                each
                for each in self.spans
                if each.name in (_PROBE, _HOOK, _RUN) and event.t_ns <= each.t_enter_ns < until
            ]
            inside.sort(key=lambda each: each.duration_ns or 0)
            yield Fact(f"driver {_driver(event)}", took, _during(inside[-1:]), event.seq)
            for name in dict.fromkeys(
                str(each.values.get("pool"))
                for each in self._of(_POOL)
                if event.t_ns <= each.t_ns < until and isinstance(each.values.get("pool"), str)
            ):
                yield Fact(f"  pool {name}", "is looked after", "")
        for event in self._of(_READY)[:1]:
            yield Fact("takes clients", Nanoseconds(event.t_ns), "after the trace began", event.seq)
        if self.serves is not None:
            ns, seq = Nanoseconds(self.serves.t_ns), self.serves.seq
            yield Fact("serves them", ns, "after the trace began", seq)

    def _connections_shown(self) -> Iterator[Fact]:
        for each in self.connections[:_MOST_SHOWN]:
            until = each.ended.t_ns if each.ended else self.end_ns
            took = Nanoseconds(max(until - each.begun.t_ns, 0))
            unanswered = each.unanswered
            how = "" if each.ended else "not done"
            if not each.ended and unanswered:
                how = f"waits for the reply to {unanswered.command}"
            yield Fact(f"connects to {each.guest}", took, how, each.begun.seq)

    @property
    def note(self) -> str | None:
        if self.initialised is None and self.drivers:
            return (
                "The trace began when drivers were being initialised: earlier ones are not in it."
            )
        return None

    @property
    def calls(self) -> Sequence[int | None]:
        return [call.id for call in self.calls_made]


def _driver(event: Event) -> str:
    """Return the name of a driver, by the folder in which it takes its lock."""
    folder = str(event.values.get("folder"))
    return folder.rpartition("/libvirt/")[2].partition("/")[0]


def _doing(span: Span | None) -> str:
    if span is None:
        return "what it does is not in the trace"
    return _WORDS.get(span.name, f"it is in {span.name}").format(**span.arguments)


_WORDS = {
    _PROBE: "it asks {program} for its abilities",
    _HOOK: "it waits for the hook script of {id}",
    _RUN: "it waits for another program",
    "virDomainObjListLoadAllConfigs": "it loads the guests in {folder}",
    "virNetworkObjLoadAllConfigs": "it loads the networks in {folder}",
    "virStoragePoolObjLoadAllConfigs": "it loads the pools in {folder}",
    "virStoragePoolObjLoadAllState": "it loads the pools in {folder}",
    "qemuProcessReconnectAll": "it begins to connect to guests",
}


def _during(inside: Sequence[Span]) -> str:
    if not inside or inside[0].duration_ns is None:
        return ""
    return _WORDS[inside[0].name].format(**inside[0].arguments).removeprefix("it ")


class _Reader:
    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._events: list[Event] = []
        self._asked: list[Exchange] = []

    def take(self, node: Node) -> Sequence[DaemonCase]:
        if isinstance(node, Call):
            self._calls.append(node)
        for each in node.nodes() if isinstance(node, Call) else (node,):
            if isinstance(each, Point) and len(self._events) < _MOST:
                self._events.append(each.event)
            elif isinstance(each, Exchange) and len(self._asked) < _MOST:
                self._asked.append(each)
        return ()

    def finish(self, end_ns: int) -> Iterator[DaemonCase]:
        if self._calls or any(each.name.startswith("start.") for each in self._events):
            calls = sorted(self._calls, key=lambda call: call.root.t_enter_ns)
            events = sorted(self._events, key=lambda each: (each.t_ns, each.seq))
            yield DaemonCase(calls[:_MOST], events, self._asked, end_ns)


_CAUSES: Catalogue[DaemonCase] = Catalogue(Path(__file__).with_name("daemons.yaml"))
EXPLAINER = Explainer("daemons", _CAUSES, lambda _: _Reader())


@_CAUSES.condition("failed")
def _failed(case: DaemonCase) -> list[Evidence] | None:
    span = case.initialised
    if span is None or not span.failed:
        return None
    return [Evidence("virStateInitialize failed", None, span.exit_seq)]


@_CAUSES.condition("before-drivers")
def _before_drivers(case: DaemonCase) -> list[Evidence] | None:
    span = case.initialised
    if case.drivers or case.serves or case.connections or (span is not None and span.failed):
        return None
    errors = [each for each in case.events if each.role == roles.ERROR]
    return [Evidence(text_of(each) or "", None, each.seq, ".message") for each in errors[-3:]]


@_CAUSES.condition("initialising")
def _initialising(case: DaemonCase) -> list[Evidence] | None:
    span = case.initialised
    if case.serves or not case.drivers or (span is not None and span.failed):
        return None
    return [Evidence("the driver began", None, case.drivers[-1].seq)]


@_CAUSES.condition("guest-silent")
def _guest_silent(case: DaemonCase) -> list[Evidence] | None:
    asked = case.waiting[0].unanswered if case.waiting else None
    if asked is None:
        return None
    return [Evidence(f"the command {asked.command} has no reply", None, asked.send.seq)]


@_CAUSES.condition("guest-waits")
def _guest_waits(case: DaemonCase) -> list[Evidence] | None:
    if not case.waiting or case.waiting[0].unanswered:
        return None
    return [Evidence("its thread began", None, case.waiting[0].begun.seq)]


@_CAUSES.condition("guest-lost")
def _guest_lost(case: DaemonCase) -> list[Evidence] | None:
    if not case.lost:
        return None
    return [
        Evidence(f"{each.guest}: {text_of(error)}", None, error.seq, ".message")
        for each in case.lost
        for error in each.errors[-1:]
    ]


@_CAUSES.condition("probed")
def _probed(case: DaemonCase) -> list[Evidence] | None:
    spent = sum(each.duration_ns or 0 for each in case.probed)
    if case.serves is None or 2 * spent < case.serves.t_ns:
        return None
    return [Evidence(f"asked {each.arguments.get('program')}", None, each.exit_seq)
            for each in case.probed]  # fmt: skip


@_CAUSES.condition("serves")
def _serves(case: DaemonCase) -> list[Evidence] | None:
    if case.serves is None or case.longest is None:
        return None
    return [Evidence("libvirt lets clients be served", None, case.serves.seq)]


@_CAUSES.condition("began-late")
def _began_late(case: DaemonCase) -> list[Evidence] | None:
    if case.serves is None or case.drivers:
        return None
    return [Evidence("libvirt lets clients be served", None, case.serves.seq)]


@_CAUSES.condition("unknown")
def _unknown(case: DaemonCase) -> list[Evidence]:
    return []
