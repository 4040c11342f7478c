"""Why a live migration does not end: its passes over the guest's memory. passes.yaml has the texts.

A pass sends the pages that the guest had written to when it began. What the guest writes to
meanwhile is left for the next one. QEMU stops the guest for the rest when that can be sent within
the time that the guest may stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import data_of, event_name, monitor_of
from virtrace.analysis.explain.model import (
    Bytes,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    number_of,
    stated,
)
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# Of an x86 guest.
_PAGE = 4096
_SECOND = 1_000_000_000
# QEMU's own limit where nobody has set another (migration/options.c), ms.
_DOWNTIME = 300
# Passes that show whether what is left becomes less; how much of it has to be gone.
_SHOWN, _FEW = 3, 0.9
# What strangers' traces may have.
_MOST_MIGRATIONS, _MOST_EVENTS, _MOST_MONITORS = 100, 10_000, 1000
# libvirt gets an event soon after QEMU has made it.
_SOON_NS = _SECOND
_MAX_BANDWIDTH, _DOWNTIME_LIMIT = "max-bandwidth", "downtime-limit"
_LIMITS = (_MAX_BANDWIDTH, _DOWNTIME_LIMIT)


@dataclass
class _Monitor:
    """What was said over a guest's monitor.

    passes, states: MIGRATION_PASS and MIGRATION. answers: to query-migrate. limits: of the
    migration, each with the event that tells it and its path there.
    """

    passes: list[tuple[int, int]] = field(default_factory=list)
    states: list[tuple[str, Event]] = field(default_factory=list)
    stops: list[Event] = field(default_factory=list)
    answers: list[Quoted] = field(default_factory=list)
    limits: list[tuple[int, Quoted]] = field(default_factory=list)

    def has_seen(self, event: Event) -> bool:
        """Whether QEMU's event of a pass came."""
        number = number_of(event, "pass")
        return any(at == number and 0 <= t_ns - event.t_ns < _SOON_NS for t_ns, at in self.passes)


@dataclass(frozen=True)
class _Pass:
    """One that has ended: what it did. In bytes; ns: how long it took."""

    begin: Event
    end: Event
    ns: int
    sent: int
    left: int
    written: int

    @property
    def rate(self) -> int:
        """Bytes sent per second."""
        return self.sent * _SECOND // self.ns

    @property
    def ends_sooner(self) -> bool:
        return self.written < self.sent * _FEW


@dataclass
class PassesCase(model.Case):
    """One migration.

    events: its passes. states: where its state changed. throttles: how much the guest is held back.
    monitor: over which libvirt asks this QEMU. domain: if known. end_ns: of the recording.
    """

    events: list[Event] = field(default_factory=list)
    states: list[Event] = field(default_factory=list)
    throttles: list[Event] = field(default_factory=list)
    monitor: _Monitor = field(default_factory=_Monitor)
    domain: str | None = None
    end_ns: int = 0

    @property
    def _all(self) -> list[Event]:
        return sorted([*self.events, *self.states], key=lambda event: (event.t_ns, event.seq))

    @property
    def began_ns(self) -> int:
        return self._all[0].t_ns

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain or "the guest",)

    @property
    def names(self) -> Mapping[str, Json]:
        still_ns, needed = self._still_ns, self._needed
        return {
            "domain": self.domain,
            "held": self._held,
            # For commands, rounded up.
            "milliseconds": None if still_ns is None else f"{-(-still_ns // 1_000_000)}",
            "mebibytes": None if needed is None else f"{-(-needed // (1 << 20))}",
        }

    @property
    def _held(self) -> str:
        percent = number_of(self.throttles[-1], "percent") if self.throttles else None
        return f", though the guest is held back {percent} % of the time" if percent else ""

    @property
    def outcome(self) -> tuple[str, Event] | None:
        """The last state that libvirt was told of, if any, and by which event."""
        last = self._all[-1].t_ns + _SOON_NS
        told = [one for one in self.monitor.states if self.began_ns <= one[1].t_ns <= last]
        return told[-1] if told else None

    @property
    def state(self) -> str | None:
        return None if self.outcome is None else self.outcome[0]

    @property
    def is_over(self) -> bool:
        return self.state in ("completed", "failed", "cancelled")

    @property
    def passes(self) -> Sequence[_Pass]:
        """Those that have ended, and of which all is known."""
        found = [_passed(*two) for two in zip(self.events, self.events[1:])]
        stop = self.stop
        return [
            one for one in found if one is not None and (stop is None or one.end.t_ns < stop.t_ns)
        ]

    @property
    def shown(self) -> Sequence[_Pass]:
        """The last ones, but for the first of all: that sends all of the memory."""
        return [one for one in self.passes if number_of(one.begin, "pass") != 1][-_SHOWN:]

    @property
    def is_endless(self) -> bool:
        return len(self.shown) >= 2 and not any(one.ends_sooner for one in self.shown)

    @property
    def stop(self) -> Event | None:
        """QEMU's event that the guest stands still for the rest."""
        if self.state not in ("completed", "device", "pre-switchover"):
            return None
        stops = (one for one in self.monitor.stops if one.t_ns >= self.began_ns)
        return next(stops, None)

    def limit(self, name: str) -> Quoted | None:
        """What libvirt was told, or has told QEMU, of a limit."""
        until = self._all[-1].t_ns if self.is_over else self.end_ns
        found = [one for t_ns, one in self.monitor.limits if t_ns <= until and one.keys[-1] == name]
        return found[-1] if found else None

    @property
    def _left(self) -> int | None:
        """Bytes that were left when the last pass began."""
        return _pages(self.events[-1], "left") if self.events else None

    @property
    def _allowed_ms(self) -> int:
        """How long the guest may stand still."""
        limit = self.limit(_DOWNTIME_LIMIT)
        return limit.value if limit is not None and type(limit.value) is int else _DOWNTIME

    @property
    def _needed(self) -> int | None:
        """Bytes per second that would end it."""
        is_known = self._left is not None and self._allowed_ms > 0
        return (self._left or 0) * 1000 // self._allowed_ms if is_known else None

    @property
    def _still_ns(self) -> int | None:
        """How long the guest would have to stand still for it to end."""
        rate = self.passes[-1].rate if self.passes else 0
        return None if self._left is None or not rate else self._left * _SECOND // rate

    @property
    def numbers(self) -> Mapping[str, int | None]:
        last = self.passes[-1] if self.passes else None
        told, stop = self.outcome, self.stop
        return {
            "passes": number_of(self._all[-1], "passes"),
            "left": Bytes.of(self._left),
            "allowed": Nanoseconds(self._allowed_ms * _SECOND // 1000),
            "lasted": Nanoseconds(told[1].t_ns - self.began_ns) if told else None,
            "stood": Nanoseconds(told[1].t_ns - stop.t_ns) if told and stop else None,
            "rate": Bytes(last.rate) if last else None,
            "time": Nanoseconds(last.ns) if last else None,
            "sent": Bytes(last.sent) if last else None,
            "written": Bytes(last.written) if last else None,
            "still": None if self._still_ns is None else Nanoseconds(self._still_ns),
            "needed": Bytes.of(self._needed),
        }

    @property
    def key(self) -> object:
        return self._all[0].seq

    @property
    def facts(self) -> Sequence[Fact]:
        found = []
        for one in self.passes[-10:]:
            text = (
                f"sent {Bytes(one.sent).mib} in {one.ns / _SECOND:.1f} s; the guest wrote to "
                f"{Bytes(one.written).mib} meanwhile"
            )
            number = number_of(one.begin, "pass")
            found.append(Fact(f"pass {number}", Bytes(one.left), text, one.begin.seq, ".left"))
        for name in _LIMITS:
            limit = self.limit(name)
            if limit is not None and type(limit.value) is int:
                found.append(Fact(name, limit.value, limit.where, limit.seq, limit.path))
        for event in self.throttles[-3:]:
            percent = number_of(event, "percent")
            found.append(Fact("held back", percent, "percent of the time", event.seq, ".percent"))
        return found


def _pages(event: Event, name: str) -> int | None:
    number = number_of(event, name)
    return None if number is None else number * _PAGE


def _passed(begin: Event, end: Event) -> _Pass | None:
    """What a pass did, by what QEMU counted at its beginning and at the next one's."""
    names = ("left", "sent", "zero")
    before, after = ([_pages(event, name) for name in names] for event in (begin, end))
    if None in before or None in after or end.t_ns <= begin.t_ns:
        return None
    if number_of(end, "pass") != (number_of(begin, "pass") or 0) + 1:
        # Events were lost.
        return None
    (left, sent, zero), (left_after, sent_after, zero_after) = (
        [number or 0 for number in numbers] for numbers in (before, after)
    )
    rest = max(left - (sent_after - sent) - (zero_after - zero), 0)
    written = max(left_after - rest, 0)
    return _Pass(begin, end, end.t_ns - begin.t_ns, sent_after - sent, left, written)


class _Reader:
    def __init__(self) -> None:
        self._cases: list[PassesCase] = []
        self._monitors: dict[str, _Monitor] = {}
        self._domain: str | None = None

    def take(self, node: Node) -> Iterator[PassesCase]:
        for each in node.nodes() if isinstance(node, Call) else (node,):
            if isinstance(each, Exchange):
                self._asked(each)
            elif isinstance(each, Point):
                self._met(each.event)
        return iter(())

    def finish(self, end_ns: int) -> Iterator[PassesCase]:
        for case in self._cases:
            case.domain, case.end_ns = self._domain, end_ns
            known = [one for one in self._monitors.values() if all(map(one.has_seen, case.events))]
            # Two guests can migrate at once, each with passes of its own.
            if case.events and len(known) == 1:
                case.monitor = known[0]
            yield case

    def _met(self, event: Event) -> None:
        if event.role == roles.MARK_STANDING:
            name = event.values.get("domain")
            self._domain = name if isinstance(name, str) else self._domain
        elif event.role == roles.QMP_EVENT:
            self._told(event)
        elif event.role in (roles.MIGRATION_PASS, roles.MIGRATION_STATE):
            if not self._cases or _is_new(self._cases[-1], event):
                if len(self._cases) >= _MOST_MIGRATIONS:
                    return
                self._cases.append(PassesCase())
            case = self._cases[-1]
            into = case.events if event.role == roles.MIGRATION_PASS else case.states
            if len(into) < _MOST_EVENTS:
                into.append(event)
        elif event.role == roles.MIGRATION_THROTTLE and self._cases:
            throttles = self._cases[-1].throttles
            if len(throttles) < _MOST_EVENTS:
                throttles.append(event)

    def _monitor(self, event: Event) -> _Monitor | None:
        mon = monitor_of(event)
        if mon not in self._monitors and len(self._monitors) >= _MOST_MONITORS:
            return None
        return self._monitors.setdefault(mon, _Monitor())

    def _told(self, event: Event) -> None:
        monitor = self._monitor(event)
        if monitor is None:
            return
        name, data = event_name(event), data_of(event)
        if name == "STOP" and len(monitor.stops) < _MOST_EVENTS:
            monitor.stops.append(event)
        number, status = data.get("pass"), data.get("status")
        if name == "MIGRATION_PASS" and type(number) is int and len(monitor.passes) < _MOST_EVENTS:
            monitor.passes.append((event.t_ns, number))
        if name == "MIGRATION" and isinstance(status, str) and len(monitor.states) < _MOST_EVENTS:
            monitor.states.append((status, event))

    def _asked(self, exchange: Exchange) -> None:
        monitor = self._monitor(exchange.send)
        if monitor is None or len(monitor.limits) >= _MOST_EVENTS:
            return
        command, reply = exchange.command, exchange.reply
        if command == "migrate-set-parameters" and not exchange.failed:
            said = Quoted(exchange.send.values, command, exchange.send.seq).get("json", "arguments")
            at = exchange.send.t_ns
        elif command in ("query-migrate-parameters", "query-migrate") and reply is not None:
            said = Quoted(reply.values, command, reply.seq).get("json", "return")
            at = reply.t_ns
        else:
            return
        if command == "query-migrate" and said is not None:
            monitor.answers.append(said)
            return
        limits = (said.number(name) for name in _LIMITS) if said is not None else ()
        monitor.limits += [(at, limit) for limit in limits if limit is not None]


def _is_new(case: PassesCase, event: Event) -> bool:
    """Whether an event is of the next migration: QEMU counts passes from 0 again."""
    passes, last = number_of(event, "passes"), number_of(case._all[-1], "passes")
    return passes is not None and last is not None and passes < last


_CAUSES: Catalogue[PassesCase] = Catalogue(Path(__file__).with_name("passes.yaml"))
EXPLAINER = Explainer("passes", _CAUSES, lambda _: _Reader())


def _last_pass(case: PassesCase) -> list[Evidence]:
    """What the last passes did."""
    if not case.events:
        return []
    last = case.events[-1]
    found = [*stated(last, "pass", "the last pass"), *stated(last, "left", "pages left then")]
    for one in case.shown:
        found += stated(
            one.begin, "left", f"pages left as pass {number_of(one.begin, 'pass')} began"
        )
    return [*found, *stated(last, "dirty_rate", "pages per second that QEMU found written to")]


@_CAUSES.condition("contradiction")
def _contradiction(case: PassesCase) -> list[Evidence] | None:
    """What was read is not what QEMU tells, or what it answered."""
    for event in case.events:
        if number_of(event, "passes") not in (None, number_of(event, "pass")):
            return [
                *stated(event, "pass", "the pass that QEMU tells"),
                *stated(event, "passes", "and what it counts"),
            ]
    final = case._all[-1]
    for answer in case.monitor.answers:
        normal = answer.number("ram", "normal")
        is_final = answer.get("status") is not None and answer.text("status") == case.state
        if normal is None or not is_final or not case.is_over or normal.seq < final.seq:
            continue
        if number_of(final, "sent") not in (None, normal.value):
            return [
                *stated(final, "sent", "pages sent, as counted"),
                state(normal, "and as QEMU answered"),
            ]
    return None


def _register(cause: str, holds: Callable[[PassesCase], bool]) -> None:
    @_CAUSES.condition(cause)
    def condition(case: PassesCase) -> list[Evidence] | None:
        if not case.events or not holds(case):
            return None
        told = case.outcome
        by = [Evidence(f"QEMU told libvirt: {told[0]}", seq=told[1].seq)] if told else []
        return [*by, *_last_pass(case)]


def _is(*states: str) -> Callable[[PassesCase], bool]:
    return lambda case: case.state in states


_register("completed", lambda case: case.state == "completed" and case.stop is not None)
_register("postcopy", _is("postcopy-active", "postcopy-paused", "postcopy-recover"))
_register("failed", _is("failed"))
_register("given-up", lambda case: case.state == "cancelled" and case.is_endless)
_register("cancelled", _is("cancelled", "cancelling"))
_register("endless", lambda case: not case.is_over and case.is_endless)
_register("goes-on", lambda case: not (case.is_over or case.is_endless) and bool(case.shown))
_register("begins", lambda case: not case.is_over and not case.shown)


@_CAUSES.condition("unknown")
def _unknown(case: PassesCase) -> list[Evidence]:
    return _last_pass(case) or [Evidence("no pass was recorded")]
