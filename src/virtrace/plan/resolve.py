"""Resolves a recipe on an image: where each probe is, and by what means that is known.

Means, best first: debug info (``dwarf``), a symbol pack (``pack``), an exported symbol whose
declaration the recipe gives (``symbol``), who calls whom in a stripped file (``inferred``), a
static probe (``usdt``). What none of them finds is ``missing``, with the reason: no guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

from virtrace.binary import abi, x86_64
from virtrace.binary.abi import Abi
from virtrace.binary.ctype import (
    Array,
    Code,
    CType,
    Integer,
    Opaque,
    Pointer,
    Struct,
    Text,
    Variable,
)
from virtrace.errors import EngineError, TargetError, Unavailable
from virtrace.image.model import Module, Program
from virtrace.image.process import Process
from virtrace.plan.arguments import (
    ArgumentSource,
    ByConvention,
    ByOperands,
    ByPlaces,
    ByProof,
    InFile,
    Renamed,
    WithVariables,
)
from virtrace.plan.capture import Capture
from virtrace.plan.infer import Inferred
from virtrace.plan.model import (
    LINES,
    AnySite,
    Captures,
    Changing,
    ContentSite,
    ExportedFunctions,
    InStruct,
    Itself,
    LineSite,
    Plan,
    PointSite,
    ResolvedProbe,
    ReturnPointSite,
    Rising,
    SpanSite,
    StaticProbeSite,
    all_captures,
)
from virtrace.plan.proof import is_provable
from virtrace.plan.walk import ToMember, ToTarget, ways
from virtrace.plan.witness import KnownBody, Statement, Witness
from virtrace.recipe.model import (
    CalledBy,
    Changes,
    DriverMethod,
    Fails,
    Over,
    Point,
    Recipe,
    Rises,
    Span,
)
from virtrace.recipe.path import CALLER, RETURN, Path
from virtrace.recipe.prototype import Prototype
from virtrace.targets import target_of

_WORD, _INT = 8, 4


@dataclass(frozen=True)
class _Body:
    """A body to probe. Fields as in KnownBody; types has RETURN too."""

    entry: int
    address: int
    types: Mapping[str, CType]
    arguments: ArgumentSource
    statements: Callable[[], Iterable[Statement]] = tuple


@dataclass(frozen=True)
class _Found:
    level: str
    bodies: tuple[_Body, ...] = ()
    why: str | None = None


def resolve(
    recipe: Recipe,
    process: Program,
    witnesses: Sequence[Witness],
    inferred: Mapping[Span, Inferred],
) -> Plan:
    """Resolve a recipe.

    witnesses: the better ones first. inferred: what plan.infer found.
    """
    convention = convention_of(process)
    paths = (path for probe in recipe.probes for path in probe.captures.values())
    asks_caller = any(CALLER in path.arguments for path in paths)
    exported = _exported_functions(recipe, process) if asks_caller else ExportedFunctions()
    resolver = _Resolver(process, convention, witnesses, exported)
    # Debug info and packs have the last word, also where they say that a function is inlined.
    usable = {span: found for span, found in inferred.items() if not resolver.knows(span)}
    callers = {_caller(span.find) for span in usable if span.find}
    probes = [
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
    return Plan(probes, exported)


def convention_of(process: Program) -> Abi:
    """The calling convention of a process. Raises TargetError where its values cannot be read."""
    main = process.module(target_of(process).module)
    assert main is not None
    elf = main.elf
    if not elf.is_little_endian_64:
        raise TargetError(
            f"the daemon runs on {elf.machine}, and virtrace reads 64-bit little-endian values "
            "only",
            "trace a daemon of such a machine: x86_64, aarch64, ppc64le, riscv64",
        )
    return abi.convention_of_file(elf)


def require_traceable(recipe: Recipe, plan: Plan) -> None:
    """Raise TargetError where nothing of the recipe can be recorded on this process.

    That is where none of its roots, and none of the points that need no call, was found.
    """
    first = {
        *(span.name for span in recipe.roots),
        *(point.name for point in recipe.points if point.anywhere),
    }
    missing = [probe for probe in plan.probes if probe.name in first and not probe.sites]
    if len(missing) == len(first):
        raise TargetError(
            f"{missing[0].name} cannot be traced: {missing[0].why}",
            "`virtrace doctor` says what this daemon offers",
        )


def require_for_gdb(recipe: Recipe) -> None:
    """Raise EngineError where a recipe asks for what only probes of the kernel give."""
    if recipe.is_for_kernel:
        raise EngineError(
            f"{recipe.name} has a condition or a stack, which only probes of the kernel record",
            "--engine uprobes",
        )


def _proven(process: Program, probe: ResolvedProbe) -> ResolvedProbe:
    """The probe without the sites where a breakpoint could break the process."""
    module = process.module(probe.module)
    if module is None or not probe.sites:
        return probe
    places = {
        module.base + address: must_be_entry(site)
        for site in probe.sites
        for address in site.addresses
    }
    doubts = process.doubts(places)
    if not doubts:
        return probe
    doubted = {address - module.base for address in doubts}
    left = tuple(site for site in probe.sites if not doubted & {*site.addresses})
    listed = "; ".join(f"{address:#x}: {doubt}" for address, doubt in sorted(doubts.items()))
    why = f"a breakpoint could break the process at {listed}"
    if left:
        return replace(probe, sites=left, why="; ".join(filter(None, [probe.why, why])))
    return replace(probe, level="missing", sites=(), offset=None, why=why, lacks=())


def _in_struct(path: Path, types: Mapping[str, CType], fits: Callable[[CType], bool]) -> InStruct:
    """Where a member is of which a condition can be. Raises: Unavailable."""
    way = ways(path, types)[0]
    first, *members = way.moves or (None,)
    offsets = [move.field.offset for move in members if isinstance(move, ToMember)]
    if first != ToTarget(0) or len(offsets) != len(members) or not fits(way.ctype):
        raise Unavailable(
            f"{path.text}: no number of {_WORD} bytes, or text, in what an argument points to"
        )
    return InStruct(way.start, sum(offsets), way.ctype.size)


def _compared(
    path: Path, types: Mapping[str, CType], fits: Callable[[CType], bool]
) -> InStruct | Itself:
    """Where a value is that can be compared with the one before. Raises: Unavailable."""
    way = ways(path, types)[0]
    if way.moves:
        return _in_struct(path, types, fits)
    if not _is_number(way.ctype):
        raise Unavailable(f"{path.text}: no number, nor an address")
    return Itself(way.start, way.ctype.size)


def _condition(when: Rises | Changes, types: Mapping[str, CType]) -> Rising | Changing:
    """Raises: Unavailable."""
    if isinstance(when, Changes):
        per = None if when.per is None else _compared(when.per, types, _is_key)
        return Changing(_compared(when.value, types, _is_number), per)
    return Rising(
        _in_struct(when.value, types, lambda ctype: ctype == Integer(_WORD)),
        _in_struct(when.per, types, lambda ctype: isinstance(ctype, Text)),
    )


def _is_number(ctype: CType) -> bool:
    return isinstance(ctype, (Integer, Pointer)) and ctype.size <= _WORD


def _is_key(ctype: CType) -> bool:
    return _is_number(ctype) or isinstance(ctype, Text)


def _member(ctype: CType, name: str) -> int:
    """The offset of a member of a struct, bytes. Raises: Unavailable."""
    fields = ctype.fields if isinstance(ctype, Struct) else ()
    found = [field.offset for field in fields if field.name == name]
    if not found:
        raise Unavailable(f"it is not known where {name} is in its struct")
    return found[0]


def _result_size(body: _Body) -> int:
    """Of a function that fails with a number below 0: of an `int` where its type is not known."""
    returns = body.types.get(RETURN)
    return returns.size if isinstance(returns, Integer) else _INT


def _cheap_entry(module: Module, entry: int) -> int:
    """Where in an exported function a uprobe costs little, and all is as at the entry."""
    for start, end, _ in module.elf.exported_functions():
        if start == entry:
            return entry + x86_64.cheap_entry(module.elf.content(start, end - start) or b"")
    return entry


def must_be_entry(site: AnySite) -> bool:
    """Whether a function has to begin where the site is."""
    return not isinstance(site, (StaticProbeSite, LineSite)) and site.at_entry


def _first_found(alternatives: Sequence[ResolvedProbe]) -> ResolvedProbe:
    """The first alternative that has a site; without any, the first with the reasons of all."""
    if len(alternatives) == 1:
        return alternatives[0]
    passed: list[str] = []
    for probe in alternatives:
        if probe.sites:
            why = "; ".join(filter(None, [probe.why, *passed]))
            return replace(probe, taken=probe.function, why=why or None)
        passed.append(f"not {probe.function}: {probe.why}")
    return replace(alternatives[0], why="; ".join(passed))


def _caller(find: DriverMethod | CalledBy) -> str:
    return find.api if isinstance(find, DriverMethod) else find.caller


class _Resolver:
    def __init__(
        self,
        process: Program,
        convention: Abi,
        witnesses: Sequence[Witness],
        exported: ExportedFunctions,
    ) -> None:
        self._process = process
        self._abi = convention
        self._witnesses = witnesses
        self._caller: Mapping[str, CType] = {CALLER: Code(exported.caller)}
        self._named = partial(target_of(process).type_named, program=process)
        self._variable = partial(target_of(process).knowledge.variable, process)

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
        if inferable is not None and found.level == "missing":
            found = self._inferred(span, inferable, found)
        module = self._process.module(span.module)
        if module is None or not found.bodies:
            return _probe(span, "span", span.function, found, [])
        lines = [site for body in found.bodies for site in self._lines(span, body, module)]
        is_inferred = found.level == "inferred"
        sites = [
            SpanSite(
                span.name,
                span.module,
                module.path,
                body.entry,
                body.address,
                body.arguments,
                self._captures(span.enter, {**body.types, **self._caller}),
                self._captures(span.exit, {**body.types, **self._caller}),
                span.root,
                span.prototype.parameters if span.prototype and is_caller else (),
                moved=is_inferred and isinstance(span.find, CalledBy),
                keeps_registers=any(isinstance(site.arguments, ByPlaces) for site in lines),
                inside=span.inside,
            )
            for body in found.bodies
        ]
        probe = _probe(span, "span", span.function, found, sites)
        if span.lines is not None and not lines:
            return replace(probe, lacks=(*probe.lacks, LINES))
        return replace(probe, sites=(*sites, *lines))

    def _lines(self, span: Span, body: _Body, module: Module) -> Iterator[LineSite]:
        """A site for each statement of the function, where debug info tells them."""
        if span.lines is None:
            return
        for statement in body.statements():
            yield LineSite(
                span.name,
                span.module,
                module.path,
                statement.address,
                statement.arguments,
                statement.source,
                statement.line,
                statement.declared,
                self._captures(span.lines, statement.types),
            )

    def point(self, point: Point) -> ResolvedProbe:
        if point.usdt is not None:
            return self._static_probe(point, point.usdt)
        function = point.prototype.name
        module = self._process.module(point.module)
        if point.standing is not None:
            why = None if module else f"{point.module} is not loaded in this process"
            return _probe(
                point, "point", function, _Found("missing" if why else "symbol", why=why), []
            )
        found = self._function(function, point.module, point.prototype)
        found = replace(
            found, bodies=tuple(self._with_variables(point, body) for body in found.bodies)
        )
        if isinstance(point.when, (Rises, Changes)):
            return self._conditional(point, point.when, found)
        sites = []
        for body in found.bodies if module is not None else ():
            assert module is not None
            fails = _result_size(body) if isinstance(point.when, Fails) else None
            over, on_main = None, False
            if isinstance(point.when, Over):
                over, on_main = point.when.ns, point.when.on_main
            # Each entry meets the probe, and hardly a return is recorded.
            address = body.address if point.when is None else _cheap_entry(module, body.entry)
            place = (point.name, point.module, module.path, body.entry, address)
            captures = self._captures(point.capture, {**body.types, **self._caller})
            common = (*place, body.arguments, captures, _is_anywhere(point))
            sites.append(
                ReturnPointSite(*common, fails=fails, over=over, on_main=on_main)
                if point.at_return
                else PointSite(*common, inside=point.inside)
            )
        return _probe(point, "point", function, found, sites)

    def _with_variables(self, point: Point, body: _Body) -> _Body:
        """The body of a function with the variables that its captures may start from."""
        if not point.variables:
            return body
        types, places = dict(body.types), {}
        for variable in point.variables:
            try:
                places[variable.name] = InFile(self._variable(variable.name))
                types[variable.name] = Variable(self._named(variable.type))
            except Unavailable as why:
                types[variable.name] = Opaque(variable.type, why=str(why))
        return replace(body, types=types, arguments=WithVariables(body.arguments, places))

    def _conditional(self, point: Point, when: Rises | Changes, found: _Found) -> ResolvedProbe:
        """A point with a condition, at the first instruction that costs little."""
        function, module = point.prototype.name, self._process.module(point.module)
        sites: list[AnySite] = []
        try:
            contents = None if point.contents is None else self._contents(point, point.contents)
            for body in found.bodies if module is not None else ():
                assert module is not None
                address = _cheap_entry(module, body.entry)
                sites.append(
                    PointSite(
                        point.name,
                        point.module,
                        module.path,
                        body.entry,
                        address,
                        body.arguments,
                        self._captures(point.capture, body.types),
                        _is_anywhere(point),
                        _condition(when, body.types),
                        contents is not None,
                    )
                )
            if sites and contents is not None:
                sites.append(contents)
        except Unavailable as why:
            return _probe(point, "point", function, _Found("missing", why=str(why)), [])
        return _probe(point, "point", function, found, sites)

    def _contents(self, point: Point, declared: Prototype) -> ContentSite:
        """Where the writes begin whose end the point is. Raises: Unavailable."""
        module = self._process.module(point.module)
        found = self._function(declared.name, point.module, declared)
        if module is None or not found.bodies:
            raise Unavailable(f"{declared.name}: {found.why}")
        (body,) = found.bodies
        node = _member(self._named("BdrvChild"), "bs")
        mark = _member(self._named("BlockDriverState"), "wr_highest_offset")
        vectors, count, size = (
            _member(self._named("QEMUIOVector"), name) for name in ("iov", "niov", "size")
        )
        return ContentSite(
            *(point.name, point.module, module.path),
            body.entry,
            _cheap_entry(module, body.entry),
            body.arguments,
            *(node, mark, vectors, count, size),
        )

    def _function(self, name: str, module_name: str, prototype: Prototype | None) -> _Found:
        module = self._process.module(module_name)
        if module is None:
            return _Found("missing", why=f"{module_name} is not loaded in this process")
        level, bodies, inlined = self._known(name, module_name, module)
        address = module.elf.exported_function(name) if prototype else None
        if address is not None and prototype is not None:
            return self._exported(address, prototype, level, bodies)
        if bodies:
            also = f"also inlined into {', '.join(inlined)}, not seen there" if inlined else None
            found = tuple(
                _Body(
                    body.entry,
                    body.address,
                    {**body.types, RETURN: body.returns},
                    body.arguments,
                    body.statements,
                )
                for body in bodies
            )
            return _Found(level, found, also)
        return _Found("missing", why=self._why_missing(module_name, module, prototype, inlined))

    def _witness(self, module_name: str) -> Witness | None:
        return next((one for one in self._witnesses if one.knows(module_name)), None)

    def _known(
        self, name: str, module_name: str, module: Module
    ) -> tuple[str, Sequence[KnownBody], Sequence[str]]:
        """The bodies that the best witness knows, and the functions that it is inlined into."""
        witness = self._witness(module_name)
        if witness is None:
            return "missing", [], []
        known = witness.function(name, module_name)
        return witness.level, known.bodies, known.inlined_into

    def _exported(
        self, address: int, prototype: Prototype, level: str, bodies: Sequence[KnownBody]
    ) -> _Found:
        """The names are the declaration's; the types are the known ones where there are any."""
        parameters = self._declared_types(prototype)
        types = {**parameters, RETURN: self._named(prototype.returns)}
        for name, declared in types.items():
            # One that is not in an integer register moves all the others.
            if isinstance(declared, (Opaque, Struct, Array)) and declared != Opaque("void"):
                what = "its result" if name == RETURN else f"its argument {name}"
                return _Found("missing", why=f"it is not known how {what} is passed")
        arguments = ByConvention([*parameters], self._abi)
        body = next((body for body in bodies if body.entry == address), None)
        if body is None:
            return _Found("symbol", (_Body(address, address, types, arguments),))
        for (name, declared), actual in zip(parameters.items(), body.types.values()):
            if type(declared) is not type(actual):
                why = f"its argument {name} is not what the recipe declares"
                return _Found("missing", why=why)
            types[name] = actual
        types[RETURN] = body.returns
        if self._abi.is_known:
            found = _Body(address, address, types, arguments, body.statements)
        else:
            # Debug info has to tell where the arguments are.
            renamed = Renamed(body.arguments, dict(zip(parameters, body.types)))
            found = _Body(address, body.address, types, renamed, body.statements)
        return _Found(level, (found,))

    def _inferred(self, span: Span, inferred: Inferred, without: _Found) -> _Found:
        """without: what was found by all other means."""
        if span.prototype is None or span.find is None:
            return without
        if inferred.offset is None:
            return replace(without, why=f"{without.why}; {inferred.how}")
        types = {
            **self._declared_types(span.prototype),
            RETURN: self._named(span.prototype.returns),
        }
        arguments = ByProof(span.prototype.parameters, span.find, self._abi)
        body = _Body(inferred.offset, inferred.offset, types, arguments)
        return _Found("inferred", (body,), inferred.how)

    def _why_missing(
        self,
        module_name: str,
        module: Module,
        prototype: Prototype | None,
        inlined: Sequence[str],
    ) -> str:
        witness = self._witness(module_name)
        if inlined:
            return f"the compiler inlined it into {', '.join(inlined)}"
        if witness is not None and witness.level == "dwarf":
            return f"this build of {module_name} has no such function"
        if prototype is not None:
            return f"this build of {module_name} does not export it"
        if witness is not None:
            return f"the symbol pack of {module_name} does not have it"
        if not module.elf.is_trusted:
            return (
                f"static function, and debug info of {module_name} is not read: others than root "
                "can have written it"
            )
        return f"static function, and there is no debug info for {module_name}"

    def _static_probe(self, point: Point, usdt: str) -> ResolvedProbe:
        module = self._process.module(point.module)
        if module is None:
            found = _Found("missing", why=f"{point.module} is not loaded in this process")
            return _probe(point, "point", usdt, found, [])
        provider, _, name = usdt.partition(":")
        places = [
            probe
            for probe in module.elf.stap_probes()
            if (probe.provider, probe.name) == (provider, name)
        ]
        if not places:
            why = f"this build of {point.module} has no static probe {usdt}"
            return _probe(point, "point", usdt, _Found("missing", why=why), [])
        types = self._declared_types(point.prototype)
        site = StaticProbeSite(
            point.name,
            point.module,
            module.path,
            provider,
            name,
            [place.address for place in places],
            sorted({place.semaphore for place in places if place.semaphore}),
            ByOperands([*types], {place.address: place.arguments.split() for place in places}),
            self._captures(point.capture, types),
            _is_anywhere(point),
        )
        return _probe(point, "point", usdt, _Found("usdt"), [site])

    def _declared_types(self, prototype: Prototype) -> dict[str, CType]:
        return {parameter.name: self._named(parameter.type) for parameter in prototype.parameters}

    @staticmethod
    def _captures(paths: Mapping[str, Path], types: Mapping[str, CType]) -> Captures:
        captures: dict[str, Capture | Unavailable] = {}
        for name, path in paths.items():
            try:
                captures[name] = Capture(path, types)
            except Unavailable as why:
                captures[name] = why
        return captures


def _probe(
    probe: Span | Point, kind: str, function: str, found: _Found, sites: Sequence[AnySite]
) -> ResolvedProbe:
    offset = sites[0].addresses[0] if sites else None
    if found.bodies:
        offset = found.bodies[0].entry
    lacks = tuple(_lacking(sites[0])) if sites else ()
    return ResolvedProbe(
        probe.name,
        function,
        kind,
        probe.module,
        found.level,
        sites,
        offset,
        found.why,
        lacks,
        role=probe.role,
    )


def _lacking(site: AnySite) -> Iterator[str]:
    """The captures that cannot give a value, whatever the call."""
    arguments = site.arguments
    for name, capture in all_captures(site).items():
        if isinstance(capture, Unavailable) or (
            isinstance(arguments, ByProof)
            and isinstance(arguments.find, CalledBy)
            and not all(is_provable(arguments.parameters, start) for start in capture.arguments)
        ):
            yield name


def _is_anywhere(point: Point) -> bool:
    return point.anywhere or point.answers is not None


def _exported_functions(recipe: Recipe, process: Program) -> ExportedFunctions:
    prefix = target_of(process).prefix
    names = {
        module: name for name in recipe.modules if (module := process.module(name)) is not None
    }
    modules = {
        names.get(module, module.name): module
        for module in process.modules
        if module.name.startswith(prefix)
    }
    return ExportedFunctions(
        {name: sorted(module.elf.exported_functions()) for name, module in modules.items()},
        {name: module.base for name, module in modules.items()}
        if isinstance(process, Process)
        else {},
    )
