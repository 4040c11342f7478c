"""Values that a program keeps for a later one of the same thread."""

from __future__ import annotations

from collections.abc import Sequence

from virtrace.engines.uprobes.assembler import FP, R0, R1, R7, Symbol
from virtrace.engines.uprobes.layout import MOST_KEPT, WORD
from virtrace.engines.uprobes.reads import (
    KEPT_SLOT,
    KEY_SLOT,
    TID_SLOT,
    InContext,
    Loaded,
    Plus,
    Reads,
    Value,
)

# What it is kept for: arguments for the return, by the caller's stack pointer; and, by thread,
# arguments for the functions that this one calls, and the registers at the entry for its lines.
FOR_RETURN, FOR_CALLED, FOR_LINES = range(3)

KEPT = Symbol("kept", is_map=True)

_PURPOSES = 3


class Kept:
    """Writes the instructions that keep values, and that give them back."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def keep(self, values: Sequence[Value], site: int, purpose: int) -> None:
        """Keep values for a later program of the same thread. site: its index in the plan."""
        if not values:
            return
        code, reads = self._reads.code, self._reads
        self._key(site, purpose, at_entry=True)
        for index in range(MOST_KEPT):
            if index < len(values):
                reads.into(R1, values[index])
                code.store(FP, KEPT_SLOT + WORD * index, R1)
            else:
                code.store(FP, KEPT_SLOT + WORD * index, 0)
        reads.update(KEPT, KEY_SLOT, KEPT_SLOT)

    def given_back(self, count: int, site: int, purpose: int) -> list[Value]:
        """Return values that were kept; they are 0 if none were. What is for a return goes."""
        if not count:
            return []
        code, reads = self._reads.code, self._reads
        kept = [Loaded(reads.layout.room(WORD)) for _ in range(count)]
        self._key(site, purpose, at_entry=False)
        for value in kept:
            code.store(R7, value.offset, 0)
        reads.look_up(KEPT, KEY_SLOT)
        none = code.new_label("none")
        code.jump_if(R0, "==", 0, none)
        for index, value in enumerate(kept):
            code.load(R1, R0, WORD * index)
            code.store(R7, value.offset, R1)
        if purpose == FOR_RETURN:
            reads.delete(KEPT, KEY_SLOT)
        code.label(none)
        return [*kept]

    def _key(self, site: int, purpose: int, *, at_entry: bool) -> None:
        """Note in the frame under what key values are kept."""
        code, reads = self._reads.code, self._reads
        if purpose == FOR_RETURN:
            # The stack pointer after the return; no two frames have the same.
            reads.into(R1, Plus(InContext("rsp"), WORD if at_entry else 0))
        else:
            code.load(R1, FP, TID_SLOT)
        code.store(FP, KEY_SLOT, R1)
        code.store(FP, KEY_SLOT + WORD, site * _PURPOSES + purpose)
