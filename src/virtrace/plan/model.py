"""The plan of a trace: a recipe resolved on an image. Every engine works from it.

Addresses are those of the files, which a module's load bias makes those of a process.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Union

from virtrace.errors import Unavailable
from virtrace.plan.arguments import ArgumentSource, ByOperands
from virtrace.plan.capture import Capture
from virtrace.recipe.model import Inside
from virtrace.recipe.path import RETURN
from virtrace.recipe.prototype import Parameter
from virtrace.trace.format import ProbeRecord

# A capture, or the reason why there can be none.
Captures = Mapping[str, Union[Capture, Unavailable]]

# What a span lacks where its lines were asked for and are not known.
LINES = "lines"


@dataclass(frozen=True, eq=False)
class Site:
    """A place to probe.

    probe: the name of its events. module: the name that the recipe has for the file.
    file: its path, as the process sees it.
    """

    probe: str
    module: str
    file: str


@dataclass(frozen=True, eq=False)
class FunctionSite(Site):
    """A function.

    entry: its first instruction. address: where its arguments can be read, which is behind the
    prologue only where GDB's debug info says so.
    """

    entry: int
    address: int
    arguments: ArgumentSource

    @property
    def addresses(self) -> tuple[int, ...]:
        return (self.address,)

    @property
    def at_entry(self) -> bool:
        """Whether the return address lies at the stack pointer there."""
        return self.address == self.entry


@dataclass(frozen=True, eq=False)
class SpanSite(FunctionSite):
    """A function that is traced from its entry to its return.

    root: a call of it begins a tree. parameters: as declared, where the arguments of functions
    that it calls are proven by its own. moved: the compiler may have changed its arguments and
    its result. keeps_registers: its lines may ask what the argument registers held at the entry.
    returns: all `ret` instructions by which it ends, if probes of the kernel go there; None: the
    kernel finds its return. inside: as in the recipe.
    """

    enter: Captures
    exit: Captures
    root: bool = False
    parameters: Sequence[Parameter] = ()
    moved: bool = False
    keeps_registers: bool = False
    returns: Sequence[int] | None = None
    inside: Inside | None = None

    @cached_property
    def needed(self) -> frozenset[str]:
        """The arguments that captures at the return start from."""
        return frozenset(starts(self.exit) - {RETURN})


@dataclass(frozen=True)
class InStruct:
    """A member of the struct that an argument points to. offset, size: in bytes."""

    argument: str
    offset: int
    size: int


@dataclass(frozen=True)
class Itself:
    """An argument. size: in bytes."""

    argument: str
    size: int


@dataclass(frozen=True)
class Rising:
    """Recorded where `value`, a number, has risen, each `per`, a text, by itself."""

    value: InStruct
    per: InStruct


@dataclass(frozen=True)
class Changing:
    """Recorded where `value`, a number, differs from the last one, each `per` by itself."""

    value: InStruct | Itself
    per: InStruct | Itself | None


@dataclass(frozen=True, eq=False)
class PointSite(FunctionSite):
    """The entry of a function.

    anywhere: recorded outside of recorded calls too. when: what has to hold there. contents: what
    a write contained is noted for it, at a ContentSite. inside: as in the recipe.
    """

    capture: Captures
    anywhere: bool = False
    when: Rising | Changing | None = None
    contents: bool = False
    inside: Inside | None = None


@dataclass(frozen=True, eq=False)
class ContentSite(FunctionSite):
    """Where writes begin, in QEMU: what one contains is compared for the event at its end.

    Offsets, bytes: node of the address of the node in its child; mark in the node; vectors, count
    and size in the data: the address of the pieces, their number, the size of all.
    """

    node: int
    mark: int
    vectors: int
    count: int
    size: int


@dataclass(frozen=True, eq=False)
class ReturnPointSite(FunctionSite):
    """The return of a function. anywhere: as in PointSite. returns: as in SpanSite.

    fails: recorded only where the result is below 0: its size, bytes. over: recorded only where
    the function took longer, ns. None: always recorded. on_main: only calls on the first thread.
    """

    capture: Captures
    anywhere: bool = False
    returns: Sequence[int] | None = None
    fails: int | None = None
    over: int | None = None
    on_main: bool = False

    @property
    def is_conditional(self) -> bool:
        """Whether the return decides what is recorded; then the entry leaves no record."""
        return self.fails is not None or self.over is not None

    @cached_property
    def needed(self) -> frozenset[str]:
        """The arguments that captures at the return start from."""
        return frozenset(starts(self.capture) - {RETURN})


@dataclass(frozen=True, eq=False)
class StaticProbeSite(Site):
    """All places of a static probe.

    semaphores: addresses of the counters that switch it on, where it has any.
    anywhere: as in PointSite.
    """

    provider: str
    name: str
    addresses: Sequence[int]
    semaphores: Sequence[int]
    arguments: ByOperands
    capture: Captures
    anywhere: bool = False


@dataclass(frozen=True, eq=False)
class LineSite(Site):
    """A statement of a function whose lines are traced.

    address: where it begins. source: the name of its file. declared: the line of the function's
    declaration. watch: what may have changed since the last statement.
    """

    address: int
    arguments: ArgumentSource
    source: str
    line: int
    declared: int
    watch: Captures

    @property
    def addresses(self) -> tuple[int, ...]:
        return (self.address,)


AnySite = Union[SpanSite, PointSite, ContentSite, ReturnPointSite, StaticProbeSite, LineSite]


def starts(captures: Captures) -> set[str]:
    """The values of the function that captures start from."""
    return {name for capture in possible(captures) for name in capture.arguments}


def possible(captures: Captures) -> Iterator[Capture]:
    return (capture for capture in captures.values() if isinstance(capture, Capture))


def all_captures(site: AnySite) -> Captures:
    if isinstance(site, SpanSite):
        return {**site.enter, **site.exit}
    if isinstance(site, ContentSite):
        return {}
    return site.watch if isinstance(site, LineSite) else site.capture


@dataclass(frozen=True)
class ResolvedProbe:
    """A probe of a recipe, resolved.

    function: its name in C, or PROVIDER:NAME of a static probe; of alternatives, of the first
    that was found. kind: span or point. level: by what means it was found, or missing.
    offset: of the first site, as the file counts. why: it is missing, or is not known better.
    lacks: the values that cannot be had at this level. taken: the function, where there were
    alternatives. role: what its events mean to readers of a trace (trace/roles.py).
    """

    name: str
    function: str
    kind: str
    module: str
    level: str
    sites: Sequence[AnySite] = ()
    offset: int | None = None
    why: str | None = None
    lacks: Sequence[str] = ()
    taken: str | None = None
    role: str | None = None

    def to_record(self) -> ProbeRecord:
        offset = None if self.offset is None else f"{self.offset:#x}"
        return {
            "name": self.name,
            "kind": self.kind,
            "role": self.role,
            "module": self.module,
            "offset": offset,
            "level": self.level,
            "taken": self.taken,
            "why": self.why,
            "lacks": list(self.lacks),
        }


@dataclass(frozen=True)
class ExportedFunctions:
    """The exported functions of modules, to name the one that an address is in.

    functions: by module: first address, address behind, and name of each, sorted.
    bases: by module: where it is loaded; filled in later where that is not known yet.
    """

    functions: Mapping[str, Sequence[tuple[int, int, str]]] = field(default_factory=dict)
    bases: dict[str, int] = field(default_factory=dict)

    def caller(self, return_address: int) -> str:
        """The function that a call returns to. Raises Unavailable where none is exported there."""
        # A call can be the last instruction of its function.
        call = return_address - 1
        for module, functions in self.functions.items():
            if module in self.bases:
                address = call - self.bases[module]
                at = bisect_right(functions, (address, sys.maxsize, "")) - 1
                if at >= 0 and address < functions[at][1]:
                    return functions[at][2]
        raise Unavailable("it was called by a function that is not exported")


@dataclass(frozen=True)
class Plan:
    """A recipe, resolved. exported: where a capture asks which function called."""

    probes: Sequence[ResolvedProbe]
    exported: ExportedFunctions

    @cached_property
    def sites(self) -> Sequence[AnySite]:
        return [site for probe in self.probes for site in probe.sites]


def joined(daemon: Plan, qemu: Plan) -> Plan:
    """The plan of a daemon and the QEMU of a guest."""
    exported = ExportedFunctions(
        {**daemon.exported.functions, **qemu.exported.functions},
        {**daemon.exported.bases, **qemu.exported.bases},
    )
    return Plan([*daemon.probes, *qemu.probes], exported)
