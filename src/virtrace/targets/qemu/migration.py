"""What QEMU counts of a migration, without debug info: where its variables are.

Each number is where the code by which QEMU answers query-migrate reads it, beside its name in QMP;
the pages that are left, where the exported function reads them that reports them. What the code
does not show in exactly that way is unavailable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from virtrace.binary.ctype import CType, Field, Integer, Opaque, Struct
from virtrace.errors import TargetError, Unavailable
from virtrace.image.model import Module, Program
from virtrace.targets.qemu.blocks import MODULE, VISITS, field_of, function, number
from virtrace.targets.qemu.jobs import Jobs

STATE, COUNTERS = "RAMState", "MigrationCounters"
_VARIABLES = ("ram_state", "migration_counters")
_WORD = 8
# Names in QMP (MigrationStats of qapi/migration.json).
_NAMES = ("duplicate", "normal", "dirty-pages-rate", "dirty-sync-count")
_TOTAL_NAME = "total"
_LONGEST_NAME = max(map(len, _NAMES)) + 1
# Bytes of the function that answers.
_WINDOW = 1 << 11
# All of them are in one variable.
_SPAN = 1 << 8
# ram_bytes_remaining(): mov VARIABLE(%rip),%rdx; xor %eax,%eax; test; je; then mov PAGES(%rdx),%rax
# and shl $12,%rax, or (-page mask) and imul PAGES(%rdx),%rax
_REMAINING = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa)?\x48\x8b\x15(?P<at>.{4})\x31\xc0\x48\x85\xd2\x74."
    rb"(?:\x48\x8b\x82(?P<loaded>.{4})\x48\xc1\xe0\x0c"
    rb"|\x8b\x05.{4}\xf7\xd8\x48\x98\x48\x0f\xaf\x82(?P<multiplied>.{4}))",
    re.S,
)
# The part of the answer about RAM: call ram_bytes_total; mov PART(ANSWER),RAM; mov %rax,FIELD(RAM)
# mov VARIABLE(%rip),REGISTER; mov REGISTER,FIELD(RAM); and before or between, which part of the
# answer it is: mov PART(ANSWER),RAM
_TOTAL = re.compile(
    rb"\xe8(?P<at>.{4})(?=\x48\x8b[\x40-\x7f](?P<part>.).{0,8}?\x48\x89[\x40-\x7f](?P<short>.))",
    re.S,
)
_PART = rb"\x48\x8b[\x40-\x7f](?P<%b>.)"
_ANSWERS = re.compile(
    rb"(?:%b)?" % (_PART % b"before")
    + rb"(?P<load>[\x48\x4c]\x8b[\x05\x0d\x15\x1d\x25\x2d\x35\x3d])(?P<at>.{4})"
    + rb"(?:%b)?" % (_PART % b"between")
    + rb"(?P<store>[\x48\x4c]\x89)(?:(?P<by_one>[\x40-\x7f])(?P<short>.)"
    rb"|(?P<by_four>[\x80-\xbf])(?P<long>.{4}))",
    re.S,
)


@dataclass(frozen=True)
class RamLayout:
    """state: of the variable that points to it, an address of the file. pages: those left, in it.

    counters: by name, the addresses in the file of what QEMU counts.
    """

    state: int
    pages: int
    counters: Mapping[str, int]

    @property
    def first(self) -> int:
        return min(self.counters.values())


class Insides(Jobs):
    """What is known of a QEMU (Knowledge of targets.target)."""

    def struct(self, program: Program, name: str) -> CType:
        if name not in (STATE, COUNTERS):
            return super().struct(program, name)
        module = program.module(MODULE)
        if module is None:
            return Opaque(name)
        try:
            layout = ram_layout(module)
        except Unavailable:
            return Opaque(name)
        word = Integer(_WORD)
        if name == STATE:
            pages = (Field("migration_dirty_pages", layout.pages, word),)
            return Struct(name, layout.pages + _WORD, pages)
        fields = [
            Field(counter.replace("-", "_"), address - layout.first, word)
            for counter, address in layout.counters.items()
        ]
        return Struct(name, max(field.offset for field in fields) + _WORD, fields)

    def variable(self, program: Program, name: str) -> int:
        module = program.module(MODULE)
        if module is None or name not in _VARIABLES:
            raise Unavailable(f"where QEMU has a variable {name} is not known")
        layout = ram_layout(module)
        return layout.state if name == _VARIABLES[0] else layout.first


@cache
def ram_layout(module: Module) -> RamLayout:
    """Read it from the code. Raises: Unavailable."""
    try:
        return _layout(module)
    except TargetError as error:
        raise Unavailable(f"QEMU's migration is not understood: {error.what}") from error


def _layout(module: Module) -> RamLayout:
    at, code = function(module, "ram_bytes_remaining")
    remaining = _REMAINING.match(code)
    if remaining is None:
        raise Unavailable("the code of this build does not show where it counts the pages left")
    loaded = at + remaining.end("at") + number(remaining["at"])
    return RamLayout(
        loaded,
        number(remaining["loaded"] or remaining["multiplied"]),
        _counters(module),
    )


def _counters(module: Module) -> Mapping[str, int]:
    """Where each number is that query-migrate reports, by its name."""
    try:
        names = _reported(module, "visit_type_MigrationRAMStats_members")
    except Unavailable:
        # Before QEMU 8.1.
        names = _reported(module, "visit_type_MigrationStats_members")
    total, _ = function(module, "ram_bytes_total")
    found: dict[str, set[int]] = {name: set() for name in _NAMES}
    at, _ = function(module, "qmp_query_migrate")
    answering = {*module.elf.called_by(at, "ram_bytes_total")}
    for start in answering.intersection(module.elf.called_by(at, "ram_bytes_remaining")):
        code = module.elf.content(start, _WINDOW) or b""
        parts = {
            one["part"]
            for one in _TOTAL.finditer(code)
            if start + one.end("at") + number(one["at"]) == total
            and names.get(one["short"][0]) == _TOTAL_NAME
        }
        for answer in _ANSWERS.finditer(code):
            name = names.get(field_of(answer))
            stores = answer["store"] + (answer["by_one"] or answer["by_four"])
            is_ram = not parts.isdisjoint((answer["before"], answer["between"]))
            if name in found and is_ram and _register(answer["load"]) == _register(stores):
                found[name].add(start + answer.end("at") + number(answer["at"]))
    where = {name: addresses.pop() for name, addresses in found.items() if len(addresses) == 1}
    if len(where) != len(_NAMES) or max(where.values()) - min(where.values()) > _SPAN:
        raise Unavailable("the code of this build does not show where QEMU counts a migration")
    return where


def _reported(module: Module, visitor: str) -> Mapping[int, str]:
    """The names of the members in QMP, by their offsets in the answer. Raises: Unavailable."""
    at, code = function(module, visitor)
    found = {}
    for visit in VISITS.finditer(code):
        text = module.elf.content(at + visit.end() + number(visit["name"]), _LONGEST_NAME) or b""
        name = text.partition(b"\0")[0].decode("ascii", "replace")
        if name in (*_NAMES, _TOTAL_NAME):
            found[field_of(visit)] = name
    return found


def _register(instruction: bytes) -> int:
    """The register that a `mov` with a 64-bit operand loads or stores. instruction: three bytes."""
    prefix, _, operands = instruction
    return (prefix >> 2 & 1) << 3 | operands >> 3 & 7
