"""Explanations of a trace's calls of virDomainGetBlockInfo, grouped if they are equal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from virtrace.analysis.blockinfo import API, NUMBERS, read_block_info, seen_by
from virtrace.analysis.causes import Case, Finding, find_causes
from virtrace.analysis.host import find_disk as find_host
from virtrace.analysis.lineage import Lineage, trace_back
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import TraceError, UsageError
from virtrace.trace.format import HostRecord, ProbeRecord
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.roles import DISK_SIZES

# Each case is kept with the call that showed it first; nobody reads more cases than this.
MOST_CASES = 500
_CALLS_NAMED = 8


@dataclass
class Explanation:
    """One case, and the calls that showed it.

    case: of the first such call.
    findings: by rank, never empty.
    lineages: empty if the call returned no numbers.
    calls: ``call`` of their events, in the order in which the calls ended.
    """

    case: Case
    findings: tuple[Finding, ...]
    lineages: tuple[Lineage, ...]
    calls: list[int | None] = field(default_factory=list)

    @property
    def answers(self) -> tuple[Finding, ...]:
        """The first finding, and those that the trace cannot tell from it."""
        first, *rest = self.findings
        return (first, *(each for each in rest if first.possible and each.possible))

    @property
    def contradicts(self) -> bool:
        """Whether the answer does not follow from what QEMU reported."""
        return _contradicts(self.findings)


class Explained(list[Explanation]):
    """The cases, up to a limit.

    more: number of further cases.
    more_calls: number of calls that showed those.
    contradicts: whether any answer contradicts what QEMU reported, those of further cases included.
    """

    more = 0
    more_calls = 0
    contradicts = False


def explain_trace(trace: ReadableTrace, path: str, wanted: int | None = None) -> Explained:
    """Explain all calls in a trace, or only the call number ``wanted``.

    path: name of the trace, for errors.
    Raises: TraceError: there is no such call. UsageError: not the wanted one; it names others.
    """
    names: set[str] = set()
    some: list[int | None] = []

    def chosen() -> Iterator[Call]:
        for call in CallBuilder(trace.most_open).calls(trace):
            names.add(call.root.name)
            if call.root.role == DISK_SIZES:
                if len(some) <= _CALLS_NAMED:
                    some.append(call.id)
                if wanted in (None, call.id):
                    yield call

    found = explain(chosen(), trace.header["probes"], trace.host_records())
    if not some:
        raise TraceError(
            f"{path} has no call of {API} to explain, "
            + (f"only of {', '.join(sorted(names))}" if names else "nor any other call"),
            "record one: virtrace record blockinfo -- virsh domblkinfo DOMAIN DISK",
        )
    if not found:
        named = ", ".join(map(str, some[:_CALLS_NAMED]))
        more = ", ..." if len(some) > _CALLS_NAMED else ""
        raise UsageError(
            f"{path} has no call {wanted} of {API}", f"one of its calls: {named}{more}"
        )
    return found


def explain(
    calls: Iterable[Call], probes: Iterable[ProbeRecord], host: Iterable[HostRecord] = ()
) -> Explained:
    """Explain calls, cases in the order of their first call; skip calls of other APIs.

    probes, host: of the trace.
    """
    seen = seen_by(probes)
    host = list(host)
    cases: dict[object, Explanation] = {}
    further: set[int] = set()
    found = Explained()
    for call in calls:
        if call.root.role != DISK_SIZES:
            continue
        case = _case(call, seen, host)
        findings = find_causes(case)
        key = _key(case, findings)
        if key in cases:
            cases[key].calls.append(call.id)
        elif len(cases) < MOST_CASES:
            lineages = trace_back(case.block, case.host)
            cases[key] = Explanation(case, findings, lineages, [call.id])
            found.contradicts |= cases[key].contradicts
        else:
            further.add(hash(key))
            found.more_calls += 1
            found.contradicts |= _contradicts(findings)
    found.extend(cases.values())
    found.more = len(further)
    return found


def _case(call: Call, seen: Collection[str], host: list[HostRecord]) -> Case:
    block = read_block_info(call, seen)
    told = find_host(host, block.domain, block.disk)
    if told is not None and told.alias is not None:
        block = read_block_info(call, seen, told.alias)
    return Case(block, told)


def _contradicts(findings: tuple[Finding, ...]) -> bool:
    return findings[0].cause.name == "contradiction"


def _key(case: Case, findings: tuple[Finding, ...]) -> object:
    """Return a key that is equal for calls of one case."""
    error = case.block.error
    return (
        case.block.domain,
        case.block.disk,
        tuple(case.block.number(name) for name in NUMBERS),
        str(error.values.get("message")) if error else None,
        tuple((finding.cause.name, finding.possible) for finding in findings),
        case.decision,
    )
