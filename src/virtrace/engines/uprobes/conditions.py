"""Instructions that decide whether an event is recorded at all."""

from __future__ import annotations

from collections.abc import Mapping

from virtrace.engines.uprobes.assembler import FP, R0, R1, R2, R7, R8, R9, Symbol
from virtrace.engines.uprobes.kept import FOR_RETURN, Kept
from virtrace.engines.uprobes.layout import LONGEST_PER, WORD
from virtrace.engines.uprobes.reads import (
    CONDITION_KEY_SLOT,
    CONDITION_SLOT,
    InContext,
    Now,
    Plus,
    Reads,
    Value,
)
from virtrace.plan.model import Changing, InStruct, Itself, Rising

_RESULT = "rax"

RISEN = Symbol("risen", is_map=True)


class Fails:
    """Writes the instructions by which only a return that failed is recorded.

    The program at the entry leaves no record: it keeps the arguments, which is also the proof that
    this return belongs to an entry.
    """

    def __init__(self, reads: Reads, kept: Kept) -> None:
        self._reads = reads
        self._kept = kept

    def decide(self, site: int, size: int) -> None:
        """Go on where the result is below 0; else go to ``out``. size: of the result, bytes."""
        code, unused = self._reads.code, 8 * (WORD - size)
        self._reads.into(R1, InContext(_RESULT))
        if unused:
            # Its sign goes to the place of the sign of 64 bits.
            code.do(R1, "<<=", unused)
        code.jump_if(R1, "s<", 0, "failed")
        self._kept.drop(site, FOR_RETURN)
        code.jump("out")
        code.label("failed")
        self._kept.require(site, FOR_RETURN)


class Over:
    """Writes the instructions by which only a return of a call that took long is recorded.

    The program at the entry leaves no record: it keeps the time, before the arguments.
    """

    def __init__(self, reads: Reads, kept: Kept) -> None:
        self._reads = reads
        self._kept = kept

    def decide(self, site: int, limit: int) -> None:
        """Go on where the call took longer; else go to ``out``. limit: ns."""
        code = self._reads.code
        self._kept.require(site, FOR_RETURN)
        code.load(R8, R0, 0)
        self._reads.into(R1, Now())
        code.do(R1, "-=", R8)
        # The instruction compares with 32 bits, and a limit may have more.
        code.do(R2, "=", limit)
        code.jump_if(R1, ">", R2, "over")
        self._kept.drop(site, FOR_RETURN)
        code.jump("out")
        code.label("over")


class _Compares:
    """Writes the instructions that compare a value with the one before, before a record is made."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def _key(self, site: int) -> None:
        """Begin the key under which a value is kept. site: its index in the plan."""
        code = self._reads.code
        for at in range(0, LONGEST_PER, WORD):
            code.store(FP, CONDITION_KEY_SLOT + WORD + at, 0)
        code.store(FP, CONDITION_KEY_SLOT, site)

    def _read(self, slot: int, place: InStruct, registers: Mapping[str, str]) -> None:
        """Read memory into the frame; an event whose condition is not known counts as lost."""
        size = min(place.size, LONGEST_PER)
        self._reads.to_frame(slot, _address(place, registers), size, "lost")


class Changes(_Compares):
    """The value differs from the one before, or is the first."""

    def decide(self, site: int, when: Changing, registers: Mapping[str, str]) -> None:
        """As of Rises."""
        code, reads = self._reads.code, self._reads
        self._key(site)
        if when.per is not None:
            self._get(CONDITION_KEY_SLOT + WORD, when.per, registers)
        code.store(FP, CONDITION_SLOT, 0)
        code.store(FP, CONDITION_SLOT + WORD, 0)
        self._get(CONDITION_SLOT, when.value, registers)
        reads.look_up(RISEN, CONDITION_KEY_SLOT)
        code.jump_if(R0, "!=", 0, "met")
        reads.update(RISEN, CONDITION_KEY_SLOT, CONDITION_SLOT)
        code.jump("changed")
        code.label("met")
        code.load(R8, R0, 0)
        code.load(R1, FP, CONDITION_SLOT)
        code.jump_if(R1, "==", R8, "out")
        code.store(R0, 0, R1)
        code.label("changed")

    def _get(self, slot: int, place: InStruct | Itself, registers: Mapping[str, str]) -> None:
        """Have a number or a text in the frame, where there are zeroes."""
        if isinstance(place, InStruct):
            self._read(slot, place, registers)
            return
        code, unused = self._reads.code, 8 * (WORD - place.size)
        self._reads.into(R1, InContext(registers[place.argument]))
        if unused:
            code.do(R1, "<<=", unused)
            code.do(R1, ">>=", unused)
        code.store(FP, slot, R1)


class Rises(_Compares):
    """The value is higher than before.

    After the instructions R8 has what the value was before, and R9 how often it has risen.
    """

    def decide(self, site: int, when: Rising, registers: Mapping[str, str]) -> None:
        """Go on where the value has risen; else go to ``out``.

        site: its index in the plan. registers: of the arguments, by name
        """
        code, reads = self._reads.code, self._reads
        self._key(site)
        self._read(CONDITION_KEY_SLOT + WORD, when.per, registers)
        self._read(CONDITION_SLOT, when.value, registers)
        reads.look_up(RISEN, CONDITION_KEY_SLOT)
        code.jump_if(R0, "!=", 0, "met")
        code.do(R8, "=", 0)
        code.do(R9, "=", 1)
        code.store(FP, CONDITION_SLOT + WORD, 1)
        reads.update(RISEN, CONDITION_KEY_SLOT, CONDITION_SLOT)
        code.jump("risen")
        code.label("met")
        code.load(R8, R0, 0)
        code.load(R1, FP, CONDITION_SLOT)
        code.jump_if(R1, "==", R8, "out")
        code.jump_if(R1, ">", R8, "keep")
        # Another thread may have met a later value. If it is lower still, it is that of a new thing
        # with the name of an old one, which began at 0.
        code.do(R9, "=", R0)
        self._read(CONDITION_SLOT, when.value, registers)
        code.do(R0, "=", R9)
        code.load(R1, FP, CONDITION_SLOT)
        code.jump_if(R1, ">=", R8, "out")
        code.do(R8, "=", 0)
        code.label("keep")
        code.store(R0, 0, R1)
        code.load(R9, R0, WORD)
        code.do(R9, "+=", 1)
        code.store(R0, WORD, R9)
        code.label("risen")

    def note(self, when: Rising, registers: Mapping[str, str]) -> None:
        """Record what R8 and R9 have, and what the condition is about. registers: as of decide."""
        code, at = self._reads.code, self._reads.layout.room(2 * WORD)
        self._reads.layout.risen = at
        code.store(R7, at, R8)
        code.store(R7, at + WORD, R9)
        for place in (when.per, when.value):
            self._reads.block(_address(place, registers), place.size)


def _address(place: InStruct, registers: Mapping[str, str]) -> Value:
    return Plus(InContext(registers[place.argument]), place.offset)
