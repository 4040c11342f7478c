"""Captures, compiled once: from an argument's value to the plain value that a trace keeps.

Types are settled when a capture is compiled; at a breakpoint it only reads memory: one
read for a struct, one for each pointer on the way. This module does not need gdb.
"""

from __future__ import annotations

import math
import pathlib
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    matcher,
)
from virtrace.errors import Unavailable
from virtrace.image.memory import PAGE, Memory
from virtrace.recipe.path import Path
from virtrace.targets import LIBVIRT
from virtrace.trace.format import Json, text, unavailable

# Bytes of the registers that arguments and results come in.
REGISTER = 8
# libvirt itself refuses a QMP reply longer than 10 MiB (QEMU_MONITOR_MAX_RESPONSE).
MAX_STRING = 16 << 20
MAX_READ = 1 << 20

# virTypedParameter (include/libvirt/libvirt-common.h), public ABI: a name of 80 bytes, the type,
# and a union of 8 bytes. By the types' numbers: what the union holds.
_TYPED = struct.Struct("<80si4x8s")
_TYPED_KINDS = {1: "i", 2: "I", 3: "q", 4: "Q", 5: "d", 6: "?"}
_TYPED_STRING = 7

# virDomainStatsRecord (include/libvirt/libvirt-domain.h), public ABI: the domain, its typed
# parameters, and how many.
_RECORD = struct.Struct("<QQi4x")
# A host with more domains than this would take longer than a stop may.
_MAX_RECORDS = 1000

_CONVERSION = re.compile(rb"%(?:%|(?:\d+\$)?[-+ #0'*.\dhlLqjzt]*[A-Za-z])")


class Recorded:
    """A memory of which pieces were kept: no more can be read of a page than a text's own bytes."""

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def string(self, address: int) -> bytes:
        """The C string there, without its NUL. Raise Unavailable where it is not known whole."""
        raise NotImplementedError


# The value of an argument, or of RETURN, by name; raises Unavailable.
Arguments = Callable[[str], int]


def read_string(memory: Memory, address: int) -> bytes:
    """The C string at ``address`` without its NUL, in few reads and none past its last page."""
    if address == 0:
        raise Unavailable("NULL pointer")
    if isinstance(memory, Recorded):
        return memory.string(address)
    found = bytearray()
    size = PAGE - address % PAGE
    while len(found) < MAX_STRING:
        try:
            chunk = memory.read(address + len(found), size)
        except Unavailable:
            if size <= PAGE:
                raise
            size = PAGE
            continue
        end = chunk.find(b"\0")
        if end >= 0:
            return bytes(found + chunk[:end])
        found += chunk
        size = min(size * 2, MAX_READ) // PAGE * PAGE or PAGE
    raise Unavailable(f"no end of the string within {MAX_STRING >> 20} MiB")


Step = Callable[[Memory, int], int]
# From what the steps came to, to the value.
End = Callable[[Memory, Arguments, int], Json]


@dataclass(frozen=True)
class Unwalked:
    """A backtrace that is to be taken as soon as no thread runs.

    tid: the thread's id, as the process itself counts. again: reads it once more.
    """

    tid: int
    again: Callable[[], Json]


class Capture:
    """``run`` gives the plain value, or raises Unavailable."""

    def __init__(self, path: Path, types: Mapping[str, CType]) -> None:
        """types: of the arguments, and of RETURN. Unavailable where they do not allow the path."""
        for name in path.arguments:
            if name not in types:
                raise Unavailable(f"the function has no argument {name!r} here")
        self.arguments = path.arguments
        self.path = path
        self.types = types
        self._steps: list[Step] = []
        self._ctype = types[path.name]
        self._count = _count(path.count, types) if path.count else None
        self._thread = Capture(replace(path, backtrace=False), types) if path.backtrace else None
        if self._thread and not isinstance(self._thread._ctype, Integer):
            raise Unavailable(f"{path.text}: wants a number, the id of a thread")
        self._read = _records if path.records else _typed
        # Whether the value at hand is the address of one of type self._ctype.
        self._in_memory = False
        for member in path.members:
            self._to_target(path, member)
            self._to_member(path, member)
        for _ in range(path.stars):
            self._to_target(path, None)
        if self._count is not None and not isinstance(self._ctype, Pointer):
            raise Unavailable(f"{path.text}: wants a pointer, and how many there are")
        if isinstance(self._ctype, Opaque):
            raise Unavailable(f"{path.text}: the layout of {self._ctype.name} is not known")
        wide = self._ctype.size > REGISTER
        if not self._in_memory and (wide or isinstance(self._ctype, (Struct, Array))):
            raise Unavailable(f"{path.text}: passed by value, which is not decoded")
        self._end = self._ending()

    @property
    def ctype(self) -> CType:
        """Of what it gives."""
        return self._ctype

    def _to_target(self, path: Path, member: str | None) -> None:
        if member is not None and self._in_memory and isinstance(self._ctype, Struct):
            return
        if not isinstance(self._ctype, Pointer) or self._ctype.target is None:
            raise Unavailable(f"{path.text}: goes through something that is not a pointer")
        if self._in_memory:
            size = self._ctype.size
            self._steps.append(lambda memory, address: integer(memory.read(address, size)))
        self._steps.append(_not_null)
        self._ctype = self._ctype.target()
        self._in_memory = True

    def _to_member(self, path: Path, member: str) -> None:
        struct = self._ctype
        if isinstance(struct, Opaque):
            raise Unavailable(f"{path.text}: the layout of {struct.name} is not known")
        field = struct.member(member) if isinstance(struct, Struct) else None
        if not isinstance(struct, Struct) or field is None:
            raise Unavailable(f"{path.text}: no member {member!r} there")
        if struct.checks:
            self._steps.append(_proving(struct, member))
        else:
            self._steps.append(lambda _, address: address + field.offset)
        self._ctype = field.type

    def run(self, memory: Memory, arguments: Arguments) -> Json:
        value = arguments(self.arguments[0])
        for step in self._steps:
            value = step(memory, value)
        return self._end(memory, arguments, value)

    def _ending(self) -> End:
        ctype, steps = self._ctype, self._steps
        thread = self._thread
        if thread is not None:
            self._steps = []
            return lambda memory, _, value: _unwalked(partial(thread.run, memory, lambda _: value))
        if isinstance(ctype, Code):
            self._steps = []
            return lambda memory, arguments, value: ctype.name(value)
        if self._count is not None:
            return self._counted(self._count, self._read, ctype.size if self._in_memory else 0)
        size, value_of = ctype.size, decoder(ctype)
        if not self._in_memory:
            if isinstance(ctype, Pointer) and ctype.string:
                return self._string
            mask = (1 << 64) - 1
            return lambda _, __, value: value_of((value & mask).to_bytes(REGISTER, "little"))
        if isinstance(ctype, Pointer) and ctype.string:
            steps.append(lambda memory, address: integer(memory.read(address, size)))
            return self._string
        if isinstance(ctype, Struct) and ctype.qmp:
            most = largest(ctype)
            return lambda memory, _, address: Unconfirmed(ctype, memory.read(address, most))
        if isinstance(ctype, Struct) and ctype.checks:
            steps.append(_proving(ctype, None))
        return lambda memory, _, address: value_of(memory.read(address, size))

    @staticmethod
    def _counted(counter: Capture, read: Callable[[Memory, int, int], Json], size: int) -> End:
        """size: of the pointer in memory; 0 where it is at hand."""

        def end(memory: Memory, arguments: Arguments, value: int) -> Json:
            if size:
                value = integer(memory.read(value, size))
            count = counter.run(memory, arguments)
            assert isinstance(count, int)
            return read(memory, value, count)

        return end

    def _string(self, memory: Memory, arguments: Arguments, address: int) -> Json:
        string = read_string(memory, address)
        if len(self.arguments) > 1:
            return _filled(string, memory, arguments(self.arguments[1]))
        return text(string)


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
    struct = layouts.read(file)
    assert isinstance(struct, Struct)
    return Unconfirmed(struct, raw)


def largest(struct: Struct) -> int:
    return max(layout.size for layout in (struct, *struct.alternatives))


def _not_null(_: Memory, address: int) -> int:
    if address == 0:
        raise Unavailable("NULL pointer")
    return address


def _proving(struct: Struct, member: str | None) -> Step:
    """The step to ``member`` by the one layout that the memory agrees with."""
    matching, size = matcher(struct), largest(struct)

    def step(memory: Memory, address: int) -> int:
        layouts = matching(memory.read(address, size))
        if len(layouts) != 1:
            raise Unavailable(
                f"{len(layouts)} of {1 + len(struct.alternatives)} known layouts of "
                f"{struct.name} fit what is there"
            )
        field = layouts[0].member(member) if member else None
        return address + (field.offset if field else 0)

    return step


def _count(path: Path, types: Mapping[str, CType]) -> Capture:
    """Of a number, or of a pointer to one."""
    to_number = isinstance(types.get(path.name), Pointer) and not path.members
    capture = Capture(replace(path, stars=int(to_number)), types)
    if not isinstance(capture._ctype, Integer):
        raise Unavailable(f"{path.text}: wants a number, or a pointer to one")
    return capture


def _typed(memory: Memory, address: int, count: int) -> Json:
    """An array of virTypedParameter, as an object by their names."""
    if address == 0:
        raise Unavailable("NULL pointer: only how many there are was asked for")
    if not 0 <= count <= MAX_READ // _TYPED.size:
        raise Unavailable(f"{count} typed parameters are not believed")
    found: dict[str, Json] = {}
    for field, kind, value in _TYPED.iter_unpack(memory.read(address, count * _TYPED.size)):
        name, end, _ = field.partition(b"\0")
        if not (end and name.isascii() and name.decode("ascii").isprintable() and name):
            raise Unavailable("what is there is no array of typed parameters")
        found[name.decode("ascii")] = _typed_value(memory, kind, value)
    return found


def _records(memory: Memory, address: int, count: int) -> Json:
    """What ``address`` points to: an array of pointers to records; an object by domain."""
    if not 0 <= count <= _MAX_RECORDS:
        raise Unavailable(f"{count} records of domains are not read")
    array = _not_null(memory, integer(memory.read(_not_null(memory, address), REGISTER)))
    found: dict[str, Json] = {}
    for (record,) in struct.iter_unpack("<Q", memory.read(array, count * REGISTER)):
        raw = memory.read(_not_null(memory, record), _RECORD.size)
        domain, params, nparams = _RECORD.unpack(raw)
        name = _DOMAIN_NAME.run(memory, {"domain": domain}.__getitem__)
        if not isinstance(name, str):
            raise Unavailable("the name of a domain is no text")
        found[name] = _typed(memory, params, nparams) if nparams else {}
    return found


def _typed_value(memory: Memory, kind: int, raw: bytes) -> Json:
    if kind == _TYPED_STRING:
        try:
            return text(read_string(memory, integer(raw)))
        except Unavailable as why:
            return unavailable(str(why))
    if kind not in _TYPED_KINDS:
        raise Unavailable(f"no typed parameter has the type {kind}")
    (value,) = struct.unpack_from("<" + _TYPED_KINDS[kind], raw)
    if isinstance(value, float) and not math.isfinite(value):
        return unavailable(f"{value} is no number of JSON")
    return value


def _unwalked(read: Callable[[], Json]) -> Unwalked:
    tid = read()
    if not tid:
        raise Unavailable("thread 0 is nobody")
    return Unwalked(tid, read)


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
    return text(_CONVERSION.sub(lambda found: b"%" if found[0] == b"%%" else string, template))


def _conversions(template: bytes) -> list[bytes]:
    return [found for found in _CONVERSION.findall(template) if found != b"%%"]


_DOMAIN_NAME = Capture(
    Path("domain->name", "domain", ("name",)), {"domain": LIBVIRT.type_named("virDomain *")}
)
