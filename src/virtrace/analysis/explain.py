"""Explanations of a trace's calls of virDomainGetBlockInfo, equal ones together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from virtrace.analysis.blockinfo import API, NUMBERS, read
from virtrace.analysis.causes import Case, Finding, find
from virtrace.analysis.host import find as find_host
from virtrace.analysis.lineage import Lineage, trace_back
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.errors import TraceError, UsageError
from virtrace.trace.format import Record
from virtrace.trace.reader import Trace


@dataclass
class Explanation:
    """One case, and the calls that showed it.

    case: of the first of them. calls: ``call`` of their events, in the order in which they
    ended. findings: ranked, never empty. lineages: none where the call has no numbers.
    """

    case: Case
    findings: tuple[Finding, ...]
    lineages: tuple[Lineage, ...]
    calls: list[int | None] = field(default_factory=list)

    @property
    def answers(self) -> tuple[Finding, ...]:
        """The first finding; with those that the trace cannot tell it from."""
        first, *rest = self.findings
        return (first, *(each for each in rest if first.possible and each.possible))

    @property
    def contradicts(self) -> bool:
        """The answer does not follow from what QEMU said."""
        return self.findings[0].cause.name == "contradiction"


def explain_trace(trace: Trace, path: str, wanted: int | None = None) -> list[Explanation]:
    """Of all calls in a trace's file, or of the one whose ``call`` is wanted.

    TraceError where there is none; UsageError, which names some, where not the wanted one.
    """
    calls = list(CallBuilder().calls(trace.events))
    asked = [call for call in calls if call.root.name == API]
    if not asked:
        names = sorted({call.root.name for call in calls})
        raise TraceError(
            f"{path} has no call of {API} to explain, "
            + (f"only of {', '.join(names)}" if names else "nor any other call"),
            "record one: virtrace record blockinfo -- virsh domblkinfo DOMAIN DISK",
        )
    chosen = [call for call in asked if wanted in (None, call.id)]
    if not chosen:
        some = ", ".join(str(call.id) for call in asked[:8]) + (", ..." if len(asked) > 8 else "")
        raise UsageError(f"{path} has no call {wanted} of {API}", f"one of its calls: {some}")
    return explain(chosen, trace.header["probes"], trace.host)


def explain(
    calls: Iterable[Call], probes: Iterable[Record], host: Iterable[Record] = ()
) -> list[Explanation]:
    """In the order in which each case was met first; calls of other APIs are passed over.

    probes, host: of the trace.
    """
    levels = {probe["name"]: probe["level"] for probe in probes}
    host = list(host)
    cases: dict[object, Explanation] = {}
    for call in calls:
        if call.root.name == API:
            explanation = _explain(call, levels, host)
            cases.setdefault(_key(explanation), explanation).calls.append(call.id)
    return list(cases.values())


def _explain(call: Call, levels: Mapping[str, str], host: list[Record]) -> Explanation:
    block = read(call, levels)
    told = find_host(host, block.domain, block.disk)
    if told is not None and told.alias is not None:
        block = read(call, levels, told.alias)
    case = Case(block, told)
    return Explanation(case, find(case), trace_back(block, told))


def _key(explanation: Explanation) -> object:
    """Of what makes two calls one case."""
    case = explanation.case
    error = case.block.error
    return (
        case.block.domain,
        case.block.disk,
        tuple(case.block.number(name) for name in NUMBERS),
        str(error.values.get("message")) if error else None,
        tuple((finding.cause.name, finding.possible) for finding in explanation.findings),
        case.decision,
    )
