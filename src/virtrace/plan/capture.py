"""Captures, compiled once: from an argument's value to the plain value that a trace keeps.

Types are settled when a capture is compiled; at a breakpoint it only reads memory: one
read for a struct, one for each pointer on the way. This module does not need gdb.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from virtrace.binary import layouts
from virtrace.binary.ctype import (
    Array,
    Code,
    CType,
    Integer,
    Opaque,
    Pointer,
    Struct,
    decoder,
    integer,
)
from virtrace.errors import Unavailable
from virtrace.image.memory import Memory, read_string
from virtrace.image.structs import ReadStep, largest, not_null, step_to_member
from virtrace.plan.walk import ToTarget, Way, ways
from virtrace.recipe.path import (
    CALLER,
    COUNTED,
    Backtrace,
    Caller,
    Elements,
    Format,
    Path,
    Records,
    Stack,
)
from virtrace.targets.libvirt.forms import domain_stats, typed_parameters
from virtrace.trace.format import Json, text_value

# Bytes of the registers that arguments and results come in.
REGISTER = 8
_NO_TYPE = Opaque("no value")
# Of an array of structs, what the programs of the kernel have room for.
_MOST_ELEMENTS, _ARRAY_BYTES = 64, 2048
_CONVERSION = re.compile(rb"%(?:%|(?:\d+\$)?[-+ #0'*.\dhlLqjzt]*[A-Za-z])")


# The value of an argument, or of RETURN, by name; raises Unavailable.
Arguments = Callable[[str], int]


# From the value behind the last step to the value of the capture.
End = Callable[[Memory, Arguments, int], Json]


@dataclass(frozen=True)
class PendingBacktrace:
    """A backtrace that is to be taken as soon as no thread runs.

    tid: the thread's id, as the process itself counts. reread: reads that id once more.
    """

    tid: int
    reread: Callable[[], Json]


@dataclass(frozen=True)
class PendingStack:
    """The frames of the thread that is here, which the engine has a copy of the stack for."""


class Capture:
    """A capture over known types: ``run`` gives its plain value, or raises Unavailable.

    path: as the recipe has it. types: of the arguments, of RETURN and CALLER, by name.
    ways: of the path's chains. ctype: of the value.

    Raises Unavailable where the types do not allow the path.
    """

    def __init__(self, path: Path, types: Mapping[str, CType]) -> None:
        self.path = path
        self.types = types
        self.arguments = path.arguments
        self.ways = ways(path, types)
        self.ctype = self.ways[0].ctype if self.ways else types.get(CALLER, _NO_TYPE)
        for way in self.ways:
            _require_readable(path.text, way)
        self._steps = _steps(self.ways[0]) if self.ways else []
        self._end = self._ending()

    def run(self, memory: Memory, arguments: Arguments) -> Json:
        if isinstance(self.path.form, Stack):
            return PendingStack()
        value = arguments(self.arguments[0])
        for step in self._steps:
            value = step(memory, value)
        return self._end(memory, arguments, value)

    def _ending(self) -> End:
        form, ctype = self.path.form, self.ctype
        if isinstance(form, Stack):
            return lambda _, __, value: value
        if isinstance(form, Caller):
            assert isinstance(ctype, Code)
            return lambda _, __, value: ctype.name(value)
        if isinstance(form, Backtrace):
            return self._backtrace()
        if isinstance(form, COUNTED):
            if not isinstance(ctype, Struct if isinstance(form, Elements) else Pointer):
                raise Unavailable(f"{self.path.text}: wants a pointer, and how many there are")
            if not isinstance(self.ways[1].ctype, Integer):
                raise Unavailable(f"{self.path.text}: wants a number, or a pointer to one")
            if isinstance(ctype, Struct):
                return self._counted(partial(_elements, ctype))
            return self._counted(domain_stats if isinstance(form, Records) else typed_parameters)
        if isinstance(ctype, Pointer) and ctype.string:
            if self.ways[0].in_memory:
                self._steps.append(_loading(ctype.size))
            return self._filled if isinstance(form, Format) else self._string
        return _decoding(self.ways[0], self._steps)

    def _backtrace(self) -> End:
        if not isinstance(self.ctype, Integer):
            raise Unavailable(f"{self.path.text}: wants a number, the id of a thread")
        steps, read = [*self._steps], _decoding(self.ways[0], self._steps)
        self._steps = []

        def tid(memory: Memory, arguments: Arguments, value: int) -> Json:
            for step in steps:
                value = step(memory, value)
            return read(memory, arguments, value)

        return lambda memory, arguments, value: _pending(partial(tid, memory, arguments, value))

    def _counted(self, read: Callable[[Memory, int, int], Json]) -> End:
        if self.ways[0].in_memory and isinstance(self.ctype, Pointer):
            self._steps.append(_loading(self.ctype.size))
        counting, steps = self.ways[1], _steps(self.ways[1])
        decode = _decoding(counting, steps)

        def end(memory: Memory, arguments: Arguments, array: int) -> Json:
            value = arguments(counting.start)
            for step in steps:
                value = step(memory, value)
            count = decode(memory, arguments, value)
            assert isinstance(count, int)
            return read(memory, array, count)

        return end

    def _string(self, memory: Memory, arguments: Arguments, address: int) -> Json:
        return text_value(read_string(memory, address))

    def _filled(self, memory: Memory, arguments: Arguments, address: int) -> Json:
        template = read_string(memory, address)
        return _filled(template, memory, arguments(self.arguments[1]))


def most_elements(struct: Struct) -> int:
    """Return how many structs of an array are read at most."""
    return max(1, min(_MOST_ELEMENTS, _ARRAY_BYTES // max(struct.size, 1)))


def _elements(struct: Struct, memory: Memory, address: int, count: int) -> Json:
    if not 0 <= count <= most_elements(struct):
        raise Unavailable(f"{count} elements are not read, at most {most_elements(struct)}")
    value_of = decoder(struct)
    at = range(address, address + count * struct.size, struct.size)
    return [value_of(memory.read(each, struct.size)) for each in at]


def _require_readable(text: str, way: Way) -> None:
    ctype = way.ctype
    if isinstance(ctype, Opaque):
        raise Unavailable(f"{text}: the layout of {ctype.name} is not known")
    is_wide = ctype.size > REGISTER or isinstance(ctype, (Struct, Array))
    if is_wide and not way.in_memory:
        raise Unavailable(f"{text}: passed by value, which is not decoded")


def _steps(way: Way) -> list[ReadStep]:
    steps: list[ReadStep] = []
    for move in way.moves:
        if isinstance(move, ToTarget):
            if move.size:
                steps.append(_loading(move.size))
            steps.append(not_null)
        elif move.struct.checks:
            steps.append(step_to_member(move.struct, move.field.name))
        else:
            steps.append(_adding(move.field.offset))
    return steps


def _loading(size: int) -> ReadStep:
    return lambda memory, address: integer(memory.read(address, size))


def _adding(offset: int) -> ReadStep:
    return lambda _, address: address + offset


def _decoding(way: Way, steps: list[ReadStep]) -> End:
    """The end of a way that reads its value as it is. steps: a check may be added to them."""
    ctype = way.ctype
    size, value_of = ctype.size, decoder(ctype)
    if not way.in_memory:
        mask = (1 << 64) - 1
        return lambda _, __, value: value_of((value & mask).to_bytes(REGISTER, "little"))
    if isinstance(ctype, Struct) and ctype.qmp:
        most = largest(ctype)
        return lambda memory, _, address: Unconfirmed(ctype, memory.read(address, most))
    if isinstance(ctype, Struct) and ctype.checks:
        steps.append(step_to_member(ctype, None))
    return lambda memory, _, address: value_of(memory.read(address, size))


@dataclass(frozen=True)
class Unconfirmed:
    """A struct as it was read, of which QEMU's own answers are to say which layout it has."""

    struct: Struct
    raw: bytes

    def __reduce__(
        self,
    ) -> tuple[Callable[..., Unconfirmed], tuple[pathlib.Path, bytes]]:
        # Only shipped layouts want to be confirmed.
        assert self.struct.file is not None
        return _unconfirmed, (self.struct.file, self.raw)


def _unconfirmed(file: pathlib.Path, raw: bytes) -> Unconfirmed:
    struct = layouts.struct_in_file(file)
    assert isinstance(struct, Struct)
    return Unconfirmed(struct, raw)


def _pending(read: Callable[[], Json]) -> PendingBacktrace:
    tid = read()
    if not tid:
        raise Unavailable("no thread holds it (owner is 0)")
    return PendingBacktrace(tid, read)


def _filled(template: bytes, memory: Memory, filler: int) -> Json:
    """A printf template, filled in. libvirt's errors have one ``%s``, or nothing to fill in."""
    conversions = _conversions(template)
    if len(conversions) > 1 or not set(conversions) <= {b"%s", b"%1$s"}:
        shown = template.decode("utf-8", "replace")
        raise Unavailable(f"the message {shown!r} has more to fill in than one %s")
    string = read_string(memory, filler) if conversions else b""
    # libvirt 7.0 asks for the sentence of a system error before it has filled in the detail.
    if _conversions(string):
        shown = string.decode("utf-8", "replace")
        raise Unavailable(f"what it is filled in with may be a template itself: {shown!r}")
    return text_value(
        _CONVERSION.sub(lambda found: b"%" if found[0] == b"%%" else string, template)
    )


def _conversions(template: bytes) -> list[bytes]:
    return [found for found in _CONVERSION.findall(template) if found != b"%%"]
