"""Struct layouts as data, one file a struct, for binaries without debug info."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from virtrace.binary import given
from virtrace.binary.ctype import (
    Array,
    Boolean,
    Check,
    CType,
    Field,
    Integer,
    Opaque,
    Pointer,
    QmpSources,
    Struct,
)

_FOLDER = Path(__file__).parent

# The LP64 data model, that of every Linux libvirt runs on in 64 bits.
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
    "virErrorNumber": Integer(4, True),
}
# Of elements: a layout may come from a stranger.
_MAX_COUNT = 1 << 16
_ARRAY = re.compile(r"(?P<element>.+?)\s*\[(?P<count>\d+)\]")


def named(name: str, structs: Callable[[str], CType] | None = None) -> CType:
    """The type that C spells ``name``.

    structs: gives the layout of a struct, those that are shipped by default; Opaque where it
    has none.
    """
    structs = structs or _shipped
    if name.endswith("*"):
        target = name[:-1].strip()
        return Pointer(lambda: named(target, structs), string=target == "char")
    if match := _ARRAY.fullmatch(name):
        element, count = named(match["element"], structs), int(match["count"])
        return Opaque(name) if element.size == 0 or count > _MAX_COUNT else Array(element, count)
    return _SCALARS.get(name) or structs(name)


def layout(
    name: str, about: Mapping[str, Any], structs: Callable[[str], CType] | None = None
) -> Struct:
    """A struct from data: ``size`` and, by name, ``offset`` and ``type`` of each of ``fields``."""
    fields = []
    checks = []
    for field, where in about["fields"].items():
        offset = given.address(where["offset"])
        ctype = named(given.text(where["type"]), structs)
        fields.append(Field(given.text(field), offset, ctype))
        if "check" in where:
            checks.append(check(field, ctype, *where["check"]))
    return Struct(name, given.address(about["size"]), tuple(fields), tuple(checks))


def check(field: str, ctype: CType, low: object, high: object) -> Check:
    """ValueError where what is to be checked is no number, or the bounds are none."""
    if not isinstance(ctype, (Integer, Boolean, Pointer)):
        raise ValueError(f"{field} is no number that could be checked")
    bounds = (given.number(bound, -(1 << 63), (1 << 64) - 1) for bound in (low, high))
    return Check(field, *bounds)


@cache
def _shipped(name: str) -> CType:
    file = _FOLDER / f"{name}.yaml"
    # A name comes from a recipe: it must not lead out of the folder.
    if not name.isidentifier() or not file.is_file():
        return Opaque(name)
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    first, *others = (layout(name, about) for about in document["layouts"])
    qmp = [_sources(commands) for commands in document.get("qmp", ())]
    return Struct(first.name, first.size, first.fields, first.checks, tuple(others), qmp)


def _sources(commands: dict[str, dict[str, str | list[str]]]) -> QmpSources:
    return {
        command: {
            field: [paths] if isinstance(paths, str) else paths for field, paths in fields.items()
        }
        for command, fields in commands.items()
    }
