"""What GDB knows of values, types and code, as plain data; ``gdb.error`` as our own."""

from __future__ import annotations

import re

import gdb

from virtrace.binary import ctype as c
from virtrace.errors import Unavailable
from virtrace.plan.arguments import WORD


def register(frame: gdb.Frame, name: str) -> int:
    return int(frame.read_register(name)) & WORD


def number(value: gdb.Value) -> int:
    """An integer, pointer or boolean in a register or in memory, as 64 bits."""
    try:
        if value.is_optimized_out:
            raise Unavailable("optimized out")
        return int(value) & WORD
    except gdb.MemoryError as error:
        raise Unavailable(str(error)) from error
    except gdb.error as error:
        raise Unavailable(f"GDB cannot tell: {error}") from error


_INTEGERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_ENUM)


def c_type(gdb_type: gdb.Type) -> c.CType:
    """The type as plain data. What a pointer points to is looked up when it is asked for."""
    stripped = gdb_type.strip_typedefs()
    code = stripped.code
    if code == gdb.TYPE_CODE_PTR:
        target = stripped.target()
        # Not of other types of a byte: those are numbers, in no string's order.
        is_char = target.strip_typedefs().unqualified().name == "char"
        return c.Pointer(lambda: c_type(target), string=is_char, size=stripped.sizeof)
    if code == gdb.TYPE_CODE_BOOL:
        return c.Boolean(stripped.sizeof)
    if code in _INTEGERS:
        return c.Integer(stripped.sizeof, _is_signed(stripped))
    if code == gdb.TYPE_CODE_ARRAY:
        low, high = stripped.range()
        assert low is not None
        assert high is not None
        return c.Array(c_type(stripped.target()), high - low + 1)
    if code == gdb.TYPE_CODE_STRUCT and stripped.fields():
        return _struct(stripped)
    return c.Opaque(str(stripped), stripped.sizeof)


def _is_signed(scalar: gdb.Type) -> bool:
    # Type.is_signed came with GDB 12.
    return int(gdb.Value(-1).cast(scalar)) < 0


def _struct(struct: gdb.Type) -> c.Struct:
    fields = []
    for field in struct.fields():
        assert field.bitpos is not None
        assert field.type is not None
        kind = c.Opaque("bit fields") if field.bitsize else c_type(field.type)
        fields.append(c.Field(field.name or "", field.bitpos // 8, kind))
    return c.Struct(struct.name or struct.tag or "struct", struct.sizeof, tuple(fields))


def outward(pc: int) -> list[gdb.Block]:
    """The blocks around an address, from the innermost to that of its function."""
    return enclosing(gdb.block_for_pc(pc))


def enclosing(block: gdb.Block | None) -> list[gdb.Block]:
    """A block and those around it, to that of its function."""
    blocks = []
    while block is not None and not block.is_static and not block.is_global:
        blocks.append(block)
        block = block.superblock
    return blocks


def location_addresses(location: str) -> list[int]:
    """Where a breakpoint at a location, as `break` takes it, stops; none where GDB finds none."""
    try:
        return breakpoint_addresses(gdb.Breakpoint(location, internal=True))
    except gdb.error:
        return []


def breakpoint_addresses(probe: gdb.Breakpoint) -> list[int]:
    """Where a breakpoint stops; it is deleted."""
    try:
        if hasattr(probe, "locations"):
            return [location.address for location in probe.locations]
        # Before GDB 13 only its text has them, and some twice: the breakpoint's, its locations'.
        shown = gdb.execute(f"maintenance info breakpoints {probe.number}", to_string=True)
        addresses = re.findall(r"\b0x[0-9a-f]{8,}\b", shown)
        return [int(address, 16) for address in dict.fromkeys(addresses)]
    finally:
        probe.delete()
