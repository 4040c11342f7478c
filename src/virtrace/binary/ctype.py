"""C types, as far as a trace needs them, and how raw bytes become plain values.

The types come from debug info or from layouts shipped as data. The code that uses them does not
depend on which.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union


@dataclass(frozen=True)
class Integer:
    """Also an enum, a character or a pointer-sized integer. size: in bytes."""

    size: int
    signed: bool = False


@dataclass(frozen=True)
class Boolean:
    """A C `bool`. size: in bytes."""

    size: int = 1


@dataclass(frozen=True)
class Pointer:
    """A pointer. target: returns the type it points to; called only if a capture follows it.

    string: whether it is a ``char *``, which reads as the text that it points to.
    """

    target: Callable[[], CType] | None = None
    string: bool = False
    size: int = 8


@dataclass(frozen=True)
class Code:
    """A code address. name: returns the name of the function at an address; raises if unknown."""

    name: Callable[[int], str]
    size: int = 8


@dataclass(frozen=True)
class Array:
    """A C array. count: number of its elements."""

    element: CType
    count: int

    @property
    def size(self) -> int:
        return self.element.size * self.count


@dataclass(frozen=True)
class Text:
    """Characters in a field of their own, up to a NUL. size: of the field, in bytes."""

    size: int


@dataclass(frozen=True)
class Opaque:
    """A type known by name only, or of a kind that a trace does not decode.

    why: what hinders a capture that starts from a value of it.
    """

    name: str
    size: int = 0
    why: str = ""


@dataclass(frozen=True)
class Field:
    """A member of a struct. offset: in bytes, from the start of the struct."""

    name: str
    offset: int
    type: CType


@dataclass(frozen=True)
class RangeCheck:
    """A check of an integer field: the layout can be right only if low <= value <= high."""

    field: str
    low: int
    high: int


# For each QMP command of a set: by field, the paths of its value in an element of the reply. The
# first path that exists counts, because QEMU omits some members.
QmpSources = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class Struct:
    """A struct, with its layout.

    file: the file that the layout was read from, if any.
    alternatives: other layouts of the same struct, if it is not yet proven which one is right.

    A layout from debug info has neither checks nor alternatives. For a layout from data, each read
    must pass all checks in exactly one of the alternatives. If QEMU reports the same numbers (qmp),
    exactly one alternative must agree with them, for all commands of one set.
    """

    name: str
    size: int
    fields: Sequence[Field]
    checks: Sequence[RangeCheck] = ()
    alternatives: Sequence[Struct] = ()
    qmp: Sequence[QmpSources] = ()
    file: Path | None = None

    def member(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)


@dataclass(frozen=True)
class Variable:
    """What is at an address that is known: a variable of the program. type: its own."""

    type: CType
    size: int = 8


CType = Union[Integer, Boolean, Pointer, Code, Array, Text, Opaque, Struct, Variable]


def integer(raw: bytes, signed: bool = False) -> int:
    return int.from_bytes(raw, "little", signed=signed)


Decode = Callable[[bytes], Any]

# By size and sign: format characters of the module struct.
_INTEGERS = {
    (size, signed): struct.Struct("<" + (code if signed else code.upper())).unpack_from
    for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
    for signed in (False, True)
}


def decoder(ctype: CType, offset: int = 0) -> Decode:
    """Return a function that decodes ``ctype`` at ``offset``, in bytes, of little-endian data.

    Pointers are not followed: they become strings, ``"0x.."``, and ``"0x0"`` for NULL. An array of
    char becomes the text in it.
    """
    end = offset + ctype.size
    if isinstance(ctype, Integer):
        unpack = _INTEGERS.get((ctype.size, ctype.signed))
        if unpack is not None:
            return lambda raw: unpack(raw, offset)[0]
        signed = ctype.signed
        return lambda raw: integer(raw[offset:end], signed)
    if isinstance(ctype, Boolean):
        return lambda raw: any(raw[offset:end])
    if isinstance(ctype, Pointer):
        return lambda raw: f"{integer(raw[offset:end]):#x}"
    if isinstance(ctype, Text):
        return lambda raw: raw[offset:end].partition(b"\0")[0].decode(errors="backslashreplace")
    if isinstance(ctype, Array):
        if ctype.element == _CHAR:
            return lambda raw: _characters(raw[offset:end])
        step = ctype.element.size
        elements = [decoder(ctype.element, offset + i * step) for i in range(ctype.count)]
        return lambda raw: [element(raw) for element in elements]
    if isinstance(ctype, Struct):
        fields = [
            (field.name, decoder(field.type, offset + field.offset)) for field in ctype.fields
        ]
        return lambda raw: {name: field(raw) for name, field in fields}
    assert not isinstance(ctype, Variable)
    why = {"unavailable": f"values of {ctype.name} are not decoded"}
    return lambda raw: dict(why)


_CHAR = Integer(1, True)


def _characters(raw: bytes) -> Any:
    """Return the text in an array of char."""
    try:
        return raw.partition(b"\0")[0].decode("utf-8")
    except UnicodeDecodeError:
        return {"unavailable": "the characters are not UTF-8"}


def decode(ctype: CType, raw: bytes) -> Any:
    """Decode ``ctype`` from ``raw``, which has at least its size."""
    return decoder(ctype)(raw)


def matcher(ctype: Struct) -> Callable[[bytes], list[Struct]]:
    """Return a function that finds the layouts, of this one and its alternatives, that fit data."""
    layouts = [
        (layout, [_holds(layout, check) for check in layout.checks])
        for layout in (ctype, *ctype.alternatives)
    ]

    def fitting(raw: bytes) -> list[Struct]:
        found = []
        for layout, checks in layouts:
            for held in checks:
                if not held(raw):
                    break
            else:
                found.append(layout)
        return found

    return fitting


def _holds(layout: Struct, check: RangeCheck) -> Callable[[bytes], bool]:
    field = layout.member(check.field)
    assert field is not None
    # A pointer as the number that it is, not as the text that a trace has.
    is_pointer = isinstance(field.type, Pointer)
    value = decoder(Integer(field.type.size) if is_pointer else field.type, field.offset)
    low, high = check.low, check.high
    return lambda raw: low <= value(raw) <= high
