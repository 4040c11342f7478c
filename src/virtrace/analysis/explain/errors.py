"""Which errors of a daemon matter: sums by kind; conditions here, texts in errors.yaml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import system_error, text_of
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node, Traced
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.rpc import client_words
from virtrace.analysis.spans import Point
from virtrace.analysis.values.meaning import one_of
from virtrace.trace import roles
from virtrace.trace.format import Event, Json, Record

# Further kinds are counted together; names in a row beyond these are not kept.
_MOST_KINDS = 300
_MOST_NAMES = 20
_NAMES_SHOWN = 4
# What differs between two errors of one kind: names in quotes, numbers, UUIDs, paths.
_PARTICULAR = re.compile(r"""'[^']*'|"[^"]*"|/[^\s:,']+|\b[0-9a-f-]{32,36}\b|\b\d+\b""")
_OTHERS = "others"
# They raise what another process said, whatever it is.
_FORWARDING = frozenset(
    {
        *("qemuMonitorJSONCheckErrorFull", "qemuMonitorJSONCheckError", "qemuAgentCheckError"),
        *("virNetClientProgramDispatchError", "qemuProcessReportLogError"),
    }
)
_OF_CALLERS = (roles.RPC_CLIENT, roles.RPC_DOMAIN)
# Threads of a daemon come and go, and a stranger's trace can have any number.
_MOST_THREADS = 10_000


@dataclass
class ErrorCase(model.Case):
    """All errors of one kind: of one code, and one place in the source or one message.

    code, message: of the first one; None if unavailable.
    varies: whether others have other names or numbers in their message.
    count: of all. returned: of those with which an API failed.
    apis, places: how often by API, and by function of libvirt.
    clients, domains: how often by client, and by domain of a call that is about exactly one.
    first, last: events.
    """

    code: int | None
    message: str | None
    first: Event
    last: Event
    count: int = 0
    returned: int = 0
    varies: bool = False
    apis: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    clients: Counter[str] = field(default_factory=Counter)
    domains: Counter[str] = field(default_factory=Counter)

    def add(self, event: Event, place: Event | None, caller: _Caller | None) -> None:
        self.count += 1
        self.last = event
        self.varies |= text_of(event) not in (None, self.message)
        _count(self.places, place.values.get("function") if place is not None else None)
        if caller is not None:
            _count(self.clients, client_words(caller.identity))
            _count(self.domains, *caller.domains)

    def add_returned(self, api: Json) -> None:
        self.returned += 1
        _count(self.apis, api)

    @property
    def subject(self) -> tuple[str, ...]:
        if self.code is None:
            return ("errors of unknown code",) if self.message is None else (_OTHERS,)
        word = one_of("virErrorNumber", self.code)
        return (f"error {self.code}" + (f" ({word})" if word else ""),)

    @property
    def names(self) -> Mapping[str, Json]:
        return {
            "error": (self.message or "the message could not be read")
            + (" (for example)" if self.varies else ""),
            "outcome": self._outcome,
        }

    @property
    def _outcome(self) -> str:
        quiet = self.count - self.returned
        failed = f"{_times(self.returned)}, an API failed with it" if self.returned else ""
        if not quiet:
            return failed
        rest = f"{_times(quiet)}, no API failed with it"
        return f"{failed}, and {rest}" if failed else rest

    @property
    def key(self) -> object:
        return self.code, self.message, self.first.seq

    @property
    def facts(self) -> Sequence[Fact]:
        return [
            Fact("errors", self.count, "", self.first.seq),
            Fact("returned", self.returned, _named(self.apis)),
            Fact("first", Nanoseconds(self.first.t_ns), "after the trace began", self.first.seq),
            Fact("last", Nanoseconds(self.last.t_ns), "after the trace began", self.last.seq),
            *(
                Fact(name, _named(names))
                for name, names in (
                    ("domains", self.domains),
                    ("clients", self.clients),
                    ("raised in", self.places),
                )
                if names
            ),
        ]


def _count(names: Counter[str], *found: Json) -> None:
    """Count a name, if there is exactly one."""
    [name] = found if len(found) == 1 else [None]
    if isinstance(name, str) and (name in names or len(names) < _MOST_NAMES):
        names[name] += 1


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def _named(names: Counter[str]) -> str:
    shown = [
        f"{name} {number:,}" if number > 1 else name
        for name, number in sorted(names.items(), key=lambda item: -item[1])[:_NAMES_SHOWN]
    ]
    more = len(names) - len(shown)
    return ", ".join([*shown, *([f"{more} more"] if more else [])])


@dataclass
class _Caller:
    """Who made the call that a thread serves, and the domains that it is about."""

    identity: Record | None
    domains: set[str | None] = field(default_factory=set)

    def add_domain(self, name: Json) -> None:
        # Of several, none is the one.
        if len(self.domains) < 2:
            self.domains.add(name if isinstance(name, str) else None)


@dataclass
class _Raised:
    """The last error of a thread, and where it was raised, until it is known what became of it."""

    event: Event
    case: ErrorCase


def _alike(message: str | None, place: Event | None) -> object:
    """Return what errors of one kind have in common: the place in the source, or the words."""
    values = place.values if place is not None else {}
    function, line = values.get("function"), values.get("line")
    if isinstance(function, str) and type(line) is int and function not in _FORWARDING:
        return function, line
    return _PARTICULAR.sub("*", message) if message else None


class _Reader:
    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._kinds: dict[object, ErrorCase] = {}
        # By thread.
        self._callers: dict[int, _Caller] = {}
        self._places: dict[int, Event] = {}
        self._raised: dict[int, _Raised] = {}

    def take(self, node: Node) -> Sequence[ErrorCase]:
        if isinstance(node, Point):
            self._happened(node.event)
        return ()

    def _happened(self, event: Event) -> None:
        tid = event.tid
        if event.role == roles.RPC_CLIENT:
            identity = event.values.get("identity")
            _keep(self._callers, tid, _Caller(identity if isinstance(identity, dict) else None))
        elif event.role == roles.RPC_DOMAIN and tid in self._callers:
            self._callers[tid].add_domain(event.values.get("name"))
        elif event.role == roles.ERROR_PLACE:
            _keep(self._places, tid, event)
        elif event.role == roles.ERROR:
            place = self._places.pop(tid, None)
            case = self._case(event, place)
            case.add(event, place, self._callers.get(tid))
            _keep(self._raised, tid, _Raised(event, case))
        elif event.role == roles.ERROR_AGAIN and "message" in event.values:
            self._again(event)
        elif event.role == roles.API_FAILED and tid in self._raised:
            self._raised.pop(tid).case.add_returned(event.values.get("api"))

    def _again(self, event: Event) -> None:
        """An error of another daemon; in old versions, every error a second time."""
        known = self._raised.get(event.tid)
        if known is not None and known.event.values.get("code") == event.values.get("code"):
            known.case.message = known.case.message or text_of(event)
            return
        case = self._case(event, event)
        case.add(event, event, self._callers.get(event.tid))
        _keep(self._raised, event.tid, _Raised(event, case))

    def _case(self, event: Event, place: Event | None) -> ErrorCase:
        code, message = event.values.get("code"), text_of(event)
        code = code if type(code) is int else None
        kind: object = (code, _alike(message, place))
        if message is None and place is not None:
            # Libvirt 7.0.0 makes the message of an error of the system where no probe sees it.
            message = system_error(place)
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind, code, message = None, None, "errors of further kinds"
        if kind not in self._kinds:
            self._kinds[kind] = ErrorCase(code, message, event, event)
        return self._kinds[kind]

    def finish(self, end_ns: int) -> Iterator[ErrorCase]:
        if self._traced.switched_off(_OF_CALLERS):
            # What a thread serves afterwards is not known.
            for case in self._kinds.values():
                case.clients.clear()
                case.domains.clear()
        # What an API failed with comes first, then what happened most.
        yield from sorted(self._kinds.values(), key=lambda each: (-each.returned, -each.count))


T = TypeVar("T")


def _keep(by_thread: dict[int, T], tid: int, value: T) -> None:
    if tid in by_thread or len(by_thread) < _MOST_THREADS:
        by_thread[tid] = value


_CAUSES: Catalogue[ErrorCase] = Catalogue(Path(__file__).with_name("errors.yaml"))
EXPLAINER = Explainer("errors", _CAUSES, _Reader, is_fallback=True)

# Numbers of virErrorNumber, and texts one of which the message has; either is enough.
_KINDS: dict[str, tuple[frozenset[int], tuple[str, ...]]] = {
    "agent": (frozenset({86}), ("guest agent", "Guest agent", "QEMU agent")),
    "lock-timeout": (frozenset({68}), ("cannot acquire state change lock",)),
    "no-such-object": (frozenset({42, 43, 49, 50}), ()),
    "unknown-disk": (frozenset(), ("not assigned to domain", "was not found in the domain config")),
    "not-running": (frozenset(), ("domain is not running", "is not running")),
    "monitor-broken": (
        frozenset(),
        ("from monitor", "from qemu monitor", "closed the monitor", "to write to monitor"),
    ),
    "client-gone": (
        frozenset(),
        ("client socket is closed", "keepalive", "End of file while reading data"),
    ),
    "unsupported": (frozenset({3, 67, 84}), ()),
    "denied": (frozenset({29, 45, 88}), ("Permission denied", "Operation not permitted")),
    "missing-file": (frozenset(), ("No such file or directory",)),
}
# Where libvirt raises it; enough, too.
_RAISED_IN = {"client-gone": "virNetSocketReadWire"}


def _of_kind(
    codes: frozenset[int], texts: tuple[str, ...], function: str | None
) -> Callable[[ErrorCase], list[Evidence] | None]:
    def condition(case: ErrorCase) -> list[Evidence] | None:
        said = any(text in (case.message or "") for text in texts)
        return _evidence(case) if said or case.code in codes or function in case.places else None

    return condition


for _name, _kind in _KINDS.items():
    _CAUSES.condition(_name)(_of_kind(*_kind, _RAISED_IN.get(_name)))


@_CAUSES.condition("unknown")
def _evidence(case: ErrorCase) -> list[Evidence]:
    return [Evidence(case.message or "a message that could not be read", None, case.first.seq)]
