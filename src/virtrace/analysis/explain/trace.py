"""Explanations of what a trace has, grouped if they are equal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtrace.analysis.explain.model import (
    C,
    Explainer,
    Explanation,
    Node,
    Reader,
    Traced,
    contradicts,
)
from virtrace.analysis.explain.registry import explainers
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.analysis.waiting import ended_ns
from virtrace.errors import UsageError
from virtrace.trace.reader import ReadableTrace

# Each case is kept with the call that showed it first; nobody reads more cases than this. A call
# takes some seven times the memory of its lines in the trace, of which so many bytes are kept.
MOST_CASES = 500
_MOST_BYTES = 24 << 20
_MOST_NAMES = 100
_CALLS_NAMED = 8


@dataclass
class SeenCalls:
    """All calls of one API, or all events of one name outside of calls.

    failed, unfinished: number of those.
    error: message of the last error of the last one that failed; None if none was seen.
    """

    name: str
    is_call: bool
    count: int = 0
    failed: int = 0
    unfinished: int = 0
    error: Any = None

    def add(self, node: Node) -> None:
        self.count += 1
        if isinstance(node, Call):
            self.unfinished += node.root.unfinished
            if node.failed:
                self.failed += 1
                errors = node.errors()
                self.error = errors[-1].values.get("message") if errors else None
        elif isinstance(node, Exchange):
            self.failed += node.failed
            self.unfinished += node.is_awaited


class Explained(list[Explanation[C]]):
    """The cases, up to a limit.

    more: number of further cases.
    more_calls: number of calls that showed those.
    contradicts: whether any answer contradicts what QEMU reported, those of further cases included.
    seen: what the trace has, by name.
    """

    def __init__(self, most: int = MOST_CASES) -> None:
        super().__init__()
        self._most = most
        # Bytes of the trace that the cases may still keep in memory.
        self._room = _MOST_BYTES
        self.more_calls = 0
        self.contradicts = False
        self.seen: list[SeenCalls] = []
        self._cases: dict[object, Explanation[C]] = {}
        self._further: set[int] = set()

    @property
    def more(self) -> int:
        return len(self._further)

    def add(
        self, explainer: Explainer[C], case: C, calls: Sequence[int | None], size: int = 0
    ) -> bool:
        """Add a case; return whether it is kept. size: what it keeps of the trace, in bytes."""
        findings = explainer.causes.find(case)
        names = tuple((finding.cause.name, finding.possible) for finding in findings)
        key = explainer.name, case.key, names
        if key in self._cases:
            self._cases[key].calls.extend(calls)
            return False
        self.contradicts |= contradicts(findings)
        if len(self) < self._most and self._room > 0:
            self._room -= size
            one = Explanation(explainer.name, case, findings, explainer.lineage(case), list(calls))
            self._cases[key] = one
            self.append(one)
            return True
        self._further.add(hash(key))
        self.more_calls += len(calls)
        return False


@dataclass
class _Seen:
    """Counts what passes, by name; names come from the trace, so their number is limited."""

    rows: dict[tuple[bool, str], SeenCalls] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        is_call = isinstance(node, Call)
        if isinstance(node, Call):
            name = node.procedure or node.root.name
        elif isinstance(node, Exchange):
            name = node.command or node.send.name
        else:
            name = node.event.name
        if len(self.rows) >= _MOST_NAMES and (is_call, name) not in self.rows:
            name = "others"
        self.rows.setdefault((is_call, name), SeenCalls(name, is_call)).add(node)


def explain_trace(trace: ReadableTrace, path: str, wanted: int | None = None) -> Explained[Any]:
    """Explain what a trace has, or only the call number ``wanted``.

    path: name of the trace, for errors.
    Raises: UsageError: there is no such call; it names others.

    >>> from virtrace.trace.reader import read_trace
    >>> trace = read_trace("tests/data/sample-blockinfo.jsonl")
    >>> for explanation in explain_trace(trace, "sample"):
    ...     print(*explanation.case.subject, [each.cause.name for each in explanation.findings])
    vm1 vda ['external-snapshot', 'qcow2']
    vm1 vdb ['nothing-written']
    vm1 vdc ['fully-allocated', 'restarted']
    vm1 vdd ['high-water-mark']
    """
    chosen = _Chosen(wanted)
    found = explain_nodes(chosen.of(CallBuilder(trace.most_open).everything(trace)), trace)
    if wanted is not None and not found.seen:
        named = ", ".join(map(str, chosen.others[:_CALLS_NAMED]))
        more = ", ..." if len(chosen.others) > _CALLS_NAMED else ""
        raise UsageError(
            f"{path} has no call {wanted}",
            f"one of its calls: {named}{more}" if chosen.others else f"virtrace show {path}",
        )
    return found


@dataclass
class _Chosen:
    """Passes on the call number ``wanted``, or everything. others: some numbers of other calls."""

    wanted: int | None
    others: list[int | None] = field(default_factory=list)

    def of(self, nodes: Iterable[Node]) -> Iterator[Node]:
        for node in nodes:
            if self.wanted is None or (isinstance(node, Call) and node.id == self.wanted):
                yield node
            elif isinstance(node, Call) and len(self.others) <= _CALLS_NAMED:
                self.others.append(node.id)


def explain_nodes(
    nodes: Iterable[Node],
    trace: ReadableTrace,
    most: int = MOST_CASES,
    without: Explainer[Any] | None = None,
) -> Explained[Any]:
    """Explain nodes of a trace, which is read to its end with the last of them.

    most: the number of cases to keep. without: an explainer that is not asked.
    """
    traced = Traced(
        trace.header["probes"],
        trace.said_by_host(),
        lambda: {each["name"] for each in trace.switched_off},
    )
    readers: list[tuple[Explainer[Any], Reader[Any]]] = [
        (each, each.reader(traced)) for each in explainers(traced.seen) if each is not without
    ]
    found: Explained[Any] = Explained(most)
    seen = _Seen()
    read = 0
    for node in nodes:
        calls = [node.id] if isinstance(node, Call) else []
        seen.add(node)
        size, read = trace.length - read, trace.length
        for explainer, reader in readers:
            for case in reader.take(node):
                if found.add(explainer, case, calls, size):
                    # The other cases of the node keep nothing more.
                    size = 0
    for explainer, reader in readers:
        if explainer.is_fallback and found:
            continue
        for case in reader.finish(ended_ns(trace)):
            found.add(explainer, case, case.calls)
    found.seen = list(seen.rows.values())
    return found


def explain_calls(explainer: Explainer[C], calls: Iterable[Call], traced: Traced) -> Explained[C]:
    """Explain calls by one explainer; skip those that are none of its."""
    found: Explained[C] = Explained()
    reader = explainer.reader(traced)
    for call in calls:
        for case in reader.take(call):
            found.add(explainer, case, [call.id])
    return found
