"""What the memory numbers of a guest are; texts in memory.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis.explain.model import (
    Bytes,
    CallCase,
    Catalogue,
    Explainer,
    Fact,
    Node,
    failed,
)
from virtrace.analysis.explain.sources import (
    PROCESS,
    FileRead,
    files_read,
    records_of,
    returned_by,
)
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted, quote, state
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json

_STATS, _INFO = "virDomainMemoryStats", "virDomainGetInfo"
_OF_DOMAINS = frozenset({"virConnectGetAllDomainStats", "virDomainListGetStats"})
_KIB = 1024
# What a driver that reports nothing leaves in QEMU.
_NOT_REPORTED = (1 << 64) - 1
# Of virDomainMemoryStatTags.
_ACTUAL, _RSS = 6, 7
_MOST_DOMAINS = 1000


@dataclass(frozen=True)
class MemoryCase(CallCase):
    """The memory numbers of one guest in one answer.

    api: the function. answer: what it returned; None where a trace does not have that.
    current, maximum, rss: the numbers of the answer: the balloon, the most that it can be, and the
    memory of the QEMU process.
    balloon, reported: QEMU's replies: the size of the balloon, and what the guest reported.
    """

    domain: str
    current: Quoted | None = None
    maximum: Quoted | None = None
    rss: Quoted | None = None
    balloon: Quoted | None = None
    reported: Quoted | None = None
    last_update: Quoted | None = None

    @property
    def asked(self) -> bool:
        return any(isinstance(node, Exchange) for node in self.call.nodes())

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain,)

    @property
    def names(self) -> Mapping[str, Json]:
        return {**super().names, "domain": self.domain}

    @property
    def numbers(self) -> Mapping[str, int | None]:
        current = _bytes(self.current) or (Bytes(self.balloon.value) if self.balloon else None)
        return {
            "current": current,
            "maximum": _bytes(self.maximum),
            "rss": _bytes(self.rss),
            "free": self._reported("stat-free-memory"),
            "total": self._reported("stat-total-memory"),
        }

    @property
    def rss_from(self) -> FileRead | None:
        """The file that the rss was read from; None if the trace does not show exactly one."""
        rss = self.rss.value if self.rss else None
        files = {
            each.path: each
            for each in files_read(self.call)
            if each.kind == PROCESS and each.numbers.get("rss") == rss
        }
        return next(iter(files.values())) if len(files) == 1 else None

    def _reported(self, name: str) -> Bytes | None:
        found = self.reported.number(name) if self.reported else None
        return Bytes(found.value) if found and found.value not in (_NOT_REPORTED, -1) else None

    @property
    def facts(self) -> Sequence[Fact]:
        numbers = self.numbers
        return [
            Fact(name, numbers[key], what)
            for key, name, what in (
                ("current", "balloon", "what the guest was given"),
                ("maximum", "maximum", "the most that it can be given"),
                ("rss", "rss", "memory of the QEMU process, its own included"),
                ("total", "total", "memory, as the guest reported it"),
                ("free", "free", "of that unused, as the guest reported it"),
            )
            if numbers[key] is not None
        ]


def _bytes(kib: Quoted | None) -> Bytes | None:
    return Bytes(kib.value * _KIB) if kib is not None else None


class _Reader:
    def take(self, node: Node) -> Iterator[MemoryCase]:
        if not isinstance(node, Call):
            return
        root = node.root
        domain = root.arguments.get("domain")
        if root.name == _STATS:
            yield _of_qemu(node, str(domain))
        elif root.name == _INFO:
            info = None if node.failed else returned_by(root, "info")
            current, maximum = (
                info.number(name) if info else None for name in ("memory", "maxMem")
            )
            yield MemoryCase(node, str(domain), current, maximum)
        elif root.name in _OF_DOMAINS:
            yield from _of_records(node)

    def finish(self, end_ns: int) -> Sequence[MemoryCase]:
        return ()


def _of_qemu(call: Call, domain: str) -> MemoryCase:
    balloon = reported = updated = None
    for node in call.nodes():
        if isinstance(node, Exchange) and node.reply is not None:
            reply = Quoted(node.reply.values, f"{node.command} {node.id}", node.reply.seq)
            balloon = reply.number("json", "return", "actual") or balloon
            reported = reply.get("json", "return", "stats") or reported
            updated = reply.number("json", "return", "last-update") or updated
    stats = returned_by(call.root, "stats")
    found = {}
    for each in stats.items() if stats else ():
        tag = each.number("tag")
        found[tag.value if tag else None] = each.number("val")
    current, rss = found.get(_ACTUAL), found.get(_RSS)
    return MemoryCase(call, domain, current, None, rss, balloon, reported, updated)


def _of_records(call: Call) -> Iterator[MemoryCase]:
    for domain, record in records_of(call, _MOST_DOMAINS):
        if record.number("balloon.maximum") is None:
            continue
        current, maximum, rss, updated = (
            record.number(f"balloon.{name}")
            for name in ("current", "maximum", "rss", "last-update")
        )
        yield MemoryCase(call, domain, current, maximum, rss, last_update=updated)


_CAUSES: Catalogue[MemoryCase] = Catalogue(Path(__file__).with_name("memory.yaml"))
EXPLAINER = Explainer("memory", _CAUSES, lambda _: _Reader())


_CAUSES.condition("error")(failed)


@_CAUSES.condition("rss-above-maximum")
def _rss_above_maximum(case: MemoryCase) -> list[Evidence] | None:
    rss, maximum = case.rss, case.maximum
    if rss is None or maximum is None or rss.value <= maximum.value:
        return None
    read = case.rss_from
    source = [read.evidence("rss")] if read else []
    return [state(rss, "rss in KiB"), *source, state(maximum, "maximum in KiB")]


@_CAUSES.condition("nothing-reported")
def _nothing_reported(case: MemoryCase) -> list[Evidence] | None:
    if case.last_update is None or case.last_update.value != 0:
        return None
    return [state(case.last_update, "the time of the guest's last report")]


@_CAUSES.condition("reported")
def _reported(case: MemoryCase) -> list[Evidence] | None:
    numbers = case.numbers
    if numbers["free"] is None or numbers["total"] is None or case.reported is None:
        return None
    return [quote(case.reported, "what the guest reported")]


@_CAUSES.condition("no-balloon")
def _no_balloon(case: MemoryCase) -> list[Evidence] | None:
    if case.call.root.name != _STATS or case.call.failed or case.asked:
        return None
    return [Evidence("libvirt asked QEMU nothing in this call")]


@_CAUSES.condition("all-given")
def _all_given(case: MemoryCase) -> list[Evidence] | None:
    current, maximum = case.current, case.maximum
    if current is None or maximum is None or current.value != maximum.value:
        return None
    return [state(current, "balloon in KiB"), state(maximum, "maximum in KiB")]


@_CAUSES.condition("given")
def _given(case: MemoryCase) -> list[Evidence] | None:
    if (case.current is None and case.balloon is None) or _all_given(case):
        return None
    if case.current is not None:
        return [state(case.current, "balloon in KiB")]
    return [quote(case.balloon, "the size of the balloon")] if case.balloon else None


@_CAUSES.condition("unknown")
def _unknown(_: MemoryCase) -> list[Evidence]:
    return []
