"""The schema says of a trace what the reader reads, and is at least as strict."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support import samples
from tests.support.documents import documented_names, keys
from tests.support.paths import DATA, REPOSITORY
from virtrace.analysis.explain.trace import explain_trace
from virtrace.errors import TraceError
from virtrace.trace import format as trace_format
from virtrace.trace.reader import read_trace
from virtrace.trace.schema import schema

VALIDATOR = jsonschema_rs.Draft202012Validator(schema())
VERSION_1 = jsonschema_rs.Draft202012Validator(schema(1))


def test_is_a_valid_schema() -> None:
    for version in (1, 2):
        jsonschema_rs.meta.validate(schema(version))


def test_the_file_is_made_from_the_types() -> None:
    """It is made by `python -m virtrace.trace.schema`."""
    file = Path(trace_format.__file__).with_name("schema.json")
    assert json.loads(file.read_text(encoding="utf-8")) == schema()


@pytest.mark.parametrize("error", [None, "no such disk"])
def test_accepts_the_sample(error: str | None) -> None:
    for record in samples.records(error=error):
        VALIDATOR.validate(record)


def test_accepts_lost_line_and_every_shape_of_value() -> None:
    event = samples.records()[1]
    shapes = {
        "unavailable": trace_format.unavailable("optimized out"),
        "bytes": trace_format.text_value(b"\xff\xfe"),
        "cut": trace_format.text_value(b"abc", 10),
        "cut_bytes": trace_format.text_value(b"\xff" * 10, 20),
        "pointer": trace_format.pointer(0x7F00),
        "struct": {"capacity": 2**64, "inner": trace_format.unavailable("outside of memory")},
        "null": None,
    }
    VALIDATOR.validate({**event, "type": "line", "span": None, "values": shapes})
    VERSION_1.validate({**event, "values": {**shapes, "json": {"bytes": 7}}})
    VALIDATOR.validate({**event, "type": "lost", "values": {"why": "its thread ended"}})


def test_accepts_what_was_switched_off() -> None:
    record = {"type": "switched-off", "t_ns": 5, "name": "f", "kind": "line", "why": "too dear"}
    VALIDATOR.validate(record)
    for key in ("t_ns", "name", "kind", "why"):
        assert not VALIDATOR.is_valid({**record, key: []})


def test_is_open_to_what_later_versions_add() -> None:
    for record in samples.records():
        VALIDATOR.validate({**record, "new": 1})
    VALIDATOR.validate({"type": "marker"})


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"disk": {"unavailable": 0}}},
        {"values": {"disk": {"unavailable": ""}}},
        {"values": {"info": {"capacity": {"unavailable": None}}}},
        {"values": {"disk": {"bytes": "not base64!"}}},
        {"values": {"disk": {"text": "abc", "length": -1}}},
        {"t_ns": -1},
        {"type": 5},
    ],
)
def test_rejects_wrong_values(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid({**samples.records()[1], **change})


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (0, {"version": 1}),
        (0, {"version": 3}),
        (0, {"format": "other"}),
        (-1, {"reason": "bored"}),
    ],
)
def test_rejects_wrong_header_and_footer(index: int, change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid({**samples.records()[index], **change})


def _mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(what was done, copy of value) with each key in turn left out, or of a wrong type."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        if isinstance(value, dict):
            without = copy.deepcopy(value)
            del without[key]
            yield f"without {(*path, key)}", without
        wrong: Any
        for wrong in (None, True, 1.5, [], {}, "text"):
            changed = copy.deepcopy(value)
            changed[key] = wrong
            yield f"{(*path, key)} = {wrong!r}", changed
        if isinstance(inner, (dict, list)) and key not in ("values", "recipe"):
            for what, changed_inner in _mutations(inner, (*path, key)):
                changed = copy.deepcopy(value)
                changed[key] = changed_inner
                yield what, changed


def test_reader_and_schema_hold_together(tmp_path: Path) -> None:
    """Whatever the reader refuses, the schema refuses; the schema may know more."""
    records = samples.records()
    enter = records[1]
    point = next(record for record in records if record["type"] == "point")
    file = tmp_path / "t.jsonl"
    refused = 0
    for place, original in ((0, records[0]), (1, enter), (1, point), (2, records[-1])):
        for what, record in _mutations(original):
            if record.get("type") != original["type"]:
                continue  # another type of record, or none that is known
            lines = [records[0], enter, records[-1]]
            lines[place] = record
            samples.write(file, lines)
            try:
                read_trace(file)
            except TraceError:
                refused += 1
                assert not VALIDATOR.is_valid(record), what
    assert refused > 200


def test_every_key_is_documented() -> None:
    documented_as_shapes = {"unavailable", "length", "bytes", "text"}
    assert set(keys(schema())) - documented_as_shapes <= documented_names("trace-format.md")


RELEASED = DATA / "released"
CHANGELOG = REPOSITORY / "CHANGELOG.md"


@pytest.mark.parametrize(
    "version", re.findall(r"^## ([\d.]+)", CHANGELOG.read_text(), flags=re.MULTILINE)
)
def test_a_trace_of_every_released_version_is_read(version: str) -> None:
    file = RELEASED / f"{version}.jsonl"
    trace = read_trace(file)
    assert trace.header["tool"]["virtrace"] == version
    assert trace.problems == []
    for line in file.read_text().splitlines():
        (VERSION_1 if version == "0.1.0" else VALIDATOR).validate(json.loads(line))
    [explained] = explain_trace(trace, str(file))
    assert [finding.cause.name for finding in explained.answers] == ["high-water-mark"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (trace_format.text_value(b"abc"), True),
        (trace_format.text_value(b"abc", 10), True),
        (trace_format.text_value(b"\xff"), True),
        (trace_format.text_value(b"\xff" * 10, 20), True),
        (trace_format.unavailable("why"), True),
        (trace_format.pointer(4096), False),
        (7, False),
        # Structs without a field, and with fields of these names.
        ({}, False),
        ({"text": "abc"}, False),
        ({"text": "abc", "bytes": "YWJj"}, False),
    ],
)
def test_what_a_value_is(value: object, expected: bool) -> None:
    assert trace_format.is_text(value) is expected
