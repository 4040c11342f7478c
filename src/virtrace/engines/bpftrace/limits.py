"""What bpftrace cannot do of a plan."""

from __future__ import annotations

from dataclasses import replace

from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Program
from virtrace.plan.capture import Capture
from virtrace.plan.model import (
    LINES,
    AnySite,
    Captures,
    LineSite,
    Plan,
    ResolvedProbe,
    SpanSite,
    all_captures,
)
from virtrace.plan.resolve import convention_of
from virtrace.recipe.path import Backtrace, Records

NO_BACKTRACES = "the bpftrace engine takes no backtraces: the thread does not stand still for it"
NO_RECORDS = "the bpftrace engine does not read records of domains"


def limited(plan: Plan, program: Program) -> Plan:
    """The plan without what bpftrace cannot trace, which its probes then lack.

    Raises TargetError where the processor is not known.
    """
    convention = convention_of(program)
    if not convention.is_known:
        raise TargetError(
            f"the bpftrace engine does not know how calls on {convention.machine} are made",
            "trace by GDB: leave out --engine",
        )
    return replace(plan, probes=[_limited(probe, program) for probe in plan.probes])


def _limited(probe: ResolvedProbe, program: Program) -> ResolvedProbe:
    module = program.module(probe.module)
    kept = [site for site in probe.sites if not isinstance(site, LineSite)]
    if module is not None and any(
        module.elf.file_offset(address) != address for site in kept for address in site.addresses
    ):
        why = "bpftrace cannot be told a place in a file whose addresses are no offsets"
        return replace(probe, level="missing", sites=(), why=why)
    lacks = {*probe.lacks}
    if len(kept) < len(probe.sites):
        lacks.add(LINES)
    for site in kept:
        lacks.update(
            name
            for name, capture in all_captures(site).items()
            if isinstance(capture, Capture) and _why_not(capture)
        )
    return replace(probe, sites=[*map(_without, kept)], lacks=sorted(lacks))


def _without(site: AnySite) -> AnySite:
    if isinstance(site, SpanSite):
        return replace(site, enter=_possible(site.enter), exit=_possible(site.exit))
    assert not isinstance(site, LineSite)
    return replace(site, capture=_possible(site.capture))


def _possible(captures: Captures) -> Captures:
    return {
        name: _why_not(capture) or capture if isinstance(capture, Capture) else capture
        for name, capture in captures.items()
    }


def _why_not(capture: Capture) -> Unavailable | None:
    if isinstance(capture.path.form, Backtrace):
        return Unavailable(NO_BACKTRACES)
    return Unavailable(NO_RECORDS) if isinstance(capture.path.form, Records) else None
