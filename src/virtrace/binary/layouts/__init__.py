"""Struct layouts as data, one file a struct, for binaries without debug info."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

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
_ARRAY = re.compile(r"(?P<element>.+?)\s*\[(?P<count>\d+)\]")


def named(name: str) -> CType:
    """The type that C spells ``name``; Opaque where no layout of it is shipped."""
    if name.endswith("*"):
        target = name[:-1].strip()
        return Pointer(lambda: named(target), string=target == "char")
    if match := _ARRAY.fullmatch(name):
        return Array(named(match["element"]), int(match["count"]))
    return _SCALARS.get(name) or _struct(name)


@cache
def _struct(name: str) -> CType:
    file = _FOLDER / f"{name}.yaml"
    # A name comes from a recipe: it must not lead out of the folder.
    if not name.isidentifier() or not file.is_file():
        return Opaque(name)
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    layouts = [_layout(name, layout) for layout in document["layouts"]]
    first, *others = layouts
    qmp = [_sources(commands) for commands in document.get("qmp", ())]
    return Struct(first.name, first.size, first.fields, first.checks, tuple(others), qmp)


def _sources(commands: dict[str, dict[str, str | list[str]]]) -> QmpSources:
    return {
        command: {
            field: [paths] if isinstance(paths, str) else paths for field, paths in fields.items()
        }
        for command, fields in commands.items()
    }


def _layout(name: str, layout: dict[str, Any]) -> Struct:
    fields = []
    checks = []
    for field, about in layout["fields"].items():
        fields.append(Field(field, about["offset"], named(about["type"])))
        if "check" in about:
            checks.append(Check(field, *about["check"]))
    return Struct(name, layout["size"], tuple(fields), tuple(checks))
