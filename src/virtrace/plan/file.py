"""A plan: a recipe resolved on one daemon, as plain data that outlives GDB.

It says where each probe stands, where its arguments are, and the types on the way of each capture.
A program for bpftrace carries it in what it prints; so it can come from a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Union

from virtrace.binary import given
from virtrace.binary.ctype import (
    Array,
    Boolean,
    CType,
    Field,
    Integer,
    Opaque,
    Pointer,
    Struct,
)
from virtrace.binary.layouts import check
from virtrace.binary.pack import (
    MAX_STRUCT,
    Constant,
    InRegister,
    Nowhere,
    OnStack,
    constant,
    stack_offset,
)
from virtrace.errors import TraceError, Unavailable
from virtrace.recipe.path import Path
from virtrace.recipe.path import parse as parse_path
from virtrace.recipe.prototype import Parameter
from virtrace.trace.format import Header, Record
from virtrace.trace.reader import read_header
from virtrace.trace.schema import ShapeError

FORMAT = "virtrace-plan"
VERSION = 1
MAX_BYTES = 8 << 20
NO_BACKTRACES = "the bpftrace engine takes no backtraces: the thread does not stand still for it"
NO_RECORDS = "the bpftrace engine does not read records of domains"

# Of all types of a plan: each that a capture ends at is taken apart into so many values.
_MAX_PARTS = 200_000

# How sites are found whose arguments are to be proven.
DRIVER_METHOD, CALLED_BY = "driver_method", "called_by"
SPAN, POINT, RETURN_POINT = "span", "point", "return"


@dataclass(frozen=True)
class InProbe:
    """An argument of a static probe, by its number.

    register: where the file says that it is, at all of the probe's places; bpftrace by itself knows
    the first six arguments only.
    """

    index: int
    register: str | None = None


Place = Union[InRegister, OnStack, Constant, Nowhere, InProbe]


@dataclass(frozen=True)
class Wanted:
    """A capture by its path, with the types on its way."""

    path: Path
    types: Mapping[str, CType]


# A capture, or why there can be none.
Captures = Mapping[str, Union[Wanted, Unavailable]]


@dataclass(frozen=True)
class Site:
    """One place that is probed.

    kind: SPAN, POINT, or RETURN_POINT. address: as the file counts; further: other places of the
    same static probe. usdt: of one, its PROVIDER and NAME. file: as the process sees it.
    arguments: where they are at the entry. parameters: as declared, where arguments are proven by
    them. find, caller: how it was found, where that alone tells where its arguments are.
    """

    probe: str
    kind: str
    module: str
    file: str
    address: int
    arguments: Mapping[str, Place]
    enter: Captures
    exit: Captures
    further: Sequence[int] = ()
    usdt: tuple[str, str] | None = None
    root: bool = False
    anywhere: bool = False
    moved: bool = False
    parameters: Sequence[Parameter] = ()
    find: str | None = None
    caller: str | None = None

    @property
    def captures(self) -> Iterable[Wanted]:
        for wanted in (*self.enter.values(), *self.exit.values()):
            if isinstance(wanted, Wanted):
                yield wanted

    @property
    def types(self) -> Iterable[CType]:
        """Where its captures start from."""
        return (ctype for wanted in self.captures for ctype in wanted.types.values())


@dataclass(frozen=True)
class Plan:
    """header: of the trace, as it was known when the plan was made.

    exported: of the modules of libvirt, by name: first address, address behind, and name of each
    function; where a capture asks what called it.
    """

    header: Header
    sites: Sequence[Site]
    exported: Mapping[str, Sequence[tuple[int, int, str]]] = field(default_factory=dict)


def write(plan: Plan) -> bytes:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "header": plan.header,
        "sites": [_site_record(site) for site in plan.sites],
        "exported": plan.exported,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def read(data: bytes) -> Plan:
    """TraceError where the data is no plan."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError("it is of another version")
        plan = Plan(
            _header(document["header"]),
            [_site(site) for site in document["sites"]],
            {
                given.text(name): [
                    (given.address(start), given.address(end), given.text(function))
                    for start, end, function in rows
                ]
                for name, rows in document["exported"].items()
            },
        )
        parts = sum(_parts(ctype) for site in plan.sites for ctype in site.types)
        if parts > _MAX_PARTS:
            raise ValueError(f"its types have more than {_MAX_PARTS:,} parts")
        return plan
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(RecursionError, Unavailable),
    ) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"the plan in it cannot be used: {said}",
            "compile the recipe again, by this version of virtrace",
        ) from error


def _header(record: Any) -> Header:
    try:
        header = read_header(record)
    except ShapeError as error:
        raise ValueError(f"its header: {error}") from error
    # JSON can name halves of characters, of which a trace can be written no more than a file.
    json.dumps(record, ensure_ascii=False).encode()
    given.text(header["recipe"]["name"])
    given.number(header["target"]["pid"], 0, (1 << 31) - 1)
    return header


# --- Sites


def _site_record(site: Site) -> Record:
    return {
        "probe": site.probe,
        "kind": site.kind,
        "module": site.module,
        "file": site.file,
        "address": site.address,
        "further": list(site.further),
        "usdt": site.usdt,
        "root": site.root,
        "anywhere": site.anywhere,
        "moved": site.moved,
        "parameters": [[parameter.name, parameter.type] for parameter in site.parameters],
        "find": site.find,
        "caller": site.caller,
        "arguments": {name: _place_record(place) for name, place in site.arguments.items()},
        "enter": _captures_record(site.enter),
        "exit": _captures_record(site.exit),
    }


def _site(about: Mapping[str, Any]) -> Site:
    kind, find = about["kind"], about["find"]
    if kind not in (SPAN, POINT, RETURN_POINT) or find not in (None, DRIVER_METHOD, CALLED_BY):
        raise ValueError(f"there is no site of kind {kind!r}, found by {find!r}")
    usdt = about["usdt"]
    return Site(
        given.text(about["probe"]),
        kind,
        given.text(about["module"]),
        given.text(about["file"]),
        given.address(about["address"]),
        {name: _place(place) for name, place in about["arguments"].items()},
        _captures(about["enter"]),
        _captures(about["exit"]),
        [given.address(address) for address in about["further"]],
        None if usdt is None else (given.text(usdt[0]), given.text(usdt[1])),
        bool(about["root"]),
        bool(about["anywhere"]),
        bool(about["moved"]),
        [Parameter(given.text(name), given.text(type_)) for name, type_ in about["parameters"]],
        find,
        None if about["caller"] is None else given.text(about["caller"]),
    )


def _place_record(place: Place) -> Record:
    if isinstance(place, InRegister):
        return {"register": place.name}
    if isinstance(place, OnStack):
        return {"stack": place.offset}
    if isinstance(place, Constant):
        return {"constant": place.value}
    if isinstance(place, InProbe):
        return {"probe": place.index, "in": place.register}
    return {"unavailable": place.why}


def _place(about: Mapping[str, Any]) -> Place:
    if "register" in about:
        return InRegister(given.text(about["register"]))
    if "stack" in about:
        return OnStack(stack_offset(about["stack"]))
    if "constant" in about:
        return Constant(constant(about["constant"]))
    if "probe" in about:
        register = about["in"]
        return InProbe(
            given.number(about["probe"], 0, 11), None if register is None else given.text(register)
        )
    return Nowhere(given.text(about["unavailable"]))


def _captures_record(captures: Captures) -> Record:
    return {
        name: {"unavailable": str(wanted)}
        if isinstance(wanted, Unavailable)
        else {
            "path": wanted.path.text,
            "types": {name: _type_record(ctype) for name, ctype in wanted.types.items()},
        }
        for name, wanted in captures.items()
    }


def _captures(about: Mapping[str, Any]) -> Captures:
    found: dict[str, Wanted | Unavailable] = {}
    for name, capture in about.items():
        if "unavailable" in capture:
            found[given.text(name)] = Unavailable(given.text(capture["unavailable"]))
        else:
            types = {name: _type(record) for name, record in capture["types"].items()}
            path = parse_path(given.text(capture["path"]))
            if not types.keys() >= set(path.arguments):
                raise ValueError(f"{path.text}: the type of an argument is missing")
            found[given.text(name)] = Wanted(path, types)
    return found


# --- Types


def on_the_way(path: Path, types: Mapping[str, CType]) -> dict[str, CType]:
    """The types that a capture starts from, of which only what it walks over is kept."""
    walks: dict[str, list[_Walk]] = {path.name: [(path.members, path.stars)]}
    if path.filler is not None:
        walks.setdefault(path.filler, []).append(((), 0))
    if path.count is not None:
        counted = types.get(path.count.name)
        stars = int(isinstance(counted, Pointer) and not path.count.members)
        walks.setdefault(path.count.name, []).append((path.count.members, stars))
    return {name: _kept(types[name], its) for name, its in walks.items() if name in types}


# Members, then stars.
_Walk = tuple[tuple[str, ...], int]


def _kept(ctype: CType, walks: Sequence[_Walk]) -> CType:
    if isinstance(ctype, Pointer):
        deeper = [(members, stars if members else stars - 1) for members, stars in walks]
        deeper = [walk for walk in deeper if walk[1] >= 0]
        if not deeper or ctype.target is None:
            return Pointer(None, ctype.string, ctype.size)
        return Pointer(partial(_kept, ctype.target(), deeper), ctype.string, ctype.size)
    if isinstance(ctype, Array):
        return Array(_kept(ctype.element, []), ctype.count)
    if not isinstance(ctype, Struct):
        return ctype
    whole = not walks or any(not members for members, _ in walks)
    checked = {check.field for check in ctype.checks}
    fields = []
    for one in ctype.fields:
        inner = [(members[1:], stars) for members, stars in walks if members[:1] == (one.name,)]
        if whole or inner or one.name in checked:
            fields.append(Field(one.name, one.offset, _kept(one.type, inner)))
    alternatives = [_kept(other, walks) for other in ctype.alternatives]
    structs = [other for other in alternatives if isinstance(other, Struct)]
    return Struct(ctype.name, ctype.size, tuple(fields), ctype.checks, structs, ctype.qmp)


def _type_record(ctype: CType) -> Record:
    if isinstance(ctype, Integer):
        return {"integer": ctype.size, "signed": ctype.signed}
    if isinstance(ctype, Boolean):
        return {"boolean": ctype.size}
    if isinstance(ctype, Pointer):
        target = None if ctype.target is None else _type_record(ctype.target())
        return {"pointer": ctype.size, "string": ctype.string, "to": target}
    if isinstance(ctype, Array):
        return {"array": ctype.count, "of": _type_record(ctype.element)}
    if isinstance(ctype, Opaque):
        return {"opaque": ctype.name, "size": ctype.size}
    if isinstance(ctype, Struct):
        return {
            "struct": ctype.name,
            "size": ctype.size,
            "fields": [[one.name, one.offset, _type_record(one.type)] for one in ctype.fields],
            "checks": [[check.field, check.low, check.high] for check in ctype.checks],
            "alternatives": [_type_record(other) for other in ctype.alternatives],
            "qmp": ctype.qmp,
        }
    raise TypeError(f"a plan holds no {type(ctype).__name__}")


def _type(about: Mapping[str, Any]) -> CType:
    if "integer" in about:
        return Integer(given.number(about["integer"], 1, 8), bool(about["signed"]))
    if "boolean" in about:
        return Boolean(given.number(about["boolean"], 1, 8))
    if "pointer" in about:
        target = None if about["to"] is None else _type(about["to"])
        to = None if target is None else partial(_same, target)
        return Pointer(to, bool(about["string"]), given.number(about["pointer"], 8, 8))
    if "array" in about:
        found = Array(_type(about["of"]), given.number(about["array"], 0, MAX_STRUCT))
        given.number(found.size, 0, MAX_STRUCT)
        return found
    if "opaque" in about:
        return Opaque(given.text(about["opaque"]), given.number(about["size"], 0, 1 << 32))
    return _struct(about)


def _struct(about: Mapping[str, Any]) -> Struct:
    size = given.number(about["size"], 0, MAX_STRUCT)
    fields = [
        Field(given.text(name), given.number(offset, 0, size), _type(ctype))
        for name, offset, ctype in about["fields"]
    ]
    types = {one.name: one.type for one in fields}
    checks = [check(name, types[name], low, high) for name, low, high in about["checks"]]
    for one in fields:
        if one.offset + one.type.size > size:
            raise ValueError(f"{one.name} is not in its struct")
    alternatives = [_struct(other) for other in about["alternatives"]]
    qmp = [
        {
            given.text(command): {
                given.text(one): [*map(given.text, paths)] for one, paths in sources.items()
            }
            for command, sources in each.items()
        }
        for each in about["qmp"]
    ]
    if not all(types.keys() >= sources.keys() for each in qmp for sources in each.values()):
        raise ValueError("an answer of QEMU is of no field")
    return Struct(given.text(about["struct"]), size, fields, checks, alternatives, qmp)


def _parts(ctype: CType) -> int:
    """Values in it, and in what it leads to."""
    if isinstance(ctype, Pointer):
        return 1 if ctype.target is None else 1 + _parts(ctype.target())
    if isinstance(ctype, Array):
        return max(ctype.count, 1) * _parts(ctype.element)
    if isinstance(ctype, Struct):
        return 1 + sum(map(_parts, (*(one.type for one in ctype.fields), *ctype.alternatives)))
    return 1


def _same(ctype: CType) -> CType:
    return ctype
