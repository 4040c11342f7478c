"""Call frame information: where a function's caller is found, for every instruction of a file.

Facts of DWARF 4, section 6.4, and of the Linux Standard Base Core, 10.6 (.eh_frame and
.eh_frame_hdr). All addresses are virtual addresses of the file. The file may be a stranger's:
everything is bounded, and what is not understood is an error, never a guess.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from virtrace.binary.elf import ElfFile, Section

# Far more than QEMU has, the largest program that is traced.
_MOST_ENTRIES = 1 << 19
# Bytes of the instructions of one entry; registers of one row; remembered rows.
_LONGEST = 1 << 16
_MOST_REGISTERS = 64
_MOST_REMEMBERED = 64
_LONGEST_EXPRESSION = 256

_U32 = struct.Struct("<I")
# By the low four bits of a pointer encoding (LSB Core, 10.5.1).
_FORMATS = {
    form: struct.Struct("<" + letter)
    for form, letter in {0: "Q", 2: "H", 3: "I", 4: "Q", 9: "b", 10: "h", 11: "i", 12: "q"}.items()
}
_ABSOLUTE, _RELATIVE_TO_PC = 0x00, 0x10

# Kinds of rules.
OFFSET = "offset"  # saved at CFA + offset
VALUE_OFFSET = "value offset"  # is CFA + offset
REGISTER = "register"  # is in register `register`; as the CFA's rule, that + offset
EXPRESSION = "expression"  # saved at the address that the expression computes
VALUE_EXPRESSION = "value expression"  # is what the expression computes
UNDEFINED = "undefined"  # cannot be known; of the return address: there is no caller
SAME = "same"  # was not changed


class Rule(NamedTuple):
    """The rule for finding one register of the caller, or the CFA."""

    kind: str
    register: int = 0
    offset: int = 0
    expression: bytes = b""


class Row(NamedTuple):
    """How the caller's registers are found at an instruction.

    start, end: addresses of the function's code, or of a fragment of it.
    cfa: the canonical frame address: REGISTER or VALUE_EXPRESSION.
    registers: rules by DWARF's register numbers; those without one are not mentioned.
    return_register: the number under which the return address goes.
    is_signal_frame: the caller was interrupted, and its pc is no return address.
    """

    start: int
    end: int
    cfa: Rule
    registers: Mapping[int, Rule]
    return_register: int
    is_signal_frame: bool


class Entry(NamedTuple):
    """The unwind entry (FDE) of a function or fragment: its code, and its instructions."""

    start: int
    end: int
    common: _Common
    instructions: bytes


@dataclass(frozen=True)
class _Common:
    """The part that several entries share (CIE)."""

    code_factor: int
    data_factor: int
    return_register: int
    encoding: int
    has_augmentation: bool
    is_signal_frame: bool
    instructions: bytes


class NotUnderstood(ValueError):
    """Call frame information of a form that is not known here, or that is damaged."""


@contextmanager
def _parsing() -> Iterator[None]:
    try:
        yield
    except (struct.error, IndexError) as error:
        # Sizes and offsets that point out of the section.
        raise NotUnderstood(f"it is damaged ({error})") from error


class UnwindTable:
    """The call frame information of a file that has a sorted table of it (.eh_frame_hdr).

    starts: the first addresses of its entries, sorted.
    Raises: NotUnderstood if it is of another form or damaged, from most methods too.
    """

    def __init__(self, elf: ElfFile) -> None:
        sections = elf.loaded_sections(".eh_frame_hdr", ".eh_frame")
        header, frames = sections.get(".eh_frame_hdr"), sections.get(".eh_frame")
        with _parsing():
            # Version 1, an offset and an unsigned count of four bytes each, and pairs of signed
            # offsets of four bytes from the header's start: what every linker writes.
            if header is None or frames is None or header.data[:4] != b"\x01\x1b\x03\x3b":
                raise NotUnderstood("it has no table of its functions (.eh_frame_hdr)")
            (count,) = _U32.unpack_from(header.data, 8)
            if count > _MOST_ENTRIES:
                raise NotUnderstood("it has more functions than a library")
            offsets = struct.unpack_from(f"<{2 * count}i", header.data, 12)
            self.starts = [header.address + offset for offset in offsets[::2]]
            if not self.starts or self.starts != sorted(self.starts):
                raise NotUnderstood("the table of its functions is empty or not sorted")
            self._at = [header.address + offset - frames.address for offset in offsets[1::2]]
        self._frames: Section = frames
        self._commons: dict[int, _Common] = {}

    def entry(self, address: int) -> Entry | None:
        """The entry that an address belongs to; None where it belongs to none."""
        index = bisect_right(self.starts, address) - 1
        if index < 0:
            return None
        with _parsing():
            entry = self._entry(self._at[index])
            if entry.start != self.starts[index]:
                raise NotUnderstood(f"the table of its functions is wrong at {entry.start:#x}")
        return entry if address < entry.end else None

    def around(self, address: int) -> tuple[int, int] | None:
        """First address, and address behind, of the code around; None where they are not known."""
        with suppress(NotUnderstood):
            entry = self.entry(address)
            return (entry.start, entry.end) if entry is not None else None
        return None

    def row(self, address: int) -> Row | None:
        """The row for an address; None where no entry covers it."""
        entry = self.entry(address)
        if entry is None:
            return None
        row = None
        for location, following in self.rows(entry):
            if location > address:
                break
            row = following
        return row

    def rows(self, entry: Entry) -> Iterator[tuple[int, Row]]:
        """Every row of an entry, after the address at which it begins to hold."""
        with _parsing():
            yield from _rows(entry)

    def _entry(self, at: int) -> Entry:
        block = self._block(at)
        to_common = block.number(_U32)
        if to_common == 0:
            raise NotUnderstood("the table of its functions leads to something else")
        common = self._common(at + 4 - to_common)
        start = block.pointer(common.encoding)
        size = block.pointer(common.encoding & 0x0F)
        if common.has_augmentation:
            block.skip(block.unsigned())
        return Entry(start, start + size, common, block.rest())

    def _common(self, at: int) -> _Common:
        if at not in self._commons:
            self._commons[at] = _common(self._block(at))
        return self._commons[at]

    def _block(self, at: int) -> Reader:
        """The contents of the entry that begins there in the section."""
        data = self._frames.data
        if at < 0:
            raise NotUnderstood("an entry lies outside of its section")
        (size,) = _U32.unpack_from(data, at)
        if not 0 < size <= _LONGEST or at + 4 + size > len(data):
            raise NotUnderstood("an entry has a size that entries do not have")
        return Reader(data[at + 4 : at + 4 + size], self._frames.address + at + 4)


def unwind_table(elf: ElfFile) -> UnwindTable | None:
    """The table of a file; None where it has none that is understood."""
    with suppress(NotUnderstood):
        return UnwindTable(elf)
    return None


class Reader:
    """Reads bytes one value after the other. address: of the first byte in the file."""

    def __init__(self, data: bytes, address: int) -> None:
        self._data = data
        self._address = address
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return int(value)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def unsigned(self) -> int:
        """An unsigned LEB128 of at most 64 bits."""
        return self._leb128()[0]

    def signed(self) -> int:
        """A signed LEB128 of at most 64 bits."""
        value, bits, is_negative = self._leb128()
        return value - (1 << bits) if is_negative else value

    def _leb128(self) -> tuple[int, int, bool]:
        value = 0
        for bits in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << bits
            if byte < 0x80:
                return value, bits + 7, byte >= 0x40
        raise NotUnderstood("a number has no end")

    def block(self) -> bytes:
        """Bytes with their count in front of them: an expression."""
        size = self.unsigned()
        if size > _LONGEST_EXPRESSION:
            raise NotUnderstood("an expression is too long")
        begin = self._at
        self.skip(size)
        return self._data[begin : self._at]

    def text(self) -> bytes:
        begin = self._at
        self._at = self._data.index(b"\0", begin) + 1
        return self._data[begin : self._at - 1]

    def pointer(self, encoding: int) -> int:
        form = _FORMATS.get(encoding & 0x0F)
        if form is None or encoding & 0xF0 not in (_ABSOLUTE, _RELATIVE_TO_PC):
            raise NotUnderstood(f"an address is encoded as {encoding:#x}")
        base = self._address + self._at if encoding & _RELATIVE_TO_PC else 0
        return base + self.number(form)

    def skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise NotUnderstood("an entry ends before one of its parts does")

    def rest(self) -> bytes:
        return self._data[self._at :]


def _common(block: Reader) -> _Common:
    number, version, augmentation = block.number(_U32), block.byte(), block.text()
    has_augmentation = augmentation.startswith(b"z")
    if (
        number
        or version not in (1, 3)
        or augmentation.strip(b"zRPLS")
        or (augmentation and not has_augmentation)
    ):
        raise NotUnderstood("the common part of its entries has another form")
    code_factor, data_factor = block.unsigned(), block.signed()
    return_register = block.byte() if version == 1 else block.unsigned()
    encoding = _ABSOLUTE
    instructions = None
    if has_augmentation:
        size = block.unsigned()
        behind = Reader(block.rest(), 0)
        behind.skip(size)
        instructions = behind.rest()
        for letter in augmentation[1:].decode():
            if letter == "R":
                encoding = block.byte()
            elif letter == "L":
                block.byte()
            elif letter == "P":
                block.pointer(block.byte() & 0x0F)
    return _Common(
        *(code_factor, data_factor, return_register, encoding, has_augmentation),
        is_signal_frame=b"S" in augmentation,
        instructions=block.rest() if instructions is None else instructions,
    )


def _rows(entry: Entry) -> Iterator[tuple[int, Row]]:
    """Execute the call frame instructions of an entry (DWARF 4, 6.4.2)."""
    state = _State(entry.common, entry.start)
    for _ in state.run(entry.common.instructions):
        raise NotUnderstood("the common part of its entries moves on in the code")
    state.initial = dict(state.rules)
    for location in state.run(entry.instructions):
        yield location, state.row(entry)
    yield state.location, state.row(entry)


class _State:
    """The row that call frame instructions have built so far."""

    def __init__(self, common: _Common, location: int) -> None:
        self._common = common
        self.location = location
        self._cfa: Rule | None = None
        self.rules: dict[int, Rule] = {}
        self.initial: dict[int, Rule] = {}
        self._remembered: list[tuple[Rule | None, dict[int, Rule]]] = []

    def row(self, entry: Entry) -> Row:
        if self._cfa is None:
            raise NotUnderstood("a row has no frame")
        return Row(
            *(entry.start, entry.end, self._cfa, dict(self.rules)),
            *(self._common.return_register, self._common.is_signal_frame),
        )

    def run(self, instructions: bytes) -> Iterator[int]:
        """Execute them; yield each location that is left, before it is left."""
        reader = Reader(instructions, 0)
        while not reader.is_at_end:
            opcode = reader.byte()
            high, low = opcode & 0xC0, opcode & 0x3F
            if high == 0x40:  # DW_CFA_advance_loc
                yield self.location
                self.location += low * self._common.code_factor
            elif opcode in _ADVANCES:
                yield self.location
                self.location += reader.number(_ADVANCES[opcode]) * self._common.code_factor
            elif high == 0x80:  # DW_CFA_offset
                self._set(low, Rule(OFFSET, offset=reader.unsigned() * self._common.data_factor))
            elif high == 0xC0:  # DW_CFA_restore
                self._restore(low)
            elif opcode in _RULES:
                register = reader.unsigned()
                self._set(register, _RULES[opcode](reader, self._common.data_factor))
            elif opcode in _CFAS:
                self._cfa = _CFAS[opcode](reader, self._common.data_factor, self._cfa)
            else:
                self._other(opcode, reader)

    def _other(self, opcode: int, reader: Reader) -> None:
        if opcode == 0x06:  # DW_CFA_restore_extended
            self._restore(reader.unsigned())
        elif opcode == 0x0A:  # DW_CFA_remember_state
            if len(self._remembered) == _MOST_REMEMBERED:
                raise NotUnderstood("more rows are remembered than functions need")
            self._remembered.append((self._cfa, dict(self.rules)))
        elif opcode == 0x0B:  # DW_CFA_restore_state
            self._cfa, self.rules = self._remembered.pop()
        elif opcode == 0x2E:  # DW_CFA_GNU_args_size: of no use for a backtrace
            reader.unsigned()
        elif opcode:  # DW_CFA_nop is 0
            raise NotUnderstood(f"call frame instruction {opcode:#x} is not known")

    def _set(self, register: int, rule: Rule) -> None:
        self.rules[register] = rule
        if len(self.rules) > _MOST_REGISTERS:
            raise NotUnderstood("a row has more registers than processors have")

    def _restore(self, register: int) -> None:
        if register in self.initial:
            self.rules[register] = self.initial[register]
        else:
            self.rules.pop(register, None)


def _with_register(cfa: Rule | None) -> Rule:
    """The CFA's rule so far, of which an instruction changes one part."""
    if cfa is None or cfa.kind != REGISTER:
        raise NotUnderstood("the frame is not relative to a register")
    return cfa


# DW_CFA_advance_loc1, 2 and 4.
_ADVANCES = {opcode: struct.Struct("<" + form) for opcode, form in {2: "B", 3: "H", 4: "I"}.items()}
# Instructions for one register, by opcode: from the operands behind its number, and the data
# alignment factor.
_RULES: Mapping[int, Callable[[Reader, int], Rule]] = {
    0x05: lambda reader, factor: Rule(OFFSET, offset=reader.unsigned() * factor),
    0x07: lambda reader, factor: Rule(UNDEFINED),
    0x08: lambda reader, factor: Rule(SAME),
    0x09: lambda reader, factor: Rule(REGISTER, reader.unsigned()),
    0x10: lambda reader, factor: Rule(EXPRESSION, expression=reader.block()),
    0x11: lambda reader, factor: Rule(OFFSET, offset=reader.signed() * factor),
    0x14: lambda reader, factor: Rule(VALUE_OFFSET, offset=reader.unsigned() * factor),
    0x15: lambda reader, factor: Rule(VALUE_OFFSET, offset=reader.signed() * factor),
    0x16: lambda reader, factor: Rule(VALUE_EXPRESSION, expression=reader.block()),
    # DW_CFA_GNU_negative_offset_extended
    0x2F: lambda reader, factor: Rule(OFFSET, offset=-reader.unsigned() * factor),
}
# Instructions for the CFA, by opcode: also from its rule so far.
_CFAS: Mapping[int, Callable[[Reader, int, Rule | None], Rule]] = {
    0x0C: lambda reader, factor, _: Rule(REGISTER, reader.unsigned(), reader.unsigned()),
    0x0D: lambda reader, factor, cfa: _with_register(cfa)._replace(register=reader.unsigned()),
    0x0E: lambda reader, factor, cfa: _with_register(cfa)._replace(offset=reader.unsigned()),
    0x0F: lambda reader, factor, _: Rule(VALUE_EXPRESSION, expression=reader.block()),
    0x12: lambda reader, factor, _: Rule(REGISTER, reader.unsigned(), reader.signed() * factor),
    0x13: lambda reader, factor, cfa: _with_register(cfa)._replace(offset=reader.signed() * factor),
}
