"""Compare two calls along their way through libvirt to QEMU."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from virtrace.analysis.compare import exchanges
from virtrace.analysis.compare.align import aligned
from virtrace.analysis.compare.model import OnlyOnOneSide, Pair
from virtrace.analysis.compare.values import ComparedAt, Difference, Values
from virtrace.analysis.explain.disks import EXPLAINER, DiskCase
from virtrace.analysis.explain.model import Explanation, Traced
from virtrace.analysis.explain.trace import explain_calls
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Span
from virtrace.trace.format import Event, Json, unavailable
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.roles import REPLIES

# Keys of a `host` record that are compared. The domain's XML differs too much each time.
_FACTS = ("path", "stat", "file_system", "image_info", "lvm")


@dataclass(frozen=True)
class _Visit:
    """A function or point of a call, and the nearest enclosing function that both traces show."""

    node: Span | Event
    within: str | None

    @property
    def key(self) -> tuple[str | None, str]:
        return self.within, self.node.name


@dataclass
class _Way:
    """What a call went through.

    visits: functions and points in order.
    lines: source lines of each function in visits, by its span.
    """

    visits: list[_Visit] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    lines: dict[int, list[Event]] = field(default_factory=lambda: defaultdict(list))


def _way(call: Call, seen: frozenset[str]) -> _Way:
    """Return the way of a call, without functions that only one trace can show; keep callees."""
    way = _Way()
    # Not recursive: a trace can be deeper than Python's stack.
    rest: list[tuple[Child, Span | None]] = [(call.root, None)]
    while rest:
        node, around = rest.pop()
        within = around.name if around else None
        if isinstance(node, Span):
            if node.name in seen or node is call.root:
                way.visits.append(_Visit(node, within))
                around = node
            rest.extend((child, around) for child in reversed(node.children))
        elif isinstance(node, Exchange):
            if node.send.name in seen:
                way.exchanges.append(node)
        elif node.event.type == "line":
            if around is not None and around.name == node.event.name:
                way.lines[around.id].append(node.event)
        elif node.event.name in seen and node.event.role not in REPLIES:
            way.visits.append(_Visit(node.event, within))
    return way


class CallComparer:
    """Compares calls of two traces, and notes what could not be compared."""

    def __init__(
        self, a: ReadableTrace, b: ReadableTrace, seen: frozenset[str], values: Values
    ) -> None:
        """seen: names of the probes that are traced in both."""
        self._traces = a, b
        self._facts = a.said_by_host(), b.said_by_host()
        self._seen = seen
        self._values = values
        self.notes: list[str] = []

    def pair(self, a: Call, b: Call) -> Pair:
        explained = [
            explain_calls(EXPLAINER, [call], Traced(trace.header["probes"], facts))
            for call, trace, facts in zip((a, b), self._traces, self._facts)
        ]
        both = (explained[0][0], explained[1][0]) if all(explained) else None
        results = list(self._walk(_way(a, self._seen), _way(b, self._seen), both))
        return Pair(
            a,
            b,
            both,
            tuple(result for result in results if isinstance(result, OnlyOnOneSide)),
            tuple(result for result in results if isinstance(result, Difference)),
        )

    def _walk(
        self,
        a: _Way,
        b: _Way,
        explained: tuple[Explanation[DiskCase], Explanation[DiskCase]] | None,
    ) -> Iterator[OnlyOnOneSide | Difference]:
        for of_a, of_b in aligned(a.visits, b.visits, lambda visit: visit.key):
            if of_a is None or of_b is None:
                side, alone = ("a", of_a) if of_a else ("b", of_b)
                assert alone is not None
                kind = "function" if isinstance(alone.node, Span) else "point"
                yield OnlyOnOneSide(side, kind, alone.node.name, alone.within)
            elif isinstance(of_a.node, Span) and isinstance(of_b.node, Span):
                yield from self._functions(of_a.node, of_b.node)
                lines = a.lines.get(of_a.node.id, []), b.lines.get(of_b.node.id, [])
                yield from self._lines(of_a.node.name, *lines)
            elif isinstance(of_a.node, Event) and isinstance(of_b.node, Event):
                place = ComparedAt(of_a.node.name, "values", None, of_a.node.seq, of_b.node.seq)
                yield from self._captured(place, of_a.node.values, of_b.node.values)
        if explained is not None:
            yield from self._host(*explained)
        yield from exchanges.compared_exchanges(self._values, a.exchanges, b.exchanges, explained)

    def _captured(self, place: ComparedAt, a: Json, b: Json) -> Iterator[Difference]:
        return self._values.differences(place, a, b, captured=True)

    def _functions(self, a: Span, b: Span) -> Iterator[Difference]:
        yield from self._captured(ComparedAt(a.name, "arguments"), a.arguments, b.arguments)
        place = ComparedAt(a.name, "returned", None, a.exit_seq, b.exit_seq)
        yield from self._captured(place, _returned(a), _returned(b))

    def _host(self, a: Explanation[DiskCase], b: Explanation[DiskCase]) -> Iterator[Difference]:
        hosts = a.case.host, b.case.host
        if hosts[0] is not None and hosts[1] is not None:
            facts = [{fact: host.record.get(fact) for fact in _FACTS} for host in hosts if host]
            yield from self._values.differences(ComparedAt("host", "facts"), *facts)
        elif hosts != (None, None):
            self.notes.append(f"only {'A' if hosts[0] else 'B'} has facts of the host")

    def _lines(self, function: str, a: list[Event], b: list[Event]) -> Iterator[OnlyOnOneSide]:
        if bool(a) != bool(b):
            side = "A" if a else "B"
            self.notes.append(f"only {side} has the source lines of {function}")
            return
        by_text = all(isinstance(line.values.get("text"), str) for line in (*a, *b))
        if not by_text and not self._values.same_build:
            self.notes.append(
                f"the source lines of {function} are of two builds and have no text: not compared"
            )
            return
        key = "text" if by_text else "line"
        for of_a, of_b in aligned(a, b, lambda line: repr(line.values.get(key))):
            if of_a is None or of_b is None:
                side, alone = ("a", of_a) if of_a else ("b", of_b)
                assert alone is not None
                yield OnlyOnOneSide(side, "line", str(alone.values.get(key)), function)


def _returned(span: Span) -> Json:
    if span.returned is None:
        return unavailable(span.lost or "its return was not seen")
    return span.returned
