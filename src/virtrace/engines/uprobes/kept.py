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
    Number,
    Plus,
    Reads,
    Value,
)

# What it is kept for: by the caller's stack pointer, arguments for the return, and that a function
# was entered at whose `ret` there is a probe; and, by thread, arguments for the functions that this
# one calls, and the registers at the entry for its lines.
FOR_RETURN, FOR_CALLED, FOR_LINES, _ENTERED = range(4)

KEPT = Symbol("kept", is_map=True)

_PURPOSES = 4


class Kept:
    """Writes the instructions that keep values, and that give them back."""

    def __init__(self, reads: Reads, *, at_ret: bool) -> None:
        """at_ret: they are for a `ret`, where the stack pointer is what it was at the entry."""
        self._reads = reads
        self._at_ret = at_ret

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

    def enter(self, site: int) -> None:
        """Note that the function was entered, for its `ret`."""
        self.keep([Number(0)], site, _ENTERED)

    def require_entered(self, site: int) -> None:
        """Go on at the `ret` of a function whose entry was met, once; else go to ``out``."""
        self._key(site, _ENTERED, at_entry=False)
        self._reads.look_up(KEPT, KEY_SLOT)
        self._reads.code.jump_if(R0, "==", 0, "out")
        self._reads.delete(KEPT, KEY_SLOT)

    def require(self, site: int, purpose: int) -> None:
        """Go on where something was kept; else go to ``out``."""
        self._key(site, purpose, at_entry=False)
        self._reads.look_up(KEPT, KEY_SLOT)
        self._reads.code.jump_if(R0, "==", 0, "out")

    def drop(self, site: int, purpose: int) -> None:
        """Let go what was kept."""
        self._key(site, purpose, at_entry=False)
        self._reads.delete(KEPT, KEY_SLOT)

    def given_back(self, count: int, site: int, purpose: int) -> list[Loaded]:
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
        return kept

    def _key(self, site: int, purpose: int, *, at_entry: bool) -> None:
        """Note in the frame under what key values are kept."""
        code, reads = self._reads.code, self._reads
        if purpose in (FOR_RETURN, _ENTERED):
            # The stack pointer after the return; no two frames have the same.
            has_address = at_entry or self._at_ret
            reads.into(R1, Plus(InContext("rsp"), WORD if has_address else 0))
        else:
            code.load(R1, FP, TID_SLOT)
        code.store(FP, KEY_SLOT, R1)
        code.store(FP, KEY_SLOT + WORD, site * _PURPOSES + purpose)
