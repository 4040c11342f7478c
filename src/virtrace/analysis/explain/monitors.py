"""What QEMU answered, late, or not at all; texts in monitors.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis import qmp
from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import (
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    Reader,
    Traced,
)
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.trace import roles
from virtrace.trace.format import Json

# A reply that took longer is late, ns.
LATE_NS = 1_000_000_000
_MOST_GROUPS = 300
# The function in which a client's calls are traced, by recipes that are not about one API.
_DISPATCH = "virNetServerProgramDispatch"


@dataclass
class MonitorCase(model.Case):
    """One command to one QEMU: those without a reply, those refused, or those answered late.

    kind: `silent`, `refused`, `late` or, of all commands of the trace, `well`.
    mon: the address of libvirt's monitor of that QEMU. call: of the first one.
    worst: that which took or has waited longest, for `ns`.
    """

    kind: str
    mon: str
    worst: Exchange
    call: Call | None
    ns: int = 0
    count: int = 0

    @property
    def domain(self) -> str | None:
        return self.call.domain if self.call else None

    @property
    def subject(self) -> tuple[str, ...]:
        if self.kind == "well":
            return ("QEMU",)
        return (self.domain or f"the QEMU of monitor {self.mon}",)

    @property
    def names(self) -> Mapping[str, Json]:
        reply = self.worst.reply
        procedure = self.call.procedure if self.call else None
        return {
            "domain": self.domain,
            "command": self.worst.command or "a command of unknown name",
            "error": qmp.error_of(reply) if reply else None,
            "waiter": procedure.removeprefix("remoteDispatch") if procedure else "libvirt itself",
            "times": {1: "once", 2: "twice"}.get(self.count, f"{self.count:,} times"),
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        return {"longest": Nanoseconds(self.ns), "count": self.count}

    @property
    def key(self) -> object:
        return self.kind, self.mon, self.worst.send.seq

    @property
    def facts(self) -> Sequence[Fact]:
        client = (self.call.client or {}) if self.call else {}
        process = client.get("process-id")
        asked = [Fact("asked by", f"process {process}")] if type(process) is int else []
        return [
            Fact("commands", self.count),
            Fact("longest", Nanoseconds(self.ns), str(self.worst.id), self.worst.send.seq),
            *asked,
        ]

    @property
    def calls(self) -> Sequence[int | None]:
        return [self.call.id] if self.call else []


class _Reader:
    def __init__(self) -> None:
        self._groups: dict[object, MonitorCase] = {}
        self._open: list[tuple[Exchange, Call | None]] = []
        self._all: MonitorCase | None = None

    def take(self, node: Node) -> Sequence[MonitorCase]:
        call = node if isinstance(node, Call) else None
        for each in node.nodes() if isinstance(node, Call) else (node,):
            if isinstance(each, Exchange) and each.is_qmp:
                self._asked(each, call)
        return ()

    def _asked(self, exchange: Exchange, call: Call | None) -> None:
        ns = exchange.duration_ns
        if ns is None:
            if exchange.is_awaited and len(self._open) < _MOST_GROUPS:
                self._open.append((exchange, call))
            return
        if self._all is None:
            self._all = MonitorCase("well", "", exchange, call)
        self._all.count += 1
        if ns > self._all.ns:
            self._all.worst, self._all.call, self._all.ns = exchange, call, ns
        if exchange.failed:
            self._add("refused", exchange, call, ns)
        elif ns >= LATE_NS:
            self._add("late", exchange, call, ns)

    def _add(self, kind: str, exchange: Exchange, call: Call | None, ns: int) -> None:
        mon = str(exchange.send.values.get("mon"))
        reason = qmp.error_of(exchange.reply) if kind == "refused" and exchange.reply else None
        key = kind, mon, exchange.command, reason
        if key not in self._groups and len(self._groups) >= _MOST_GROUPS:
            return
        case = self._groups.setdefault(key, MonitorCase(kind, mon, exchange, call))
        case.count += 1
        if ns > case.ns:
            case.worst, case.call, case.ns = exchange, call, ns

    def finish(self, end_ns: int) -> Iterator[MonitorCase]:
        for exchange, call in self._open:
            self._add("silent", exchange, call, max(end_ns - exchange.t_enter_ns, 0))
        order = ("silent", "late", "refused")
        yield from sorted(
            self._groups.values(), key=lambda each: (order.index(each.kind), -each.ns)
        )
        if self._all is not None and not self._groups:
            yield self._all


class _NotHere:
    """A reader of a trace that other explainers are about."""

    def take(self, node: Node) -> Sequence[MonitorCase]:
        return ()

    def finish(self, end_ns: int) -> Sequence[MonitorCase]:
        return ()


def _reader(traced: Traced) -> Reader[MonitorCase]:
    spans = {probe["name"] for probe in traced.probes if probe["kind"] == "span"}
    others = {roles.RPC_CALL, roles.LOOP_BUSY}
    is_about_qemu = spans <= {_DISPATCH} and others.isdisjoint(traced.seen)
    return _Reader() if is_about_qemu else _NotHere()


_CAUSES: Catalogue[MonitorCase] = Catalogue(Path(__file__).with_name("monitors.yaml"))
EXPLAINER = Explainer("monitors", _CAUSES, _reader)


def _evidence(case: MonitorCase) -> list[Evidence]:
    sent = Evidence(f"{case.worst.command} {case.worst.id} was sent", None, case.worst.send.seq)
    reply = case.worst.reply
    return [sent, *([Evidence("its reply", None, reply.seq)] if reply else [])]


def _register(name: str) -> None:
    @_CAUSES.condition(name)
    def condition(case: MonitorCase) -> list[Evidence] | None:
        return _evidence(case) if case.kind == name else None


for _name in ("silent", "late", "refused", "well"):
    _register(_name)


@_CAUSES.condition("unknown")
def _unknown(case: MonitorCase) -> list[Evidence]:
    return _evidence(case)
