"""Checks and JSON Schema of a trace's records, made from their types in trace/format.py.

`python -m virtrace.trace.schema` prints the schema, which is kept as schema.json for editors and
for programs in other languages.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from virtrace.trace import format as format_
from virtrace.trace.format import (
    FORMAT,
    VERSION,
    Count,
    EventRecord,
    FailureRecord,
    Footer,
    Header,
    HostRecord,
    Json,
    Record,
    SwitchedOff,
    UnavailableValue,
)
from virtrace.trace.upgrade import HeaderOfVersion1

_NONE = type(None)
_JSON_TYPES: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
    list: "array",
    _NONE: "null",
}
_IN_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    _NONE: "null",
}


class ShapeError(ValueError):
    """A record that is not what its type says; the message says where and why."""


# Of a TypedDict, by key: whether it is required, and its type.
_Parts = dict[str, tuple[bool, Any]]


def check(value: Json, hint: Any, key: str = "") -> None:
    """Raise ShapeError unless a JSON value has the types that a hint names.

    hint: a TypedDict, list, dict, union or plain type. Only JSON types are compared: patterns and
    bounds are the schema's, which may be stricter.
    """
    kinds, records, elements = _compiled(hint)
    # Not isinstance: true is no integer in JSON.
    if type(value) not in kinds:
        raise ShapeError(f"{key!r} is not {' or '.join(_IN_WORDS[kind] for kind in kinds)}")
    if records and type(value) is dict:
        for name, (is_required, inner) in _meant(value, records).items():
            where = f"{key}.{name}" if key else name
            if name in value:
                check(value[name], inner, where)
            elif is_required:
                raise ShapeError(f"{where!r} is missing")
    elif elements is not None and type(value) is list:
        for index, element in enumerate(value):
            check(element, elements, f"{key}[{index}]")
    elif elements is not None and type(value) is dict:
        for name, element in value.items():
            check(element, elements, f"{key}.{name}")


def _meant(value: Record, records: Sequence[_Parts]) -> _Parts:
    """The one of several records that an object has all keys of, or else the first."""
    for parts in records:
        if all(name in value for name, (is_required, _) in parts.items() if is_required):
            return parts
    return records[0]


@functools.cache
def _compiled(hint: Any) -> tuple[tuple[type, ...], tuple[_Parts, ...], Any]:
    """JSON types; of each TypedDict its keys; the hint of the elements of a list or dict."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _compiled(get_args(hint)[0])
    if origin is Literal:
        return (type(get_args(hint)[0]),), (), None
    if origin is Union:
        kinds: dict[type, None] = {}
        records: list[_Parts] = []
        elements = None
        for member in get_args(hint):
            own, parts, inner = _compiled(member)
            kinds.update(dict.fromkeys(own))
            records += parts
            elements = inner or elements
        return tuple(kinds), tuple(records), elements
    if _is_typed_dict(hint):
        hints = _hints(hint)
        keys = {
            name: (name in hint.__required_keys__, inner)
            for name, inner in hints.items()
            # Which type of record it is was looked at before.
            if name != "type" or get_origin(inner) is not Literal
        }
        return (dict,), (keys,), None
    if origin is list:
        return (list,), (), get_args(hint)[0]
    if origin is dict:
        value = get_args(hint)[1]
        return (dict,), (), None if value is Any else value
    return (hint,), (), None


def _hints(hint: Any) -> dict[str, Any]:
    """The types of the keys of a TypedDict."""
    # Python 3.9 evaluates what it inherits by the names of its own module.
    names = {**vars(format_), **vars(sys.modules[hint.__module__])}
    return get_type_hints(hint, names, include_extras=True)


def _is_typed_dict(hint: Any) -> bool:
    return isinstance(hint, type) and hasattr(hint, "__required_keys__")


# --- JSON Schema


def schema(version: int = VERSION) -> Record:
    """Return the JSON Schema (2020-12) of one line of a trace of a version of the format."""
    kinds: Mapping[str, Iterable[str]] = {
        "header": ["header"],
        "spanEvent": ["enter", "exit", "lost"],
        "event": ["point", "line"],
        "host": ["host"],
        "failure": ["failure"],
        "footer": ["footer"],
        "switchedOff": ["switched-off"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:virtrace:trace:{version}",
        "title": f"One line of a virtrace trace, format version {version}",
        "description": "docs/trace-format.md says what each key means. Keys and types of records "
        f"that are not named here may be added within version {version}.",
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string"}},
        "allOf": [
            {
                "if": {"properties": {"type": {"enum": types}}},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name, types in kinds.items()
        ],
        "$defs": {
            "header": _header(version),
            "event": _event(version),
            "spanEvent": {"$ref": "#/$defs/event", "properties": {"span": schema_of(Count)}},
            "host": schema_of(HostRecord),
            "failure": schema_of(FailureRecord),
            "footer": schema_of(Footer),
            "switchedOff": schema_of(SwitchedOff),
            "value": _VALUE,
        },
    }


def _header(version: int) -> Record:
    header = schema_of(HeaderOfVersion1 if version == 1 else Header)
    header["properties"].update(format={"const": FORMAT}, version={"const": version})
    return header


def _event(version: int) -> Record:
    event = schema_of(EventRecord)
    values = event["properties"]["values"]
    values["additionalProperties"] = {"$ref": "#/$defs/value"}
    if version == 1:
        # Text that is JSON, parsed: the shapes of values do not apply in it.
        values["properties"] = {"json": True}
    return event


def schema_of(hint: Any) -> Record:
    """Return the JSON Schema of a type. hint: as of ``check``."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, (keyword, value) = get_args(hint)
        return {**schema_of(base), keyword: list(value) if isinstance(value, tuple) else value}
    if origin is Literal:
        return {"const": get_args(hint)[0]}
    if origin is Union:
        return _any_of([schema_of(member) for member in get_args(hint)])
    if _is_typed_dict(hint):
        hints = _hints(hint)
        return {
            "type": "object",
            "required": [name for name in hints if name in hint.__required_keys__],
            "properties": {name: schema_of(inner) for name, inner in hints.items()},
        }
    if origin is list:
        return {"type": "array", "items": schema_of(get_args(hint)[0])}
    if origin is dict:
        value = get_args(hint)[1]
        more = {} if value is Any else {"additionalProperties": schema_of(value)}
        return {"type": "object", **more}
    return {"type": _JSON_TYPES[hint]}


def _any_of(members: list[Record]) -> Record:
    """One schema where each member adds nothing but its type, or at most one adds more."""
    simple = [member["type"] for member in members if set(member) == {"type"}]
    rest = [member for member in members if set(member) != {"type"}]
    if not rest:
        return {"type": simple}
    if len(rest) == 1 and "properties" not in rest[0]:
        return {**rest[0], "type": [rest[0]["type"], *simple]}
    return {"anyOf": members}


_BASE64: Record = {"type": "string", "pattern": "^[A-Za-z0-9+/]*={0,2}$"}


def _special(keys: Record) -> Record:
    return {
        "if": {"type": "object", "required": [*keys], "maxProperties": len(keys)},
        "then": {"properties": keys},
    }


_COUNT = schema_of(Count)
_VALUE: Record = {
    "description": "Any JSON value; a struct is an object of its fields. An object with exactly "
    "the keys below is no struct but one of the special shapes.",
    "additionalProperties": {"$ref": "#/$defs/value"},
    "allOf": [
        _special(schema_of(UnavailableValue)["properties"]),
        _special({"text": {"type": "string"}, "length": _COUNT}),
        _special({"bytes": _BASE64}),
        _special({"bytes": _BASE64, "length": _COUNT}),
    ],
}
if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
