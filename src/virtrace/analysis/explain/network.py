"""Whose counters those of an interface are, and which way they count; texts in network.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from virtrace.analysis.explain.model import (
    NOTHING,
    CallCase,
    Catalogue,
    Explainer,
    Fact,
    Node,
    failed,
    register_messages,
)
from virtrace.analysis.explain.sources import records_of
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call, Point
from virtrace.trace.format import Event, Json

_STATS = "virDomainInterfaceStats"
_OF_DOMAINS = frozenset({"virConnectGetAllDomainStats", "virDomainListGetStats"})
_TAP, _OPENVSWITCH = "net.counters", "net.openvswitch"
# A stranger's trace can claim any number of them.
_MOST_DOMAINS, _MOST_INTERFACES = 1000, 1000
# In the order of the answer: what libvirt calls them in statistics, and in its struct.
_COUNTERS = {
    f"{way}.{what}": f"{way}_{field}"
    for way in ("rx", "tx")
    for what, field in (
        *(("bytes", "bytes"), ("pkts", "packets")),
        *(("errs", "errs"), ("drop", "drop")),
    )
}


@dataclass(frozen=True)
class NetworkCase(CallCase):
    """The counters of one interface in one answer.

    device: as the caller named it, or the statistics do. read: where libvirt read them; None if the
    trace does not show it. answer, place: of the statistics, and what its names begin with.
    """

    domain: str
    device: str
    read: Event | None
    answer: Quoted | None = None
    place: str = ""

    moves = True

    @cached_property
    def source(self) -> Quoted | None:
        """The counters as libvirt read them."""
        if self.read is None or self.read.values.get("result") != 0:
            return None
        found = Quoted(self.read.values, self.read.name, self.read.seq).get("stats")
        return found if found is not None and found.number("rx_bytes") else None

    @property
    def swapped(self) -> Json:
        return self.read.values.get("swapped") if self.read else None

    @property
    def counters(self) -> Mapping[str, Quoted]:
        """Those of the answer, by the names of statistics."""
        found = {}
        for name, field in _COUNTERS.items():
            if self.answer is not None:
                value = self.answer.number(f"{self.place}{name}")
            else:
                value = self.source.number(field) if self.source else None
            # A counter that is not known is -1.
            if value is not None and value.value >= 0:
                found[name] = value
        return found

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self.device

    @property
    def names(self) -> Mapping[str, Json]:
        return {
            **super().names,
            "domain": self.domain,
            "interface": self.device,
            "device": self.read.values.get("device") if self.source and self.read else self.device,
        }

    @property
    def key(self) -> object:
        return self.subject, self.call.root.name, self.error

    @property
    def facts(self) -> Sequence[Fact]:
        return [
            Fact(name, value.value, _meaning(name, self.swapped), value.seq, value.path)
            for name, value in self.counters.items()
        ]


def _meaning(name: str, swapped: Json) -> str:
    way, _, what = name.partition(".")
    if type(swapped) is not bool or what not in ("bytes", "pkts"):
        return ""
    side = {True: ("sent", "received"), False: ("received", "sent")}[swapped]
    return f"the host {side[way == 'tx']} them"


class _Reader:
    def take(self, node: Node) -> Iterator[NetworkCase]:
        if not isinstance(node, Call):
            return
        read = [
            child.event
            for child in node.nodes()
            if isinstance(child, Point) and child.event.name in (_TAP, _OPENVSWITCH)
        ]
        arguments = node.root.arguments
        if node.root.name == _STATS:
            domain, device = (str(arguments.get(name)) for name in ("domain", "device"))
            yield NetworkCase(node, domain, device, read[-1] if read else None)
        elif node.root.name in _OF_DOMAINS:
            yield from _of_records(node, read)

    def finish(self, end_ns: int) -> Sequence[NetworkCase]:
        return ()


def _of_records(call: Call, read: list[Event]) -> Iterator[NetworkCase]:
    left = _MOST_INTERFACES
    for domain, record in records_of(call, _MOST_DOMAINS):
        count = record.number("net.count")
        for index in range(min(count.value if count else 0, left)):
            left -= 1
            place = f"net.{index}."
            device = record.text(f"{place}name")
            # One without a device on the host has no name.
            if device is not None:
                own = [each for each in read if each.values.get("device") == device]
                yield NetworkCase(call, domain, device, own[-1] if own else None, record, place)


_CAUSES: Catalogue[NetworkCase] = Catalogue(Path(__file__).with_name("network.yaml"))
EXPLAINER = Explainer(
    "network",
    _CAUSES,
    # Without this, nothing is known of a counter but its value.
    lambda traced: _Reader() if _TAP in traced.seen else NOTHING,
)
# What the message has, by cause.
_MESSAGES = {
    "no-such-interface": ("is not a known interface",),
    "no-device": ("Interface name not provided",),
}
register_messages(_CAUSES, _MESSAGES)


_CAUSES.condition("error")(failed)


@_CAUSES.condition("contradiction")
def _contradiction(case: NetworkCase) -> list[Evidence] | None:
    if case.source is None:
        return None
    evidence = []
    for name, value in case.counters.items():
        theirs = case.source.number(_COUNTERS[name])
        if theirs is not None and theirs.value != value.value:
            evidence += [state(value, f"{name} in the answer"), state(theirs, "as libvirt read it")]
    return evidence or None


def _read(case: NetworkCase, swapped: bool) -> list[Evidence] | None:
    if case.source is None or case.swapped is not swapped or case.read is None:
        return None
    swaps = "swaps" if swapped else "does not swap"
    text = f"read from /proc/net/dev of the host; libvirt {swaps} receiving and sending"
    return [Evidence(text, None, case.read.seq, ".swapped")]


_CAUSES.condition("guest-view")(partial(_read, swapped=True))
_CAUSES.condition("host-view")(partial(_read, swapped=False))


@_CAUSES.condition("openvswitch")
def _openvswitch(case: NetworkCase) -> list[Evidence] | None:
    if case.source is None or case.read is None or case.read.name != _OPENVSWITCH:
        return None
    return [Evidence("asked of Open vSwitch", None, case.read.seq, ".stats")]


@_CAUSES.condition("unknown")
def _unknown(_: NetworkCase) -> list[Evidence]:
    return []
