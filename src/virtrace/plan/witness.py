"""Who knows where functions and their arguments are: debug info and symbol packs.

Debug info is read without GDB in plan.debug_info, and by GDB in inferior.witness. Exported
symbols and static probes come from the file itself, inferred functions from plan.infer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from virtrace.binary import abi, pack
from virtrace.binary.abi import Abi
from virtrace.binary.ctype import CType
from virtrace.binary.pack import Body, Pack, StatementStart
from virtrace.image.model import Program
from virtrace.plan.arguments import ArgumentSource, ByPlaces
from virtrace.recipe.model import Recipe


@dataclass(frozen=True)
class Statement:
    """A statement of a function, as a debugger walks through it with `next`.

    address: where it begins, as the file counts. source: the name of its file. declared: the line
    of the function's declaration. types, arguments: of the variables that are known there.
    """

    address: int
    source: str
    line: int
    declared: int
    types: Mapping[str, CType]
    arguments: ArgumentSource


@dataclass(frozen=True)
class KnownBody:
    """A compiled body of a function.

    entry: its first instruction, as the file counts. address: where its arguments can be read: at
    the entry in optimized code, behind the prologue in other code. types: of the arguments, in the
    order of the declaration. statements: without those of functions that were inlined into it.
    """

    entry: int
    address: int
    returns: CType
    types: Mapping[str, CType]
    arguments: ArgumentSource
    statements: Callable[[], Iterable[Statement]]


@dataclass(frozen=True)
class KnownFunction:
    """All bodies of a function, and the functions that it was inlined into."""

    bodies: Sequence[KnownBody] = ()
    inlined_into: Sequence[str] = ()


class Witness(Protocol):
    """A source of facts about functions. level: as a trace names it."""

    level: str

    def knows(self, module: str) -> bool:
        """Whether it has the last word on the functions of a module."""

    def function(self, name: str, module: str) -> KnownFunction: ...


class Packs:
    """Symbol packs, or debug info in that form.

    packs: by the name that a recipe has for the module.
    """

    def __init__(self, level: str, packs: Mapping[str, Pack]) -> None:
        self.level = level
        self.packs = packs

    def knows(self, module: str) -> bool:
        return module in self.packs

    def function(self, name: str, module: str) -> KnownFunction:
        found = self.packs[module].functions.get(name)
        if found is None:
            return KnownFunction()
        convention = abi.convention_of_file(self.packs[module])
        bodies = [_body(body, found.returns, convention) for body in found.bodies]
        return KnownFunction(bodies, found.inlined_into)


def _body(body: Body, returns: CType, convention: Abi) -> KnownBody:
    def statements() -> Iterator[Statement]:
        for line in body.lines:
            yield _statement(body, line, convention)

    types = {name: ctype for name, (ctype, _) in body.arguments.items()}
    places = {name: place for name, (_, place) in body.arguments.items()}
    arguments = ByPlaces(places, convention)
    return KnownBody(body.entry, body.entry, returns, types, arguments, statements)


def _statement(body: Body, line: StatementStart, convention: Abi) -> Statement:
    types = {name: ctype for name, (ctype, _) in line.variables.items()}
    places = {name: place for name, (_, place) in line.variables.items()}
    arguments = ByPlaces(places, convention)
    return Statement(line.address, body.file, line.number, body.declared, types, arguments)


def installed_packs(recipe: Recipe, process: Program, folders: Sequence[Path]) -> Packs:
    """The symbol packs for a recipe's modules: in the folders, or in the user's cache."""
    found = {}
    for name in recipe.modules:
        module = process.module(name)
        if module is not None and not module.elf.has_debug_info:
            installed = pack.find_pack(module.elf, folders)
            if installed is not None:
                found[name] = installed
    return Packs("pack", found)
