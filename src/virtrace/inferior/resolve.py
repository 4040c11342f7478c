"""A recipe on one process: where each probe stands, and by what means that is known.

Means, best first: debug info (``dwarf``), an exported symbol whose declaration the recipe
gives (``symbol``), who calls whom in a stripped file (``inferred``), a static probe
(``usdt``). What none of them finds is ``missing``, with the reason; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from virtrace.binary import layouts
from virtrace.binary.ctype import Array, CType, Opaque, Struct
from virtrace.binary.process import Module, Process
from virtrace.errors import TargetError
from virtrace.inferior.capture import Capture, Unavailable
from virtrace.inferior.infer import Inferred
from virtrace.inferior.target import (
    DebugFunction,
    debug_functions,
    has_debug_info,
    static_probe_addresses,
)
from virtrace.inferior.tracer import Captures, PointPlan, SpanPlan
from virtrace.recipe.model import CalledBy, DriverMethod, Point, Recipe, Span
from virtrace.recipe.path import RETURN, Path
from virtrace.recipe.prototype import Parameter, Prototype
from virtrace.trace.format import Record


@dataclass(frozen=True)
class Site:
    """One place to stop at.

    location: for GDB's ``break``. at_entry: it is the very first instruction, where the
    return address lies at the stack pointer.
    debug: the body that debug info describes; prototype: what the recipe declares; find: how
    it was found, where that alone tells where the arguments are.
    """

    location: str
    plan: SpanPlan | PointPlan
    at_entry: bool
    debug: DebugFunction | None = None
    prototype: Prototype | None = None
    find: DriverMethod | CalledBy | None = None


@dataclass(frozen=True)
class ResolvedProbe:
    """offset: of the first site, in the module's own addresses."""

    name: str
    kind: str
    module: str
    level: str
    sites: tuple[Site, ...] = ()
    offset: int | None = None
    why: str | None = None

    def to_record(self) -> Record:
        offset = None if self.offset is None else f"{self.offset:#x}"
        return {
            "name": self.name,
            "kind": self.kind,
            "module": self.module,
            "offset": offset,
            "level": self.level,
            "why": self.why,
        }


@dataclass(frozen=True)
class _Body:
    """One body of a function. entry: its first instruction. types: of arguments, and RETURN.

    debug: where debug info has to tell where the arguments are; an exported body keeps them
    where the ABI says.
    """

    entry: int
    types: Mapping[str, CType]
    debug: DebugFunction | None = None


@dataclass(frozen=True)
class _Found:
    level: str
    bodies: tuple[_Body, ...] = ()
    why: str | None = None


def resolve(
    recipe: Recipe, process: Process, inferred: Mapping[str, Inferred]
) -> list[ResolvedProbe]:
    """inferred: what infer() found where there is no debug info.

    TargetError where none of the recipe's roots can be traced: it would see no call.
    """
    usable = {
        span.name: inferred[span.name]
        for span in recipe.spans
        # Debug info has the last word, also where it says that there is no such function.
        if span.name in inferred and not has_debug_info(process, span.module)
    }
    callers = {_caller(span.find) for span in recipe.spans if span.find and span.name in usable}
    resolved = [
        *(
            _span(span, process, usable.get(span.name), span.name in callers)
            for span in recipe.spans
        ),
        *(_point(point, process) for point in recipe.points),
    ]
    roots = {span.name for span in recipe.spans if span.root}
    missing = [probe for probe in resolved if probe.name in roots and not probe.sites]
    if len(missing) == len(roots):
        raise TargetError(
            f"{missing[0].name} cannot be traced: {missing[0].why}",
            "`virtrace doctor` says what this daemon offers",
        )
    return resolved


def _caller(find: DriverMethod | CalledBy) -> str:
    return find.api if isinstance(find, DriverMethod) else find.caller


def _span(
    span: Span, process: Process, inferable: Inferred | None, is_caller: bool
) -> ResolvedProbe:
    """is_caller: the arguments of another are proven by those of this one."""
    # A static function is not exported: its prototype only says what its source declares.
    exported = None if span.find else span.prototype
    found = _function(span.name, span.module, exported, process)
    module = process.module(span.module)
    if inferable and span.prototype and module and found.level == "missing":
        found = _inferred(inferable, span.prototype, module, found)
    inferred = found.level == "inferred"
    parameters = span.prototype.parameters if span.prototype else ()
    build = partial(
        _span_plan,
        span,
        parameters=parameters if is_caller or inferred else (),
        moved=inferred and isinstance(span.find, CalledBy),
    )
    find = span.find if inferred else None
    return _probe(span.name, "span", span.module, found, span.prototype, build, process, find)


def _inferred(inferred: Inferred, prototype: Prototype, module: Module, without: _Found) -> _Found:
    """without: what was found by all other means."""
    if inferred.offset is None:
        return replace(without, why=f"{without.why}; {inferred.how}")
    types = {**_declared_types(prototype), RETURN: layouts.named(prototype.returns)}
    return _Found("inferred", (_Body(module.base + inferred.offset, types),), inferred.how)


def _point(point: Point, process: Process) -> ResolvedProbe:
    if point.usdt is not None:
        return _static_probe(point, point.usdt, process)
    found = _function(point.prototype.name, point.module, point.prototype, process)
    build = partial(_point_plan, point)
    return _probe(point.name, "point", point.module, found, point.prototype, build, process)


def _function(
    name: str, module_name: str, prototype: Prototype | None, process: Process, static: bool = False
) -> _Found:
    module = process.module(module_name)
    if module is None:
        return _Found("missing", why=f"{module_name} is not loaded in this process")
    bodies, inlined = debug_functions(name)
    bodies = [body for body in bodies if module.contains(body.entry)]
    address = module.elf.exported_function(name) if prototype else None
    if address is not None and prototype is not None:
        return _exported(module.base + address, prototype, bodies)
    if bodies:
        also = f"also inlined into {', '.join(inlined)}, not seen there" if inlined else None
        found = tuple(
            _Body(body.entry, {**body.arguments, RETURN: body.returns}, body) for body in bodies
        )
        return _Found("dwarf", found, also)
    return _Found(
        "missing",
        why=_why_missing(module_name, prototype, inlined, process),
    )


def _exported(address: int, prototype: Prototype, bodies: list[DebugFunction]) -> _Found:
    """The names are the declaration's; the types are those of debug info where there is any."""
    parameters = _declared_types(prototype)
    types = {**parameters, RETURN: layouts.named(prototype.returns)}
    for name, declared in types.items():
        # One that is not in an integer register moves all the others.
        if isinstance(declared, (Opaque, Struct, Array)) and declared != Opaque("void"):
            what = "its result" if name == RETURN else f"its argument {name}"
            return _Found("missing", why=f"it is not known how {what} is passed")
    body = next((body for body in bodies if body.entry == address), None)
    if body is None:
        return _Found("symbol", (_Body(address, types),))
    for (name, declared), actual in zip(parameters.items(), body.arguments.values()):
        if type(declared) is not type(actual):
            return _Found("missing", why=f"its argument {name} is not what the recipe declares")
        types[name] = actual
    return _Found("dwarf", (_Body(address, {**types, RETURN: body.returns}),))


def _why_missing(
    module_name: str,
    prototype: Prototype | None,
    inlined: list[str],
    process: Process,
) -> str:
    if inlined:
        return f"the compiler inlined it into {', '.join(inlined)}"
    if has_debug_info(process, module_name):
        return f"this build of {module_name} has no such function"
    if prototype is not None:
        return f"this build of {module_name} does not export it"
    return f"static function, and there is no debug info for {module_name} (see `virtrace doctor`)"


def _probe(
    name: str,
    kind: str,
    module_name: str,
    found: _Found,
    prototype: Prototype | None,
    build: partial[SpanPlan] | partial[PointPlan],
    process: Process,
    find: DriverMethod | CalledBy | None = None,
) -> ResolvedProbe:
    sites = tuple(
        Site(
            f"*{body.debug.pc if body.debug else body.entry:#x}",
            build(body.types),
            body.debug is None or body.debug.pc == body.entry,
            body.debug,
            prototype,
            find,
        )
        for body in found.bodies
    )
    module = process.module(module_name)
    offset = found.bodies[0].entry - module.base if module and found.bodies else None
    return ResolvedProbe(name, kind, module_name, found.level, sites, offset, found.why)


def _declared_types(prototype: Prototype) -> dict[str, CType]:
    return {parameter.name: layouts.named(parameter.type) for parameter in prototype.parameters}


def _static_probe(point: Point, usdt: str, process: Process) -> ResolvedProbe:
    module = process.module(point.module)
    if module is None:
        why = f"{point.module} is not loaded in this process"
        return ResolvedProbe(point.name, "point", point.module, "missing", why=why)
    places = [
        probe for probe in module.elf.stap_probes() if f"{probe.provider}:{probe.name}" == usdt
    ]
    if not places:
        why = f"this build of {point.module} has no static probe {usdt}"
        return ResolvedProbe(point.name, "point", point.module, "missing", why=why)
    types = _declared_types(point.prototype)
    # GDB itself finds every place of the probe, and raises the semaphore that guards it: it
    # writes to where it takes the module to be.
    addresses = [module.base + place.address for place in places]
    found = static_probe_addresses(usdt)
    if sorted(found) != sorted(addresses):
        raise TargetError(
            f"GDB has the probe {usdt} at {_hexadecimal(found)}, "
            f"{module.path} at {_hexadecimal(addresses)}",
            "report it, with what VIRTRACE_DEBUG=1 prints",
        )
    site = Site(f"-probe-stap {usdt}", _point_plan(point, types), False, None, point.prototype)
    return ResolvedProbe(point.name, "point", point.module, "usdt", (site,), places[0].address)


def _hexadecimal(addresses: Sequence[int]) -> str:
    return ", ".join(f"{address:#x}" for address in addresses) or "no place"


def _span_plan(
    span: Span, types: Mapping[str, CType], *, parameters: Sequence[Parameter], moved: bool
) -> SpanPlan:
    enter, exit_ = _compile(span.enter, types), _compile(span.exit, types)
    return SpanPlan(span.name, span.root, enter, exit_, parameters, moved)


def _point_plan(point: Point, types: Mapping[str, CType]) -> PointPlan:
    anywhere = point.answers is not None
    return PointPlan(point.name, _compile(point.capture, types), anywhere, point.at_return)


def _compile(paths: Mapping[str, Path], types: Mapping[str, CType]) -> Captures:
    captures: dict[str, Capture | Unavailable] = {}
    for name, path in paths.items():
        try:
            captures[name] = Capture(path, types)
        except Unavailable as why:
            captures[name] = why
    return captures
