"""Instructions that read a process's memory into a record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Union

from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.assembler import (
    FP,
    R0,
    R1,
    R2,
    R3,
    R4,
    R6,
    R7,
    R9,
    Assembler,
    Register,
    Symbol,
)
from virtrace.engines.uprobes.layout import (
    BLOCKS,
    CONDITION,
    CONDITION_KEY,
    CONTENT,
    NOT_REACHED,
    NTH,
    PARTS,
    TID,
    WORD,
    Layout,
)

# BPF_FUNC_* of <linux/bpf.h>.
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 1, 2, 3
READ_USER, READ_USER_STRING, BOOT_NS, _RESERVE, _SUBMIT = 112, 114, 125, 131, 132
COPY_FROM_USER = 148
# The reader looks by itself every few milliseconds: to wake it up at each record costs more than
# to write one.
_NO_WAKEUP, _FORCE_WAKEUP = 1, 2

RING = Symbol("ring", is_map=True)

_MAX_BLOCK = 1 << 13
PAGE = 1 << 12


# The frame of a program: offsets from its end.
TID_SLOT, OWN_TID_SLOT, NTH_SLOT, KEY_SLOT = -8, -16, -24, -40
LENGTH_SLOT, _ROUND_SLOT, SCRATCH_SLOT = -48, -56, -64
KEPT_SLOT = -64 - 8 * WORD
# Of a condition: its key (number of the site, text), and what is kept for it.
CONDITION_KEY_SLOT = KEPT_SLOT - CONDITION_KEY
CONDITION_SLOT = CONDITION_KEY_SLOT - CONDITION

# struct pt_regs (arch/x86/include/asm/ptrace.h) begins as what a tracer is given.
PT_REGS = {name: WORD * index for index, name in enumerate(ABI.user_registers)}


@dataclass(frozen=True)
class Loaded:
    """A number that stands in a record. base: the register with the record's address."""

    offset: int
    size: int = WORD
    base: Register = R7


@dataclass(frozen=True)
class InContext:
    """A register of the thread that hit the probe."""

    name: str


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: int


@dataclass(frozen=True)
class Now:
    """The time of CLOCK_BOOTTIME, ns."""


@dataclass(frozen=True)
class Plus:
    """Another value and a number of bytes."""

    value: Value
    offset: int


@dataclass(frozen=True)
class Aligned:
    """Another value, rounded down. to: a power of two."""

    value: Value
    to: int


Value = Union[Loaded, InContext, Number, Now, Plus, Aligned]


class Reads:
    """Writes the instructions of one program; R6 has its context, R7 the probe's record.

    layout: of the probe's record, which grows with all that is read. sleepable: a page that is
    not in memory may be waited for.
    """

    def __init__(self, layout: Layout, *, sleepable: bool) -> None:
        self.code = Assembler()
        self.layout = layout
        self._sleepable = sleepable
        # The record that blocks and texts go to: of the probe, or a part.
        self.base, self.into_layout = R7, layout

    @property
    def retries(self) -> bool:
        """Whether a page that is not in memory is waited for: not in the rounds of an array."""
        return self._sleepable and self.base is R7

    # --- Values

    def into(self, register: Register, value: Value) -> None:
        """Load a value."""
        code = self.code
        if isinstance(value, Loaded):
            code.load(register, value.base, value.offset, value.size)
        elif isinstance(value, InContext):
            code.load(register, R6, PT_REGS[value.name])
        elif isinstance(value, Number):
            code.do(register, "=", value.value)
        elif isinstance(value, Now):
            code.call(BOOT_NS)
            code.do(register, "=", R0)
        elif isinstance(value, Aligned):
            self.into(register, value.value)
            code.do(register, "&=", -value.to)
        else:
            self.into(register, value.value)
            if value.offset:
                code.do(register, "+=", value.offset)

    @contextmanager
    def unless_zero(self, value: Value) -> Iterator[None]:
        """The instructions made inside run where the value is not 0."""
        label = self.code.new_label("zero")
        self.into(R1, value)
        self.code.jump_if(R1, "==", 0, label)
        yield
        self.code.label(label)

    # --- Maps and the ring

    def reserve(self, size: int) -> None:
        """Have R0 point to a new record, or be 0."""
        code = self.code
        code.load_symbol(R1, RING)
        code.do(R2, "=", size)
        code.do(R3, "=", 0)
        code.call(_RESERVE)

    def submit(self, record: Register, *, wakes: bool = False) -> None:
        """Hand a record over. wakes: its reader at once."""
        self.code.do(R1, "=", record)
        self.code.do(R2, "=", _FORCE_WAKEUP if wakes else _NO_WAKEUP)
        self.code.call(_SUBMIT)

    def look_up(self, map_: Symbol, key: int) -> None:
        """Have R0 point to a map's value, or be 0. key: a slot of the frame."""
        self._with_key(map_, key)
        self.code.call(_MAP_LOOKUP)

    def delete(self, map_: Symbol, key: int) -> None:
        self._with_key(map_, key)
        self.code.call(_MAP_DELETE)

    def update(self, map_: Symbol, key: int, value: int) -> None:
        """key, value: slots of the frame."""
        self._with_key(map_, key)
        self.frame_address(R3, value)
        self.code.do(R4, "=", 0)
        self.code.call(_MAP_UPDATE)

    def frame_address(self, register: Register, slot: int) -> None:
        self.code.do(register, "=", FP)
        self.code.do(register, "+=", slot)

    def _with_key(self, map_: Symbol, key: int) -> None:
        self.code.load_symbol(R1, map_)
        self.frame_address(R2, key)

    # --- Blocks

    def number(self, address: Value, size: int) -> Loaded:
        """Read a number of 1, 2, 4 or 8 bytes."""
        block = self.block(address, size)
        return Loaded(block.offset, size, block.base)

    def block(self, address: Value, size: int) -> Loaded:
        """Read so many bytes at an address; return the word at their beginning."""
        layout, base, code = self.into_layout, self.base, self.code
        # Larger structs are not read by captures; the reader says that it is not there.
        size = min(size, _MAX_BLOCK)
        at = layout.room(2 * WORD + size)
        layout.blocks.append((at, size))
        self.into(R3, address)
        code.store(base, at, R3)
        self.point(R1, base, at + 2 * WORD)
        code.do(R2, "=", size)
        code.call(READ_USER)
        if self.retries:
            done = code.new_label("read")
            code.jump_if(R0, "s>=", 0, done)
            self.point(R1, base, at + 2 * WORD)
            code.do(R2, "=", size)
            code.load(R3, base, at)
            code.call(COPY_FROM_USER)
            code.label(done)
        code.store(base, at + WORD, R0)
        return Loaded(at + 2 * WORD, base=base)

    def to_frame(self, slot: int, address: Value, size: int, unread: str) -> None:
        """Read memory into the frame. size: bytes, or a register. unread: where to go else."""
        code, done = self.code, self.code.new_label("read")
        for helper in (READ_USER, COPY_FROM_USER) if self.retries else (READ_USER,):
            self.into(R3, address)
            self.frame_address(R1, slot)
            code.do(R2, "=", size)
            code.call(helper)
            code.jump_if(R0, "==", 0, done)
        code.jump(unread)
        code.label(done)

    def operand(self, register: str, offset: int | None, size: int) -> str | None:
        """Have R1 hold an argument of a static probe.

        offset: in memory, from the register on; None if it is in the register. size: bytes.
        Returns the label that is jumped to where memory cannot be read; None without memory.
        """
        code = self.code
        code.load(R1, R6, PT_REGS[register])
        if offset is None:
            return None
        unread = code.new_label("unread")
        code.do(R3, "=", R1)
        code.do(R3, "+=", offset)
        code.store(FP, SCRATCH_SLOT, 0)
        self.frame_address(R1, SCRATCH_SLOT)
        code.do(R2, "=", size)
        code.call(READ_USER)
        code.jump_if(R0, "!=", 0, unread)
        code.load(R1, FP, SCRATCH_SLOT)
        return unread

    def point(self, register: Register, base: Register, offset: int) -> None:
        self.code.do(register, "=", base)
        self.code.do(register, "+=", offset)

    # --- Parts

    def begin_part(self, record: Register, kind: int, number: int, room: int = 1) -> None:
        """room: for a text, bytes: a power of two."""
        code = self.code
        code.do(R1, "=", kind | room.bit_length() - 1 << 8 | number << 16)
        code.store(record, 0, R1, 4)
        code.load(R1, FP, TID_SLOT)
        code.store(record, TID, R1, 4)
        code.load(R1, FP, NTH_SLOT)
        code.store(record, NTH, R1)

    def submit_part(self, record: Register, *, wakes: bool = False) -> None:
        """Hand a part over. wakes: as of ``submit``."""
        code = self.code
        self.submit(record, wakes=wakes)
        code.load(R1, R7, PARTS, 4)
        code.do(R1, "+=", 1)
        code.store(R7, PARTS, R1, 4)

    @contextmanager
    def repeated(self, most: int, done: str) -> Iterator[None]:
        """The instructions made inside run so often at most; then it goes on behind ``done``."""
        code = self.code
        again = code.new_label("again")
        code.store(FP, _ROUND_SLOT, 0)
        code.label(again)
        yield
        code.load(R1, FP, _ROUND_SLOT)
        code.do(R1, "+=", 1)
        code.store(FP, _ROUND_SLOT, R1)
        code.jump_if(R1, "<", most, again)
        code.jump(done)

    @contextmanager
    def part(self, lost: str) -> Iterator[None]:
        """What is read inside goes to a part with a layout of its own."""
        layout, outer = Layout(CONTENT), self.code
        number = len(self.layout.parts)
        self.layout.parts.append(layout)
        self.code, self.base, self.into_layout = outer.fragment(), R9, layout
        yield
        body, self.code = self.code, outer
        self.base, self.into_layout = R7, self.layout
        self.reserve(layout.size)
        outer.jump_if(R0, "==", 0, lost)
        outer.do(R9, "=", R0)
        self.begin_part(R9, BLOCKS, number)
        self.mark_not_reached(R9, layout)
        outer.insert(body)
        self.submit_part(R9)

    def mark_not_reached(self, record: Register, layout: Layout) -> None:
        """Note that nothing was read yet."""
        code = self.code
        code.do(R1, "=", NOT_REACHED)
        for offset, _ in (*layout.blocks, *layout.texts):
            code.store(record, offset + WORD, R1)
