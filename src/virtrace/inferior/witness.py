"""GDB's debug info, as a witness of the resolver.

Its answers are plain data, except the locations of arguments, which only GDB itself can read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import gdb

from virtrace.binary.source import source_name
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Program
from virtrace.inferior import facts, target
from virtrace.plan.arguments import NO_SUCH_ARGUMENT, Thread
from virtrace.plan.capture import Arguments
from virtrace.plan.infer import Inferred
from virtrace.plan.model import Plan, StaticProbeSite
from virtrace.plan.resolve import require_for_gdb, resolve
from virtrace.plan.witness import KnownBody, KnownFunction, Packs, Statement
from virtrace.recipe.model import Recipe, Span


class FramedThread(Thread, Protocol):
    """A thread that is stopped at a probe. frame: GDB's, which takes long to make."""

    @property
    def frame(self) -> gdb.Frame: ...


@dataclass(frozen=True)
class InDebugInfo:
    """A location that GDB's symbols know. symbols: by the name of the argument or variable."""

    symbols: Mapping[str, gdb.Symbol]

    def reader(self, thread: Thread, caller: object, entered: object) -> Arguments:
        return partial(self._read, cast(FramedThread, thread))

    def _read(self, thread: FramedThread, name: str) -> int:
        if name not in self.symbols:
            raise Unavailable(NO_SUCH_ARGUMENT)
        try:
            value = thread.frame.read_var(self.symbols[name])
        except gdb.error as error:
            raise Unavailable(f"GDB cannot tell: {error}") from error
        return facts.number(value)


class GdbDebugInfo:
    """The debug info that GDB has read of a process's files (plan.witness.Witness)."""

    level = "dwarf"

    def __init__(self, process: Program) -> None:
        self._process = process

    def knows(self, module: str) -> bool:
        return target.has_debug_info(self._process, module)

    def function(self, name: str, module: str) -> KnownFunction:
        """Find a function; a clone of the compiler (.constprop, .isra) is a body like any other."""
        loaded = self._process.module(module)
        assert loaded is not None
        bodies = []
        inlined = set()
        for pc in _breakpoint_addresses(name):
            functions = [block for block in facts.outward(pc) if block.function is not None]
            names = [block.function.name for block in functions if block.function is not None]
            if names[:1] != [name]:
                continue
            if len(functions) == 1:
                if loaded.contains(_entry(functions[0])):
                    bodies.append(_body(functions[0], pc, loaded.base))
            elif names[1] != name:
                # A copy in the function's own body is the part that GCC split off.
                inlined.add(names[1])
        return KnownFunction(bodies, sorted(inlined))


def _breakpoint_addresses(name: str) -> list[int]:
    """Return where GDB would stop in a C function: after the prologue, but not in optimized code.

    There, the arguments can be read. Which of the two it is, only a breakpoint shows.
    """
    assert name.isidentifier()
    try:
        gdb.decode_line(name)
    except gdb.error:
        return []
    return facts.breakpoint_addresses(gdb.Breakpoint(function=name, internal=True))


def _entry(block: gdb.Block) -> int:
    assert block.function is not None
    return int(block.function.value().address)  # type: ignore[arg-type]


def _body(block: gdb.Block, pc: int, base: int) -> KnownBody:
    function = block.function
    assert function is not None
    assert function.type is not None
    symbols = {symbol.name: symbol for symbol in block if symbol.is_argument}
    return KnownBody(
        _entry(block) - base,
        pc - base,
        facts.c_type(function.type.target()),
        {name: facts.c_type(symbol.type) for name, symbol in symbols.items() if symbol.type},
        InDebugInfo(symbols),
        partial(_statements, block, base),
    )


def _statements(block: gdb.Block, base: int) -> Iterator[Statement]:
    function = block.function
    assert function is not None
    own = _statements_of_file(function.symtab.filename)
    for pc in _where_lines_begin(block, own):
        blocks = facts.outward(pc)
        inlined = [block for block in blocks if block.function is not None][:-1]
        file, line = function.symtab.filename, own.get(pc)
        if inlined:
            # At the start of inlined code, a debugger shows the caller's line; the rest is foreign.
            outermost = inlined[-1]
            if _identity(outermost) in map(_identity, facts.outward(pc - 1)):
                continue
            assert outermost.function is not None
            file, line = outermost.function.symtab.filename, outermost.function.line
            blocks = blocks[blocks.index(outermost) + 1 :]
        if line is not None:
            # Variables of inner blocks hide those of outer ones.
            symbols = {
                symbol.name: symbol
                for block in reversed(blocks)
                for symbol in block
                if symbol.is_argument or symbol.is_variable
            }
            types = {name: facts.c_type(one.type) for name, one in symbols.items() if one.type}
            source, variables = source_name(file), InDebugInfo(symbols)
            yield Statement(pc - base, source, line, function.line, types, variables)


def _where_lines_begin(block: gdb.Block, own: Mapping[int, int]) -> list[int]:
    """Return every address in a function at which its line table has a row.

    own: the statements of its file.
    """
    rows = {*_rows_from(block, _entry(block)), *_rows_from(block, block.start)}
    last = max((own[pc] for pc in rows if pc in own), default=0)
    assert block.function is not None
    lines = range(block.function.line, last + 1)
    # A part that was split off is elsewhere, with rows of the same lines.
    for pc, line in own.items():
        if line in lines and pc not in rows:
            rows.update(_rows_from(block, pc))
    return sorted(rows)


def _rows_from(block: gdb.Block, pc: int) -> Iterator[int]:
    while (blocks := facts.outward(pc)) and _identity(blocks[-1]) == _identity(block):
        yield pc
        last = gdb.find_pc_line(pc).last
        if last is None:
            return
        pc = last + 1


def _identity(block: gdb.Block) -> tuple[int, int, str]:
    """Identify a block: blocks of older GDBs cannot be compared."""
    return block.start, block.end, block.function.name if block.function else ""


# Index, line and address.
_ROW = re.compile(r"\d+ +(\d+) +(0x[0-9a-f]+)")


def _statements_of_file(file: str) -> dict[int, int]:
    """Return the line of each statement by address, from the rows of GDB's table that begin one.

    GDB's Python API returns every row, without that distinction.
    """
    statements = {}
    column = 0
    pattern = re.sub(r"([.*^$\[\]\\])", r"\\\1", file)
    for row in gdb.execute(f"maintenance info line-table {pattern}$", to_string=True).split("\n"):
        if row.startswith("INDEX"):
            column = row.index("IS-STMT")
        elif row[column : column + 1] == "Y" and (found := _ROW.match(row)):
            # Of several rows at one address, the last one counts.
            statements[int(found[2], 16)] = int(found[1])
    return statements


def resolved(
    recipe: Recipe, program: Program, packs: Packs, inferred: Mapping[Span, Inferred]
) -> Plan:
    """Resolve a recipe by what GDB has read of the program's files, and by symbol packs.

    Raises TargetError if GDB would set a static probe at other places than the plan's.
    """
    require_for_gdb(recipe)
    plan = resolve(recipe, program, [GdbDebugInfo(program), packs], inferred)
    _require_same_static_probes(program, plan)
    return plan


def _require_same_static_probes(process: Program, plan: Plan) -> None:
    """Raise TargetError if GDB has a static probe at other addresses than the plan.

    GDB itself finds every place of the probe, and raises the semaphore that guards it: it writes
    to addresses that it computed from the module's load address.
    """
    for site in plan.sites:
        module = process.module(site.module)
        if isinstance(site, StaticProbeSite) and module is not None:
            gdbs = _static_probe_addresses(site.provider, site.name)
            ours = [module.base + address for address in site.addresses]
            if sorted(gdbs) != sorted(ours):
                raise TargetError(
                    f"GDB has the probe {site.provider}:{site.name} at {_hexadecimal(gdbs)}, "
                    f"{module.path} at {_hexadecimal(ours)}",
                    "report it, with the output of VIRTRACE_DEBUG=1",
                )


def _static_probe_addresses(provider: str, name: str) -> list[int]:
    words = f"^{re.escape(provider)}$ ^{re.escape(name)}$"
    shown = gdb.execute(f"info probes stap {words}", to_string=True)
    return [int(address, 16) for address in re.findall(r"^stap\s.*?\s(0x[0-9a-f]+)", shown, re.M)]


def _hexadecimal(addresses: Iterable[int]) -> str:
    return ", ".join(f"{address:#x}" for address in addresses) or "no place"
