"""The records that the programs write, in bytes: what both their maker and their reader know.

All numbers are little-endian, and everything lies at multiples of 8. A record of a probe:

     0  u8   kind: HIT
     2  u16  number of the program
     4  u32  tid, as the kernel counts
     8  u64  number of the event among those of its thread, from 1
    16  u64  CLOCK_BOOTTIME, in ns
    24  u32  number of parts that follow, of the same thread and event
    28  u32  tid, as the process itself counts
    32  u64  known: a bit for each value
    40  u64  stack pointer
    48  u64  instruction pointer
    56  u64  values[]: registers, or arguments of a static probe
        ...  kept[]: u64, what an earlier program of the thread kept for this one
        ...  blocks: u64 address, s64 status (0: read, NOT_REACHED, -errno), bytes
        ...  texts: u64 address, s64 size with its NUL (NOT_REACHED, -errno), bytes

A part holds what has no place in the record of the probe, because its size is not known before:

     0  u8   kind: TEXT, BYTES, PARAMETERS or BLOCKS
     1  u8   TEXT: its room, as a power of two; a text whose size is its room goes on
     2  u16  TEXT: number of the text in the probe's record that it continues, or FREE
             BLOCKS: number of its own layout
     4  u32  tid
     8  u64  number of the event
    16  u64  address (not of BLOCKS)
    24  s64  size, with its NUL, or -errno (not of BLOCKS)
    32  ...  bytes; BLOCKS: blocks and texts, as above
             PARAMETERS: room for an array of virTypedParameter, then for the text of each:
             s64 size with its NUL (0: it is none, -errno), bytes

What a compiled recipe writes ends with a record of kind END: u64 events that were lost, u64
CLOCK_BOOTTIME, both from offset 8 on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

HIT, TEXT, BYTES, PARAMETERS, BLOCKS, END = 1, 2, 3, 4, 5, 6

HIT_HEADER = struct.Struct("<BxHIQQIIQQQ")
PART_HEADER = struct.Struct("<BBHIQQq")
END_RECORD = struct.Struct("<B7xQQ")
BLOCK_HEADER = struct.Struct("<Qq")

# Offsets in a record of a probe.
TID, NTH, TIME, PARTS, OWN_TID, KNOWN, SP, IP = 4, 8, 16, 24, 28, 32, 40, 48
VALUES = HIT_HEADER.size
# Offsets in a part.
ADDRESS, LENGTH, CONTENT = 16, 24, PART_HEADER.size

WORD = 8
# The key of what is kept from one program to another, and words that are kept at a time.
KEPT_KEY, MOST_KEPT = 2 * WORD, 8
# Of a condition: the longest text that it can be `per`; its key, with the number of the site; what
# is kept for each: the highest value, and how often it has risen.
LONGEST_PER = 32
CONDITION_KEY, CONDITION = WORD + LONGEST_PER, 2 * WORD
# Of what a write contains: its node, its offset, its size.
CONTENTS_KEY = 3 * WORD
# struct virTypedParameter of libvirt-common.h: its size, where its type and its value
# are, the type of a text; how many a part has room for, and for how much of a text of each.
PARAMETER, PARAMETER_TYPE, PARAMETER_VALUE, PARAMETER_IS_TEXT = 96, 80, 88, 7
PARAMETERS_OF_PART, PARAMETER_TEXT = 32, 256
PARAMETERS_TEXTS = CONTENT + PARAMETERS_OF_PART * PARAMETER
PARAMETERS_SIZE = PARAMETERS_TEXTS + PARAMETERS_OF_PART * (WORD + PARAMETER_TEXT)
NOT_REACHED = 1 << 32
# A part found no room in the ring.
LOST = -(1 << 20)
# The number of a text that continues none.
FREE = 0xFFFF


@dataclass
class Layout:
    """What is where in a record.

    values: the names of registers, or None for each argument of a static probe.
    blocks, texts: offset and size of each, bytes. The size counts no header.
    parts: of the parts that have a layout of their own.
    backtraces: where the ids of threads are whose backtraces are wanted, and of the block that each
        was read to, None where it was in no memory.
    risen: where a condition notes what the value was, and how often it has risen; None without one.
    began: where the time is at which a call began, if it was kept; None without.
    content: where a number says what a write contained; None without one.
    has_stack: whether blocks have a copy of the thread's stack.
    return_address: of the block with the word at the stack pointer, where backtraces are wanted.
    size: of the record, bytes.
    """

    size: int
    values: list[str | None] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    texts: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Layout] = field(default_factory=list)
    backtraces: list[tuple[int, int | None]] = field(default_factory=list)
    return_address: int | None = None
    risen: int | None = None
    began: int | None = None
    content: int | None = None
    has_stack: bool = False

    def room(self, size: int) -> int:
        """Add so many bytes and return where they are."""
        at = self.size
        self.size += (size + WORD - 1) & ~(WORD - 1)
        return at
