"""Structs in memory whose layout only the memory itself proves."""

from __future__ import annotations

from collections.abc import Callable

from virtrace.binary.ctype import Struct, matcher
from virtrace.errors import Unavailable
from virtrace.image.memory import Memory

# From an address to the next one on the way to a value; raises Unavailable.
ReadStep = Callable[[Memory, int], int]


def largest(struct: Struct) -> int:
    """The size of its largest layout, bytes."""
    return max(layout.size for layout in (struct, *struct.alternatives))


def not_null(_: Memory, address: int) -> int:
    if address == 0:
        raise Unavailable("NULL pointer")
    return address


def step_to_member(struct: Struct, member: str | None) -> ReadStep:
    """The step to a member, or to the struct itself, by the only layout that the memory fits."""
    matching, size = matcher(struct), largest(struct)

    def step(memory: Memory, address: int) -> int:
        layouts = matching(memory.read(address, size))
        if len(layouts) != 1:
            raise Unavailable(
                f"{len(layouts)} of {1 + len(struct.alternatives)} known layouts of "
                f"{struct.name} fit the memory there"
            )
        field = layouts[0].member(member) if member else None
        return address + (field.offset if field else 0)

    return step
