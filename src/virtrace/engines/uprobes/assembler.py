"""An assembler for the kernel's BPF machine: instructions of 8 bytes, labels, and symbols.

Instruction set: Documentation/bpf/standardization/instruction-set.rst of the kernel.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from virtrace.engines.uprobes.linking import halves, linked


class Register(int):
    """A register of the BPF machine, to tell it from a number."""


# R1 to R5 are a helper's arguments, R0 its result; a helper keeps R6 to R9. FP is the frame's end.
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = map(Register, range(11))

_INSTRUCTION = struct.Struct("<BBhi")
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_OPERATIONS = {
    "+=": 0x00, "-=": 0x10, "*=": 0x20, "|=": 0x40, "&=": 0x50, "<<=": 0x60, ">>=": 0x70,
    "=": 0xB0, "s>>=": 0xC0,
}  # fmt: skip
_COMPARISONS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70,
    "<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0,
}  # fmt: skip
_IMMEDIATES = range(-(1 << 31), 1 << 31)
_PSEUDO_MAP_FD = 1

# Displacement of a jump, or the label that it goes to.
_Offset = Union[int, str]


@dataclass(frozen=True)
class Symbol:
    """A value that is known when the program is loaded.

    is_map: the value is the descriptor of a map; the register gets the map's address.
    """

    name: str
    is_map: bool = False


@dataclass(frozen=True)
class Code:
    """Instructions, and where symbols stand in them.

    symbols: the name for each index of an instruction that loads one.
    """

    instructions: bytes
    symbols: Mapping[int, str]

    def link(self, values: Mapping[str, int]) -> bytes:
        """Return the instructions with the values of all symbols."""
        return linked(self.instructions, self.symbols, values)


class Assembler:
    """Collects instructions; ``code`` resolves their labels."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, int, _Offset, int]] = []
        self._labels: dict[str, int] = {}
        self._symbols: dict[int, str] = {}
        self._numbers = itertools.count()

    def fragment(self) -> Assembler:
        """Return an assembler for instructions that will be inserted here."""
        fragment = Assembler()
        fragment._numbers = self._numbers
        return fragment

    def new_label(self, hint: str) -> str:
        return f"{hint}.{next(self._numbers)}"

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        assert name not in self._labels, name
        self._labels[name] = len(self._lines)

    def do(self, register: Register, operation: str, value: int) -> None:
        """Compute in 64 bits: ``do(R1, "+=", 8)``, ``do(R1, "=", R6)``."""
        if isinstance(value, Register):
            self._add(0x0F | _OPERATIONS[operation], register, value)
        elif value in _IMMEDIATES:
            self._add(0x07 | _OPERATIONS[operation], register, immediate=value)
        else:
            assert operation == "=", "only a load takes 64 bits"
            self._wide(register, 0, value)

    def load_symbol(self, register: Register, symbol: Symbol) -> None:
        self._symbols[len(self._lines)] = symbol.name
        self._wide(register, _PSEUDO_MAP_FD if symbol.is_map else 0, 0)

    def load(self, register: Register, base: Register, offset: int, size: int = 8) -> None:
        self._add(0x61 | _SIZES[size], register, base, offset)

    def store(self, base: Register, offset: int, value: int, size: int = 8) -> None:
        """value: a register or a number of 32 bits, which is extended by its sign."""
        if isinstance(value, Register):
            self._add(0x63 | _SIZES[size], base, value, offset)
        else:
            assert value in _IMMEDIATES
            self._add(0x62 | _SIZES[size], base, 0, offset, value)

    def atomic_add(self, base: Register, offset: int, value: Register) -> None:
        self._add(0xDB, base, value, offset)

    def jump(self, label: str) -> None:
        self._add(0x05, offset=label)

    def jump_if(self, register: Register, comparison: str, value: int, label: str) -> None:
        if isinstance(value, Register):
            self._add(0x0D | _COMPARISONS[comparison], register, value, label)
        else:
            self._add(0x05 | _COMPARISONS[comparison], register, 0, label, value)

    def call(self, helper: int) -> None:
        """helper: its number, BPF_FUNC_* of <linux/bpf.h>."""
        self._add(0x85, immediate=helper)

    def exit(self) -> None:
        self._add(0x95)

    def insert(self, fragment: Assembler) -> None:
        """Append a fragment's instructions."""
        start = len(self._lines)
        self._lines += fragment._lines
        self._labels.update({name: start + at for name, at in fragment._labels.items()})
        self._symbols.update({start + at: name for at, name in fragment._symbols.items()})

    def code(self) -> Code:
        found = []
        for index, (operation, target, source, offset, immediate) in enumerate(self._lines):
            if isinstance(offset, str):
                offset = self._labels[offset] - index - 1
            found.append(_INSTRUCTION.pack(operation, target | source << 4, offset, immediate))
        return Code(b"".join(found), dict(self._symbols))

    def _wide(self, register: int, source: int, value: int) -> None:
        low, high = halves(value)
        self._add(0x18, register, source, immediate=low)
        self._add(0, immediate=high)

    def _add(
        self,
        operation: int,
        target: int = 0,
        source: int = 0,
        offset: _Offset = 0,
        immediate: int = 0,
    ) -> None:
        self._lines.append((operation, target, source, offset, immediate))
