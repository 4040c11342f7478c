"""Struct layouts as data, for binaries without debug info: a YAML file for each struct."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from virtrace import resources
from virtrace.binary import given
from virtrace.binary.ctype import (
    Array,
    Boolean,
    CType,
    Field,
    Integer,
    Opaque,
    Pointer,
    QmpSources,
    RangeCheck,
    Struct,
)
from virtrace.documents import document
from virtrace.errors import TargetError

# What reading a file that describes something else raises.
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError)
# The LP64 data model, that of 64-bit Linux.
_SCALARS: dict[str, CType] = {
    "bool": Boolean(),
    "char": Integer(1, True),
    "signed char": Integer(1, True),
    "unsigned char": Integer(1),
    "short": Integer(2, True),
    "unsigned short": Integer(2),
    "int": Integer(4, True),
    "unsigned": Integer(4),
    "unsigned int": Integer(4),
    "long": Integer(8, True),
    "unsigned long": Integer(8),
    "long long": Integer(8, True),
    "unsigned long long": Integer(8),
    "size_t": Integer(8),
    "ssize_t": Integer(8, True),
}
# Of elements: a layout may come from a stranger.
_MAX_COUNT = 1 << 16
_ARRAY = re.compile(r"(?P<element>.+?)\s*\[(?P<count>\d+)\]")


# The layout of a struct, or the type behind a typedef, by its name; Opaque where it is not known.
Structs = Callable[[str], CType]


def type_named(name: str, structs: Structs) -> CType:
    """The type that C spells ``name``, with the structs that ``structs`` knows."""
    if name.endswith("*"):
        target = name[:-1].strip()
        return Pointer(lambda: type_named(target, structs), string=target == "char")
    if match := _ARRAY.fullmatch(name):
        element, count = type_named(match["element"], structs), int(match["count"])
        return Opaque(name) if element.size == 0 or count > _MAX_COUNT else Array(element, count)
    return _SCALARS.get(name) or structs(name)


def layout(name: str, about: Mapping[str, Any], structs: Structs) -> Struct:
    """A struct from data: ``size``, and ``offset`` and ``type`` of each of its ``fields``."""
    fields = []
    checks = []
    for field, where in about["fields"].items():
        offset = given.address(where["offset"])
        ctype = type_named(given.text(where["type"]), structs)
        fields.append(Field(given.text(field), offset, ctype))
        if "check" in where:
            checks.append(range_check(field, ctype, *where["check"]))
    return Struct(name, given.address(about["size"]), tuple(fields), tuple(checks))


def range_check(field: str, ctype: CType, low: object, high: object) -> RangeCheck:
    """A check of a field. Raises ValueError if the field or a bound is not a number."""
    if not isinstance(ctype, (Integer, Boolean, Pointer)):
        raise ValueError(f"{field} is not a number, and cannot be checked")
    bounds = (given.number(bound, -(1 << 63), (1 << 64) - 1) for bound in (low, high))
    return RangeCheck(field, *bounds)


def struct_in(folder: Path, name: str) -> CType:
    """Return the type that ``NAME.yaml`` in the folder describes; Opaque if there is none."""
    file = folder / f"{name}.yaml"
    # A name comes from a recipe: it must not lead out of the folder.
    if not name.isidentifier() or not resources.has(file):
        return Opaque(name)
    return struct_in_file(file)


@cache
def struct_in_file(file: Path) -> CType:
    """A struct with its alternative layouts, or the type behind a typedef.

    Raises: TargetError if the file does not describe one
    """
    try:
        return _struct_in(file, document(file))
    except (*_MALFORMED, OSError, yaml.YAMLError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise TargetError(
            f"{file} does not describe a struct: {why}",
            "docs/architecture.md says what it has to contain",
        ) from error


def _struct_in(file: Path, document: Any) -> CType:
    structs = partial(struct_in, file.parent)
    if "typedef" in document:
        return type_named(document["typedef"], structs)
    first, *others = (layout(file.stem, about, structs) for about in document["layouts"])
    qmp = [_sources(commands) for commands in document.get("qmp", ())]
    return Struct(first.name, first.size, first.fields, first.checks, tuple(others), qmp, file)


def _sources(commands: dict[str, dict[str, str | list[str]]]) -> QmpSources:
    return {
        command: {
            field: [paths] if isinstance(paths, str) else paths for field, paths in fields.items()
        }
        for command, fields in commands.items()
    }
