"""A resolved recipe as a plan that outlives GDB, for an engine that traces without it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from virtrace.binary import pack
from virtrace.binary.abi import Abi
from virtrace.engine import tracer
from virtrace.engine.tracer import LinePlan, PointPlan
from virtrace.engines.bpftrace.program import OWN_ARGUMENTS
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Module, Program
from virtrace.inferior import resolve
from virtrace.inferior.resolve import LINES, ResolvedProbe
from virtrace.inferior.target import PackedFunction
from virtrace.plan.file import (
    CALLED_BY,
    DRIVER_METHOD,
    POINT,
    RETURN_POINT,
    SPAN,
    Captures,
    InProbe,
    Place,
    Plan,
    Site,
    Wanted,
    on_the_way,
)
from virtrace.recipe.model import CalledBy, DriverMethod
from virtrace.recipe.path import CALLER, RETURN
from virtrace.targets import target_of
from virtrace.trace.format import Header, ProbeRecord

# As a static probe's note has it, on x86_64.
_WHOLE_REGISTER = re.compile(r"-?8@%(r\w+)")
_NOT_AT_ENTRY = "debug info tells where it is for a debugger only: `virtrace pack make` helps"


def describe(process: Program, abi: Abi, resolved: Sequence[ResolvedProbe], header: Header) -> Plan:
    """header: as header_record() gives it; in the plan it says what uprobes cannot do.

    TargetError where the processor is not known.
    """
    if not abi.argument_registers:
        raise TargetError(
            f"the bpftrace engine does not know how calls on {abi.machine} are made",
            "trace by GDB: leave out --engine",
        )
    sites: list[Site] = []
    probes: list[ProbeRecord] = []
    for item, record in zip(resolved, header["probes"]):
        module = process.module(item.module)
        found = [
            _site(item, site, module, abi)
            for site in item.sites
            if module is not None and not isinstance(site.plan, LinePlan)
        ]
        why = None
        if module is not None and any(
            module.elf.file_offset(address) != address
            for site in found
            for address in (site.address, *site.further)
        ):
            why = "bpftrace cannot be told a place in a file whose addresses are no offsets"
            found = []
        sites += found
        lacks = {*item.lacks, *(name for site in found for name in _lacking(site))}
        if len(found) < len(item.sites) and found:
            lacks.add(LINES)
        described: ProbeRecord = {**record, "lacks": sorted(lacks)}
        if why:
            described = {**described, "level": "missing", "why": why}
        probes.append(described)
    asked = any(CALLER in wanted.path.arguments for site in sites for wanted in site.captures)
    prefix = target_of(process).prefix
    exported = {
        module.name: module.elf.exported_functions()
        for module in process.modules
        if asked and module.name.startswith(prefix)
    }
    by_soname = {
        site.module: exported[module.name]
        for site in sites
        if (module := process.module(site.module)) and module.name in exported
    }
    planned: Header = {**header, "probes": probes}
    return Plan(planned, sites, by_soname)


def _lacking(site: Site) -> list[str]:
    return [
        name
        for captures in (site.enter, site.exit)
        for name, wanted in captures.items()
        if isinstance(wanted, Wanted) and (wanted.path.backtrace or wanted.path.records)
    ]


def _site(item: ResolvedProbe, site: resolve.Site, module: Module, abi: Abi) -> Site:
    plan = site.plan
    assert not isinstance(plan, LinePlan)
    address, *further = (each - module.base for each in site.addresses)
    if site.known is not None:
        address = site.known.entry - module.base
    about = Site(
        probe=item.name,
        kind=SPAN,
        module=item.module,
        file=module.path,
        address=address,
        further=further,
        arguments=_places(site, module, abi),
        enter={},
        exit={},
    )
    if isinstance(plan, PointPlan):
        captures = _captures(plan.capture)
        if plan.at_return:
            return replace(about, kind=RETURN_POINT, exit=captures, anywhere=plan.anywhere)
        provider, _, name = (site.usdt or "").partition(":")
        usdt = (provider, name) if site.usdt else None
        return replace(about, kind=POINT, enter=captures, anywhere=plan.anywhere, usdt=usdt)
    find, caller = None, None
    if isinstance(site.find, DriverMethod):
        find, caller = DRIVER_METHOD, site.find.api
    elif isinstance(site.find, CalledBy):
        find, caller = CALLED_BY, site.find.caller
    return replace(
        about,
        enter=_captures(plan.enter),
        exit=_captures(plan.exit),
        root=plan.root,
        moved=plan.moved,
        parameters=plan.parameters,
        find=find,
        caller=caller,
    )


def _captures(captures: tracer.Captures) -> Captures:
    return {
        name: capture
        if isinstance(capture, Unavailable)
        else Wanted(
            capture.path,
            on_the_way(
                capture.path,
                {name: ctype for name, ctype in capture.types.items() if name != CALLER},
            ),
        )
        for name, capture in captures.items()
    }


def _in_probe(index: int, site: resolve.Site, module: Module) -> Place:
    """As far as bpftrace knows it, or the file says that it is in one register at all places."""
    written = {
        (probe.arguments.split()[index : index + 1] or [""])[0]
        for probe in module.elf.stap_probes()
        if f"{probe.provider}:{probe.name}" == site.usdt
    }
    if "" in written:
        return pack.Nowhere("the static probe has fewer arguments")
    if index < OWN_ARGUMENTS:
        return InProbe(index)
    found = _WHOLE_REGISTER.fullmatch(written.pop()) if len(written) == 1 else None
    if found is None:
        return pack.Nowhere(f"bpftrace knows the first {OWN_ARGUMENTS} arguments only")
    return InProbe(index, found[1])


def _places(site: resolve.Site, module: Module, abi: Abi) -> Mapping[str, Place]:
    if isinstance(site.known, PackedFunction):
        return {
            name: pack.Nowhere("it is not known at the entry")
            if isinstance(place, pack.AtEntry)
            else place
            for name, place in site.known.places.items()
        }
    if site.known is not None:
        return {name: pack.Nowhere(_NOT_AT_ENTRY) for name in site.known.arguments}
    if site.prototype is None:
        return {}
    names = [parameter.name for parameter in site.prototype.parameters]
    if site.usdt is not None:
        return {name: _in_probe(index, site, module) for index, name in enumerate(names)}
    registers = abi.argument_registers
    return {
        name: pack.InRegister(registers[index])
        if index < len(registers)
        else pack.OnStack(abi.word * (index - len(registers)))
        for index, name in enumerate(names)
        if name != RETURN
    }
