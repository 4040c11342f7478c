"""A recipe on one process: where each probe stands, and by what means that is known.

Means, best first: debug info (``dwarf``), a symbol pack (``pack``), an exported symbol whose
declaration the recipe gives (``symbol``), who calls whom in a stripped file (``inferred``), a
static probe (``usdt``). What none of them finds is ``missing``, with the reason: no guesses.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

from virtrace.binary import x86_64
from virtrace.binary.abi import Abi
from virtrace.binary.ctype import Array, Code, CType, Opaque, Struct
from virtrace.binary.pack import Pack
from virtrace.binary.x86_64 import Operand, operand
from virtrace.engine.capture import Capture
from virtrace.engine.proof import is_provable
from virtrace.engine.tracer import Captures, LinePlan, PointPlan, SpanPlan
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Module, Program
from virtrace.inferior.target import (
    KnownFunction,
    PackedFunction,
    debug_functions,
    has_debug_info,
    static_probe_addresses,
)
from virtrace.plan.infer import Inferred
from virtrace.recipe.model import CalledBy, DriverMethod, Point, Recipe, Span
from virtrace.recipe.path import CALLER, RETURN, Path
from virtrace.recipe.prototype import Parameter, Prototype
from virtrace.targets import target_of
from virtrace.trace.format import ProbeRecord

# What a span lacks whose lines were asked for and are not known.
LINES = "lines"


@dataclass(frozen=True)
class Site:
    """One place to stop at.

    addresses: of one, or of every place of a static probe. at_entry: it is the very first
    instruction, where the return address lies at the stack pointer.
    known: the body that debug info or a pack describes; prototype: what the recipe declares;
    find: how it was found, where that alone tells where the arguments are. usdt, semaphores,
    operands: of a static probe its PROVIDER:NAME, what GDB raises beside the breakpoints, and
    by address where its arguments are, None for one that GDB has to tell.
    """

    addresses: tuple[int, ...]
    plan: SpanPlan | PointPlan | LinePlan
    at_entry: bool
    known: KnownFunction | None = None
    prototype: Prototype | None = None
    find: DriverMethod | CalledBy | None = None
    usdt: str | None = None
    semaphores: tuple[int, ...] = ()
    operands: Mapping[int, Sequence[Operand | None]] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """For GDB's ``break``."""
        return f"-probe-stap {self.usdt}" if self.usdt else f"*{self.addresses[0]:#x}"


@dataclass(frozen=True)
class ResolvedProbe:
    """offset: of the first site, in the module's own addresses.

    function: as C has it, or the static probe as provider:name; of alternatives, of the one that
    was taken. taken: the same where there are alternatives, and one was.
    lacks: the values that cannot be had at this level.
    """

    name: str
    function: str
    kind: str
    module: str
    level: str
    sites: tuple[Site, ...] = ()
    offset: int | None = None
    why: str | None = None
    lacks: tuple[str, ...] = ()
    taken: str | None = None

    def to_record(self, role: str | None) -> ProbeRecord:
        offset = None if self.offset is None else f"{self.offset:#x}"
        return {
            "name": self.name,
            "kind": self.kind,
            "role": role,
            "module": self.module,
            "offset": offset,
            "level": self.level,
            "taken": self.taken,
            "why": self.why,
            "lacks": list(self.lacks),
        }


@dataclass(frozen=True)
class _Body:
    """One body of a function. entry: its first instruction. types: of arguments, and RETURN.

    known: where debug info or a pack has to tell where the arguments are; an exported body
    keeps them where the ABI says. described: what they tell of its lines.
    """

    entry: int
    types: Mapping[str, CType]
    known: KnownFunction | None = None
    described: KnownFunction | None = None


@dataclass(frozen=True)
class _Found:
    level: str
    bodies: tuple[_Body, ...] = ()
    why: str | None = None


def resolve(
    recipe: Recipe,
    process: Program,
    abi: Abi,
    inferred: Mapping[Span, Inferred],
    packs: Mapping[str, Pack],
    prefer_packs: bool = False,
) -> list[ResolvedProbe]:
    """inferred: what infer() found; packs: by name of the module.

    prefer_packs: to debug info, which GDB understands only while the process stands.
    """
    paths = (path for probe in recipe.probes for path in probe.captures.values())
    named = any(path.name == CALLER for path in paths)
    caller = {CALLER: _caller_type(process)} if named else {}
    resolver = _Resolver(process, abi, packs, caller, prefer_packs)
    # Debug info and packs have the last word, also where they say that a function is inlined.
    usable = {span: found for span, found in inferred.items() if not resolver.knows(span)}
    callers = {_caller(span.find) for span in usable if span.find}
    return [
        *(
            _first_found(
                [
                    _proven(process, resolver.span(span, usable.get(span), name in callers))
                    for span in spans
                ]
            )
            for name, spans in groupby(recipe.spans, lambda span: span.name)
        ),
        *(
            _first_found([_proven(process, resolver.point(point)) for point in points])
            for _, points in groupby(recipe.points, lambda point: point.name)
        ),
    ]


def _proven(process: Program, probe: ResolvedProbe) -> ResolvedProbe:
    """Without the sites where a breakpoint could break the process, whoever told of them."""
    places = {address: site.at_entry for site in probe.sites for address in site.addresses}
    doubts = process.doubts(places)
    if not doubts:
        return probe
    left = tuple(site for site in probe.sites if not doubts.keys() & {*site.addresses})
    listed = "; ".join(f"{address:#x}: {doubt}" for address, doubt in sorted(doubts.items()))
    why = f"a breakpoint could break the process at {listed}"
    if left:
        return replace(probe, sites=left, why="; ".join(filter(None, [probe.why, why])))
    return replace(probe, level="missing", sites=(), offset=None, why=why, lacks=())


def _first_found(alternatives: Sequence[ResolvedProbe]) -> ResolvedProbe:
    """The one that is taken, with why those before it are not; where none is, with all reasons."""
    if len(alternatives) == 1:
        return alternatives[0]
    passed: list[str] = []
    for probe in alternatives:
        if probe.sites:
            why = "; ".join(filter(None, [probe.why, *passed]))
            return replace(probe, taken=probe.function, why=why or None)
        passed.append(f"not {probe.function}: {probe.why}")
    return replace(alternatives[0], why="; ".join(passed))


def require_traceable(recipe: Recipe, resolved: Sequence[ResolvedProbe]) -> None:
    """TargetError where nothing of the recipe can be recorded on this process.

    That is where none of its roots, and none of the points that need no call, was found.
    """
    first = {
        *(span.name for span in recipe.roots),
        *(point.name for point in recipe.points if point.anywhere),
    }
    missing = [probe for probe in resolved if probe.name in first and not probe.sites]
    if len(missing) == len(first):
        raise TargetError(
            f"{missing[0].name} cannot be traced: {missing[0].why}",
            "`virtrace doctor` says what this daemon offers",
        )


def _caller(find: DriverMethod | CalledBy) -> str:
    return find.api if isinstance(find, DriverMethod) else find.caller


class _Resolver:
    def __init__(
        self,
        process: Program,
        abi: Abi,
        packs: Mapping[str, Pack],
        caller: Mapping[str, CType],
        prefer_packs: bool,
    ) -> None:
        """caller: the type of CALLER, where the recipe captures it."""
        self._process = process
        self._abi = abi
        self._packs = packs
        self._caller = caller
        self._prefer_packs = prefer_packs
        self._named = target_of(process).type_named

    def knows(self, span: Span) -> bool:
        """Whether debug info or a pack has a function of that name, be it only inlined."""
        module = self._process.module(span.module)
        if module is None:
            return False
        _, bodies, inlined = self._known(span.function, span.module, module)
        return bool(bodies or inlined)

    def span(self, span: Span, inferable: Inferred | None, is_caller: bool) -> ResolvedProbe:
        """is_caller: the arguments of another are proven by those of this one."""
        # A static function is not exported: its prototype only says what its source declares.
        exported = None if span.find else span.prototype
        found = self._function(span.function, span.module, exported)
        module = self._process.module(span.module)
        if inferable and span.prototype and module and found.level == "missing":
            found = self._inferred(inferable, span.prototype, module, found)
        inferred = found.level == "inferred"
        parameters = span.prototype.parameters if span.prototype else ()
        build = partial(
            _span_plan,
            span,
            parameters=parameters if is_caller or inferred else (),
            moved=inferred and isinstance(span.find, CalledBy),
            # GDB finds by itself what was there; a pack does not.
            keeps_registers=span.lines is not None and found.level == "pack",
        )
        find = span.find if inferred else None
        probe = self._probe(span, "span", span.function, found, span.prototype, build, find)
        if span.lines is None or not probe.sites:
            return probe
        lines = [site for body in found.bodies for site in self._lines(span, body)]
        if not lines:
            return replace(probe, lacks=(*probe.lacks, LINES))
        return replace(probe, sites=(*probe.sites, *lines))

    def _lines(self, span: Span, body: _Body) -> Iterator[Site]:
        """A site for each statement of the function, where debug info tells them."""
        assert span.lines is not None
        for statement in body.described.statements() if body.described else ():
            here = statement.known
            watch = _compile(span.lines, here.arguments)
            plan = LinePlan(span.name, statement.file, statement.line, statement.declared, watch)
            yield Site((here.pc,), plan, False, here)

    def point(self, point: Point) -> ResolvedProbe:
        if point.usdt is not None:
            return self._static_probe(point, point.usdt)
        found = self._function(point.prototype.name, point.module, point.prototype)
        build = partial(_point_plan, point)
        function = point.prototype.name
        return self._probe(point, "point", function, found, point.prototype, build)

    def _function(self, name: str, module_name: str, prototype: Prototype | None) -> _Found:
        module = self._process.module(module_name)
        if module is None:
            return _Found("missing", why=f"{module_name} is not loaded in this process")
        level, bodies, inlined = self._known(name, module_name, module)
        address = module.elf.exported_function(name) if prototype else None
        if address is not None and prototype is not None:
            return self._exported(module.base + address, prototype, level, bodies)
        if bodies:
            also = f"also inlined into {', '.join(inlined)}, not seen there" if inlined else None
            found = tuple(
                _Body(body.entry, {**body.arguments, RETURN: body.returns}, body, body)
                for body in bodies
            )
            return _Found(level, found, also)
        return _Found("missing", why=self._why_missing(module_name, prototype, inlined))

    def _known(
        self, name: str, module_name: str, module: Module
    ) -> tuple[str, Sequence[KnownFunction], Sequence[str]]:
        """The bodies that debug info tells all of, else a pack, and where it is inlined."""
        packed = self._packs.get(module_name)
        if packed is not None and (
            self._prefer_packs or not has_debug_info(self._process, module_name)
        ):
            function = packed.functions.get(name)
            if function is None:
                return "pack", [], []
            bodies = [
                PackedFunction(body, function.returns, module.base, self._abi)
                for body in function.bodies
            ]
            return "pack", bodies, function.inlined_into
        described, inlined = debug_functions(name)
        return "dwarf", [body for body in described if module.contains(body.entry)], inlined

    def _exported(
        self, address: int, prototype: Prototype, level: str, bodies: Sequence[KnownFunction]
    ) -> _Found:
        """The names are the declaration's; the types are the known ones where there are any."""
        parameters = self._declared_types(prototype)
        types = {**parameters, RETURN: self._named(prototype.returns)}
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
                why = f"its argument {name} is not what the recipe declares"
                return _Found("missing", why=why)
            types[name] = actual
        # Where the processor's convention is not known, debug info has to tell.
        known = None if self._abi.argument_registers else body.renamed(parameters)
        return _Found(level, (_Body(address, {**types, RETURN: body.returns}, known, body),))

    def _why_missing(
        self, module_name: str, prototype: Prototype | None, inlined: Sequence[str]
    ) -> str:
        if inlined:
            return f"the compiler inlined it into {', '.join(inlined)}"
        if has_debug_info(self._process, module_name):
            return f"this build of {module_name} has no such function"
        if prototype is not None:
            return f"this build of {module_name} does not export it"
        if module_name in self._packs:
            return f"the symbol pack of {module_name} does not have it"
        module = self._process.module(module_name)
        if module is not None and not module.elf.is_trusted:
            return (
                f"static function, and debug info of {module_name} is not read: others than root "
                "can have written it"
            )
        return (
            f"static function, and there is no debug info for {module_name} (see `virtrace doctor`)"
        )

    def _inferred(
        self, inferred: Inferred, prototype: Prototype, module: Module, without: _Found
    ) -> _Found:
        """without: what was found by all other means."""
        if inferred.offset is None:
            return replace(without, why=f"{without.why}; {inferred.how}")
        types = {**self._declared_types(prototype), RETURN: self._named(prototype.returns)}
        return _Found("inferred", (_Body(module.base + inferred.offset, types),), inferred.how)

    def _declared_types(self, prototype: Prototype) -> dict[str, CType]:
        return {parameter.name: self._named(parameter.type) for parameter in prototype.parameters}

    def _probe(
        self,
        probe: Span | Point,
        kind: str,
        function: str,
        found: _Found,
        prototype: Prototype | None,
        build: partial[SpanPlan] | partial[PointPlan],
        find: DriverMethod | CalledBy | None = None,
    ) -> ResolvedProbe:
        sites = tuple(
            Site(
                (body.known.pc if body.known else body.entry,),
                build({**body.types, **self._caller}),
                body.known is None or body.known.pc == body.entry,
                body.known,
                prototype,
                find,
            )
            for body in found.bodies
        )
        module = self._process.module(probe.module)
        offset = found.bodies[0].entry - module.base if module and found.bodies else None
        lacks = tuple(_lacking(sites[0])) if sites else ()
        return ResolvedProbe(
            probe.name, function, kind, probe.module, found.level, sites, offset, found.why, lacks
        )

    def _static_probe(self, point: Point, usdt: str) -> ResolvedProbe:
        module = self._process.module(point.module)
        if module is None:
            why = f"{point.module} is not loaded in this process"
            return ResolvedProbe(point.name, usdt, "point", point.module, "missing", why=why)
        places = [
            probe for probe in module.elf.stap_probes() if f"{probe.provider}:{probe.name}" == usdt
        ]
        if not places:
            why = f"this build of {point.module} has no static probe {usdt}"
            return ResolvedProbe(point.name, usdt, "point", point.module, "missing", why=why)
        types = self._declared_types(point.prototype)
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
        plan = _point_plan(point, types)
        operands = {
            module.base + place.address: [*map(operand, place.arguments.split())]
            for place in places
            if self._abi is x86_64.ABI
        }
        raised = {module.base + place.semaphore for place in places if place.semaphore}
        site = Site(
            tuple(addresses),
            plan,
            False,
            None,
            point.prototype,
            usdt=usdt,
            semaphores=tuple(sorted(raised)),
            operands=operands,
        )
        return ResolvedProbe(
            point.name, usdt, "point", point.module, "usdt", (site,), places[0].address
        )


def _lacking(site: Site) -> Iterator[str]:
    """The captures that cannot give a value, whatever the call."""
    plan = site.plan
    assert not isinstance(plan, LinePlan)
    captures = plan.capture if isinstance(plan, PointPlan) else {**plan.enter, **plan.exit}
    for name, capture in captures.items():
        if isinstance(capture, Unavailable) or (
            isinstance(site.find, CalledBy)
            and site.prototype is not None
            and not all(is_provable(site.prototype, argument) for argument in capture.arguments)
        ):
            yield name


def _hexadecimal(addresses: Sequence[int]) -> str:
    return ", ".join(f"{address:#x}" for address in addresses) or "no place"


def _caller_type(process: Program) -> Code:
    """The caller of a function, by the name of the exported function that it is in."""
    prefix = target_of(process).prefix
    exported = sorted(
        (module.base + start, module.base + end, name)
        for module in process.modules
        if module.name.startswith(prefix)
        for start, end, name in module.elf.exported_functions()
    )

    def name(return_address: int) -> str:
        # A call can be the last instruction of its function.
        call = return_address - 1
        at = bisect_right(exported, (call, sys.maxsize, "")) - 1
        if at < 0 or call >= exported[at][1]:
            raise Unavailable("it was called by a function that is not exported")
        return exported[at][2]

    return Code(name)


def _span_plan(
    span: Span,
    types: Mapping[str, CType],
    *,
    parameters: Sequence[Parameter],
    moved: bool,
    keeps_registers: bool,
) -> SpanPlan:
    enter, exit_ = _compile(span.enter, types), _compile(span.exit, types)
    return SpanPlan(span.name, span.root, enter, exit_, parameters, moved, keeps_registers)


def _point_plan(point: Point, types: Mapping[str, CType]) -> PointPlan:
    anywhere = point.anywhere or point.answers is not None
    return PointPlan(point.name, _compile(point.capture, types), anywhere, point.at_return)


def _compile(paths: Mapping[str, Path], types: Mapping[str, CType]) -> Captures:
    captures: dict[str, Capture | Unavailable] = {}
    for name, path in paths.items():
        try:
            captures[name] = Capture(path, types)
        except Unavailable as why:
            captures[name] = why
    return captures
