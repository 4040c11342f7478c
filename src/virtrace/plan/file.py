"""A plan as JSON, which outlives the process it was resolved in.

A compiled program carries it in what it prints, so it can come from a stranger: everything is
checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

from virtrace.binary import abi, given
from virtrace.binary.abi import Abi
from virtrace.binary.ctype import (
    Array,
    Boolean,
    Code,
    CType,
    Field,
    Integer,
    Opaque,
    Pointer,
    Struct,
    Text,
)
from virtrace.binary.layouts import range_check
from virtrace.binary.pack import (
    MAX_STRUCT,
    AtEntry,
    Constant,
    InRegister,
    Nowhere,
    OnStack,
    constant,
    stack_offset,
)
from virtrace.errors import TraceError, Unavailable
from virtrace.plan.arguments import ByConvention, ByOperands, ByPlaces, ByProof
from virtrace.plan.capture import Capture
from virtrace.plan.model import (
    AnySite,
    ExportedFunctions,
    LineSite,
    Plan,
    PointSite,
    ResolvedProbe,
    ReturnPointSite,
    SpanSite,
    StaticProbeSite,
    all_captures,
    possible,
)
from virtrace.plan.walk import pruned
from virtrace.recipe.model import CalledBy, DriverMethod
from virtrace.recipe.path import CALLER, parse_path
from virtrace.recipe.prototype import Parameter
from virtrace.trace.format import Header, Record
from virtrace.trace.parsing import read_header
from virtrace.trace.schema import ShapeError

FORMAT = "virtrace-plan"
VERSION = 2
MAX_BYTES = 8 << 20

# A capture takes all types of a plan apart into so many values at most.
_MAX_PARTS = 200_000
_MAX_LINE = (1 << 31) - 1
_PLACES = (InRegister, AtEntry, OnStack, Constant, Nowhere)
# Sources of arguments at a function, for one processor.
_SOURCES = (ByConvention, ByPlaces, ByProof)
_PLAIN_TYPES: tuple[type[Any], ...] = (Integer, Boolean, Opaque, Array, Text)
_SITES = (SpanSite, PointSite, ReturnPointSite, StaticProbeSite, LineSite)

# Names the class of an object.
_CLASS = "is"

T = TypeVar("T")


@dataclass(frozen=True)
class StoredPlan:
    """A plan, and the header of a trace as it was known when the plan was made."""

    plan: Plan
    header: Header


# --- Writing


def write(stored: StoredPlan, convention: Abi) -> bytes:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "machine": convention.machine,
        "header": stored.header,
        "exported": stored.plan.exported.functions,
        "probes": _record(stored.plan.probes),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def type_record(ctype: CType) -> Record:
    """A type as a plan's file has it."""
    record: Record = _record(ctype)
    return record


def _record(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Unavailable):
        return {_CLASS: Unavailable.__name__, "why": str(value)}
    if isinstance(value, Capture):
        types = {name: _record(ctype) for name, ctype in pruned(value.path, value.types).items()}
        return {_CLASS: Capture.__name__, "path": value.path.text, "types": types}
    if isinstance(value, Pointer):
        target = None if value.target is None else _record(value.target())
        return {_CLASS: Pointer.__name__, **vars(value), "target": target}
    if is_dataclass(value):
        # All of a plan is for one processor.
        names = [field.name for field in fields(value) if field.name != "abi"]
        members = {name: _record(getattr(value, name)) for name in names}
        return {_CLASS: type(value).__name__, **members}
    if isinstance(value, Mapping):
        return {key: _record(one) for key, one in value.items()}
    return [_record(one) for one in value]


# --- Reading


def read(data: bytes) -> StoredPlan:
    """Read what write() makes. Raises TraceError where the data is anything else."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError("it is of another version")
        machine = given.text(document["machine"])
        exported = ExportedFunctions(
            {
                given.text(name): [
                    (given.address(first), given.address(end), given.text(function))
                    for first, end, function in functions
                ]
                for name, functions in document["exported"].items()
            }
        )
        reader = _Reader(abi.convention_of_machine(machine), exported)
        probes = [reader.one(about, ResolvedProbe) for about in document["probes"]]
        plan = Plan(probes, exported)
        if sum(map(_parts_of_site, plan.sites)) > _MAX_PARTS:
            raise ValueError(f"its types have more than {_MAX_PARTS:,} parts")
        return StoredPlan(plan, _header(document["header"]))
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(RecursionError, Unavailable),
    ) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"the plan in it cannot be used: {why}",
            "compile the recipe again, by this version of virtrace",
        ) from error


def _header(record: Any) -> Header:
    try:
        header = read_header(record)
    except ShapeError as error:
        raise ValueError(f"its header: {error}") from error
    # JSON can name halves of characters, which neither a trace nor a file can hold.
    json.dumps(record, ensure_ascii=False).encode()
    given.text(header["recipe"]["name"])
    given.number(header["target"]["pid"], 0, (1 << 31) - 1)
    return header


Read = Callable[[Any], Any]


class _Reader:
    """Makes objects of their records. Raises ValueError, KeyError, TypeError or AttributeError."""

    def __init__(self, convention: Abi, exported: ExportedFunctions) -> None:
        self._abi = convention
        self._caller: Mapping[str, CType] = {CALLER: Code(exported.caller)}
        text, address, flag = given.text, given.address, _flag
        site: dict[str, Read] = {"probe": text, "module": text, "file": text}
        source: dict[str, Read] = {"arguments": lambda about: self.one(about, *_SOURCES)}
        function = {**site, "entry": address, "address": address, **source}
        point = {"capture": self._captures, "anywhere": flag}
        names = _list(text)
        # By class, how each of its members is read.
        self._members: Mapping[type[Any], Mapping[str, Read]] = {
            ResolvedProbe: {
                **dict.fromkeys(("name", "function", "kind", "module", "level"), text),
                "role": _optional(text),
                "sites": _list(lambda about: self.one(about, *_SITES)),
                "offset": _optional(address),
                "why": _optional(text),
                "lacks": names,
                "taken": _optional(text),
            },
            SpanSite: {
                **function,
                "enter": self._captures,
                "exit": self._captures,
                "root": flag,
                "parameters": self._parameters,
                "moved": flag,
                "keeps_registers": flag,
            },
            PointSite: {**function, **point},
            ReturnPointSite: {**function, **point},
            StaticProbeSite: {
                **site,
                "provider": text,
                "name": text,
                "addresses": _list(address),
                "semaphores": _list(address),
                "arguments": lambda about: self.one(about, ByOperands),
                **point,
            },
            LineSite: {
                **site,
                "address": address,
                **source,
                "source": text,
                "line": _line,
                "declared": _line,
                "watch": self._captures,
            },
            ByConvention: {"names": names},
            ByPlaces: {"places": _mapping(lambda about: self.one(about, *_PLACES))},
            ByOperands: {"names": names, "operands": _operands},
            ByProof: {
                "parameters": self._parameters,
                "find": lambda about: self.one(about, DriverMethod, CalledBy),
            },
            DriverMethod: {"api": text},
            CalledBy: {"caller": text, "calls": text},
            Parameter: {"name": text, "type": text},
            InRegister: {"name": text},
            AtEntry: {"name": text},
            OnStack: {"offset": stack_offset},
            Constant: {"value": constant},
            Nowhere: {"why": text},
            Integer: {"size": _size(1, 8), "signed": flag},
            Boolean: {"size": _size(1, 8)},
            Text: {"size": _size(0, MAX_STRUCT)},
            Opaque: {"name": text, "size": _size(0, 1 << 32)},
            Array: {"element": self._type, "count": _size(0, MAX_STRUCT)},
        }

    def one(self, about: Any, *classes: type[T]) -> T:
        """Make an object of one of the classes."""
        for cls in classes:
            if about[_CLASS] == cls.__name__:
                members = {name: of(about[name]) for name, of in self._members[cls].items()}
                if cls in _SOURCES:
                    members["abi"] = self._abi
                return cls(**members)
        raise ValueError(f"found {about[_CLASS]!r:.60} where {classes[0].__name__} belongs")

    def _parameters(self, about: Any) -> list[Parameter]:
        return [self.one(parameter, Parameter) for parameter in about]

    def _captures(self, about: Any) -> dict[str, Capture | Unavailable]:
        return {given.text(name): self._capture(one) for name, one in about.items()}

    def _capture(self, about: Any) -> Capture | Unavailable:
        if about[_CLASS] == Unavailable.__name__:
            return Unavailable(given.text(about["why"]))
        types = {name: self._type(ctype) for name, ctype in about["types"].items()}
        return Capture(parse_path(given.text(about["path"])), {**types, **self._caller})

    def _type(self, about: Any) -> CType:
        kind = about[_CLASS]
        if kind == Pointer.__name__:
            target = None if about["target"] is None else self._type(about["target"])
            to = None if target is None else partial(_same, target)
            return Pointer(to, _flag(about["string"]), given.number(about["size"], 8, 8))
        if kind == Struct.__name__:
            return self._struct(about)
        ctype: CType = self.one(about, *_PLAIN_TYPES)
        if isinstance(ctype, Array):
            given.number(ctype.size, 0, MAX_STRUCT)
        return ctype

    def _struct(self, about: Any) -> Struct:
        size = given.number(about["size"], 0, MAX_STRUCT)
        members = [
            Field(
                given.text(field["name"]),
                given.number(field["offset"], 0, size),
                self._type(field["type"]),
            )
            for field in about["fields"]
        ]
        types = {field.name: field.type for field in members}
        for field in members:
            if field.offset + field.type.size > size:
                raise ValueError(f"{field.name} is not in its struct")
        checks = [
            range_check(one["field"], types[one["field"]], one["low"], one["high"])
            for one in about["checks"]
        ]
        alternatives = [self._struct(other) for other in about["alternatives"]]
        qmp = [_mapping(_mapping(_list(given.text)))(sources) for sources in about["qmp"]]
        if not all(types.keys() >= sources.keys() for one in qmp for sources in one.values()):
            raise ValueError("an answer of QEMU is of no field")
        return Struct(given.text(about["name"]), size, members, checks, alternatives, qmp)


def _list(read_one: Read) -> Read:
    return lambda about: [read_one(one) for one in about]


def _mapping(read_one: Read) -> Read:
    return lambda about: {given.text(name): read_one(one) for name, one in about.items()}


def _optional(read_one: Read) -> Read:
    return lambda about: None if about is None else read_one(about)


def _size(low: int, high: int) -> Read:
    return lambda about: given.number(about, low, high)


def _line(about: Any) -> int:
    return given.number(about, 0, _MAX_LINE)


def _flag(about: Any) -> bool:
    if not isinstance(about, bool):
        raise ValueError(f"found {about!r:.60} where true or false belongs")
    return about


def _operands(about: Any) -> dict[int, list[str]]:
    # JSON has no numbers as names.
    return {given.address(int(name)): _list(given.text)(one) for name, one in about.items()}


def _parts_of_site(site: AnySite) -> int:
    captures = possible(all_captures(site))
    types = [ctype for capture in captures for ctype in capture.types.values()]
    return sum(map(_parts, types))


def _parts(ctype: CType) -> int:
    """The values in a type, and in what it leads to."""
    if isinstance(ctype, Pointer):
        return 1 if ctype.target is None else 1 + _parts(ctype.target())
    if isinstance(ctype, Array):
        return max(ctype.count, 1) * _parts(ctype.element)
    if isinstance(ctype, Struct):
        members = (*(field.type for field in ctype.fields), *ctype.alternatives)
        return 1 + sum(map(_parts, members))
    return 1


def _same(ctype: CType) -> CType:
    return ctype
