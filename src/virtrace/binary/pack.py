"""Symbol packs: the debug info that traces need of one build of one file, in a few KB.

A pack is a JSON file, BUILD-ID.pack.json. For each function of some recipes it holds its
address, its types, the locations of its arguments at entry, and its line table. Beside a recipe
or in the user's cache, it serves a host that has no debug info. It may come from a stranger:
nothing in it is trusted that could make a trace write to a wrong address.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Union

from virtrace import files
from virtrace.binary import abi, given, layouts, x86_64
from virtrace.binary.ctype import CType, Opaque, Struct
from virtrace.binary.reader import Binary
from virtrace.errors import TargetError

FORMAT = "virtrace-pack"
VERSION = 1
MAX_BYTES = 1 << 20
MAX_STRUCT = 1 << 16
CACHE = "packs"


@dataclass(frozen=True)
class InRegister:
    """The current value of the register of this name."""

    name: str


@dataclass(frozen=True)
class AtEntry:
    """The value of the register when the function was entered."""

    name: str


@dataclass(frozen=True)
class OnStack:
    """offset: in bytes, from the end of the function's frame, where its caller's begins."""

    offset: int


@dataclass(frozen=True)
class Constant:
    """A value that the compiler computed."""

    value: int


@dataclass(frozen=True)
class Nowhere:
    """A value that has no readable location. why: the reason, for the user."""

    why: str


Place = Union[InRegister, AtEntry, OnStack, Constant, Nowhere]


Variables = Mapping[str, "tuple[CType, Place]"]


@dataclass(frozen=True)
class StatementStart:
    """The start of a statement. address: in the file. variables: those with a location there."""

    address: int
    number: int
    variables: Variables


@dataclass(frozen=True)
class Body:
    """One compiled body of a function.

    entry: address in the file.
    arguments: their types and locations at entry.
    file, declared: name of the source file and line of the declaration, if the body has lines.
    """

    entry: int
    arguments: Variables
    file: str = ""
    declared: int = 0
    lines: Sequence[StatementStart] = ()


@dataclass(frozen=True)
class Function:
    """A function of debug info.

    bodies: its machine code; more than one if the compiler cloned it.
    inlined_into: the functions that have a copy of it inlined.
    """

    returns: CType
    bodies: Sequence[Body]
    inlined_into: Sequence[str]


@dataclass(frozen=True)
class Pack:
    """The content of a pack. origin: text that says what debug info it was made from."""

    build_id: str
    machine: str
    origin: str
    functions: Mapping[str, Function]


def file_name(build_id: str) -> str:
    return f"{build_id}.pack.json"


def encode_pack(
    build_id: str, machine: str, origin: str, functions: Mapping[str, Any], structs: Any
) -> bytes:
    """Return the content of a pack's file.

    functions, structs: from dwarf.functions_and_structs()
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "build_id": build_id,
        "machine": machine,
        "origin": origin,
        "functions": functions,
        "structs": structs,
    }
    data = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    parse_pack(data, "the new pack")
    return data


def pack_in_memory(elf: Binary, origin: str, functions: Mapping[str, Any], structs: Any) -> Pack:
    """Make a pack that is used at once, not stored. Arguments: see write()."""
    return parse_pack(
        encode_pack(elf.build_id or "", elf.machine, origin, functions, structs), origin
    )


def parse_pack(data: bytes, file: str) -> Pack:
    """Parse the content of a pack's file.

    file: its name, for errors.
    Raises: TargetError: the content is not that of a pack.
    """
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError("not a symbol pack")
        if document["version"] != VERSION:
            raise ValueError(f"a pack of version {document['version']}, not {VERSION}")
        named = partial(layouts.type_named, structs=_structs(document["structs"]))
        return Pack(
            given.text(document["build_id"]),
            given.text(document["machine"]),
            given.text(document["origin"]),
            {
                given.text(name): Function(
                    named(given.text(function["returns"])),
                    [_body(body, named) for body in function["bodies"]],
                    [given.text(name) for name in function["inlined_into"]],
                )
                for name, function in document["functions"].items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TargetError(
            f"the symbol pack {file} cannot be used: {said}",
            "remove it, or make it again: virtrace pack make",
        ) from error


def find_pack(elf: Binary, folders: Sequence[Path]) -> Pack | None:
    """Find the pack of a file's build in the first folder that has one, else in the cache.

    Raises: TargetError: the pack cannot be used, because another user can write it (in the cache,
    such a pack is skipped), it is damaged, is for another build, or names an address at which the
    file has no function.
    """
    build_id = elf.build_id
    if build_id is None:
        return None
    name = file_name(build_id)
    for folder in folders:
        if (folder / name).exists():
            return load_pack(folder / name, elf)
    with suppress(OSError), files.cache_folder(CACHE) as cached:
        return checked_pack(
            parse_pack(files.read_trusted(cached, name, MAX_BYTES), name), elf, name
        )
    return None


def load_pack(path: Path, elf: Binary | None = None) -> Pack:
    """Read a pack from a file. elf: the file that the pack must be for."""
    try:
        with files.open_folder(path.parent.resolve()) as folder:
            data = files.read_trusted(folder, path.name, MAX_BYTES)
    except OSError as error:
        raise TargetError(
            f"the symbol pack {path} cannot be read: {error.strerror or error}",
            "make it yours alone to write (chown, chmod go-w), or remove it",
        ) from error
    pack = parse_pack(data, str(path))
    return pack if elf is None else checked_pack(pack, elf, str(path))


def checked_pack(pack: Pack, elf: Binary, file: str) -> Pack:
    """Return the pack if it is for this file and each of its addresses is safe for a breakpoint.

    file: the pack's name, for errors.
    Raises: TargetError: it is for another file, or an address may be inside an instruction.
    """
    wrong = ""
    if not abi.convention_of_file(elf).is_known:
        wrong = f"packs are understood for {x86_64.ABI.machine} only, not for {elf.machine}"
    elif pack.build_id != elf.build_id or pack.machine != elf.machine:
        wrong = f"it is for build-id {pack.build_id} on {pack.machine}"
    else:
        bodies = [body for function in pack.functions.values() for body in function.bodies]
        places = {line.address: False for body in bodies for line in body.lines}
        places.update((body.entry, True) for body in bodies)
        for address, why in elf.doubts(places).items():
            wrong = f"{os.path.basename(elf.name)}+{address:#x}: {why}"
    if wrong:
        raise TargetError(
            f"the symbol pack {file} cannot be used: {wrong}",
            "remove it, or make it again: virtrace pack make",
        )
    return pack


def _structs(about: Mapping[str, Any]) -> Any:
    @cache
    def struct(name: str) -> CType:
        # A struct that contains itself would never end.
        if name in building or name not in about:
            return Opaque(name)
        building.add(name)
        try:
            return _sound(layouts.layout(name, about[name], struct))
        finally:
            building.remove(name)

    building: set[str] = set()
    for name in about:
        struct(name)
    return struct


def _sound(struct: Struct) -> Struct:
    """Return a struct that is quick to read. Raises ValueError: too large, or fields overlap."""
    end = 0
    for field in struct.fields:
        if field.offset < end and field.type.size:
            raise ValueError(f"{struct.name}.{field.name} overlaps another field")
        end = max(end, field.offset + field.type.size)
    if not end <= struct.size <= MAX_STRUCT:
        raise ValueError(f"{struct.name} has {struct.size} bytes and fields up to {end}")
    return struct


def _body(about: Mapping[str, Any], named: Callable[[str], CType]) -> Body:
    arguments = {
        given.text(name): (named(given.text(argument["type"])), _place(argument))
        for name, argument in about["arguments"].items()
    }
    entry = given.hexadecimal(about["entry"])
    if "lines" not in about:
        return Body(entry, arguments)
    lines = about["lines"]
    types = {
        given.text(name): named(given.text(type_)) for name, type_ in lines["variables"].items()
    }
    rows = [
        StatementStart(
            given.hexadecimal(address),
            _line(line),
            {name: (types[name], _place(place)) for name, place in places.items()},
        )
        for address, line, places in lines["rows"]
    ]
    return Body(entry, arguments, given.text(lines["file"]), _line(lines["declared"]), rows)


def _line(value: object) -> int:
    return given.number(value, 0, (1 << 31) - 1)


def _place(about: Mapping[str, Any]) -> Place:
    if "register" in about:
        return InRegister(given.text(about["register"]))
    if "entry_register" in about:
        return AtEntry(given.text(about["entry_register"]))
    if "stack" in about:
        return OnStack(stack_offset(about["stack"]))
    if "constant" in about:
        return Constant(constant(about["constant"]))
    return Nowhere(given.text(about["unavailable"]))


def stack_offset(value: object) -> int:
    return given.number(value, -(1 << 20), 1 << 20)


def constant(value: object) -> int:
    """Check an integer of 64 bits, signed or unsigned."""
    return given.number(value, -(1 << 63), (1 << 64) - 1)
