"""Captures of every kind of value, at each level that can read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import Daemon, events, trace, values
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace

HEAD = "virtrace: 1\nname: values\nabout: a\ntry: t\nspans:\n"
VALUES = (
    HEAD
    + """
- prototype: >-
    bool virTestValues(struct values *values, virErrorNumber color, bool yes, const char *text)
  module: libvirt.so.0
  root: true
  enter:
    all: '*values'
    color: color
    yes: yes
    text: text
    member: values->color
    number: values->nested.number
    inside: values->nested.text
    nested: values->nested
    numbers: values->numbers
    plain: values->text
    latin1: values->latin1
    at_page_end: values->at_page_end
    page_long: values->page_long
    nothing: values->null
    wild: values->wild
    next: values->next->text
    next_of_next: values->next->next->text
    bits: values->low
    real: values->real
    absent: values->absent
    too_far: '**values'
  exit: {result: return}
"""
)
MANY = (
    HEAD
    + """
- prototype: long long virTestMany(int a, int b, int c, int d, int e, int f, int g, size_t h)
  module: libvirt.so.0
  root: true
  enter: {a: a, f: f, g: g, h: h}
- prototype: int virTestScale(double factor, int count)
  module: libvirt.so.0
  optional: true
  root: true
  enter: {factor: factor, count: count}
  exit: {result: return}
- prototype: int virTestByValue(struct pair pair, int count)
  module: libvirt.so.0
  optional: true
  root: true
  enter: {pair: pair, count: count}
- prototype: struct triple virTestTriple(int count)
  module: libvirt.so.0
  optional: true
  root: true
  enter: {count: count}
  exit: {result: return}
"""
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def to_file(text: str) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return str(file)

    return to_file


@pytest.mark.parametrize("variant", ["optimized", "plain"])
def test_with_debug_info(
    daemons: Callable[[str], Daemon],
    tmp_path: Path,
    write: Callable[[str], str],
    variant: str,
) -> None:
    found, [answers] = trace(daemons(variant), tmp_path / "t.jsonl", "values", recipe=write(VALUES))
    assert answers == ["1", "0"]
    first, second = (event.values for event in events(found, "virTestValues", "enter"))

    whole = first.pop("all")
    for name in ("text", "latin1", "at_page_end", "page_long", "wild", "next"):
        assert whole.pop(name).startswith("0x")
    assert whole.pop("nested").pop("number") == -5000000000
    for name in ("low", "high", "real"):
        assert is_unavailable(whole.pop(name))
    assert whole == {
        "color": -1,
        "yes": True,
        "small": -3,
        "numbers": [1, -2, 3, -4],
        "null": "0x0",
    }

    assert first.pop("nested")["number"] == -5000000000
    assert first.pop("at_page_end") == "at end!"
    page_long = first.pop("page_long")
    assert page_long == "e" * 4088 + "at end!"
    reasons = {name: first.pop(name)["unavailable"] for name in (
        "nothing", "wild", "next_of_next", "bits", "real", "absent", "too_far",
    )}  # fmt: skip
    assert first == {
        "color": 5,
        "yes": True,
        "text": "grüße",
        "member": -1,
        "number": -5000000000,
        "inside": "inside",
        "numbers": [1, -2, 3, -4],
        "plain": "plain",
        "latin1": {"bytes": "Y2Fm6Q=="},
        "next": "next",
    }
    assert reasons["nothing"] == reasons["next_of_next"] == "NULL pointer"
    assert reasons["wild"] == "cannot read memory at 0x10"
    assert "bit field" in reasons["bits"]
    assert "double" in reasons["real"]
    assert reasons["absent"] == "values->absent: no member 'absent' there"
    assert reasons["too_far"] == "**values: goes through something that is not a pointer"

    # Nothing but memory that is not mapped follows the text.
    assert second["at_page_end"]["unavailable"].startswith("cannot read memory at 0x7")
    assert second["page_long"]["unavailable"].startswith("cannot read memory at 0x7")
    assert second["plain"] == {"unavailable": "NULL pointer"}
    assert second["next"] == {"unavailable": "NULL pointer"}
    assert (second["color"], second["yes"], second["text"]) == (-1, False, "again")
    assert [event.values for event in events(found, "virTestValues", "exit")] == [
        {"result": True},
        {"result": False},
    ]


def test_stripped(
    daemons: Callable[[str], Daemon], tmp_path: Path, write: Callable[[str], str]
) -> None:
    found, _ = trace(daemons("stripped"), tmp_path / "t.jsonl", "values", recipe=write(VALUES))
    first = events(found, "virTestValues", "enter")[0].values
    known = {name: first.pop(name) for name in ("color", "yes", "text")}
    assert known == {"color": 5, "yes": True, "text": "grüße"}
    for name, value in first.items():
        assert is_unavailable(value), name
    assert first["all"] == {"unavailable": "*values: the layout of values is not known"}
    assert [event.values for event in events(found, "virTestValues", "exit")] == [
        {"result": True},
        {"result": False},
    ]


@pytest.mark.parametrize(
    ("variant", "declared"),
    [
        ("optimized", False),
        ("plain", False),
        ("optimized", True),
        ("plain", True),
        ("stripped", True),
    ],
)
def test_arguments_that_are_not_in_the_registers_for_integers(
    daemons: Callable[[str], Daemon],
    tmp_path: Path,
    write: Callable[[str], str],
    variant: str,
    declared: bool,
) -> None:
    """Right, unavailable, or the whole probe missing, but never another register's contents."""
    text = MANY if declared else re.sub(r"prototype: .*?(\w+)\(.*\)", r"function: \1", MANY)
    found, [answers] = trace(daemons(variant), tmp_path / "t.jsonl", "many", recipe=write(text))
    assert answers == ["8000000014", "105", "3043", "44 45 46"]
    assert values(found, "virTestMany", "enter") == {"a": 1, "f": 6, "g": -7, "h": 8000000000}

    assert allowed(found, "virTestScale", "enter", "count") <= {42}
    assert allowed(found, "virTestScale", "enter", "factor") == set()
    assert allowed(found, "virTestScale", "exit", "result") <= {105}
    assert allowed(found, "virTestByValue", "enter", "count") <= {43}
    assert allowed(found, "virTestByValue", "enter", "pair") == set()
    assert allowed(found, "virTestTriple", "enter", "count") <= {44}
    assert allowed(found, "virTestTriple", "exit", "result") == set()
    if not declared:
        # Debug info knows better than a declaration.
        assert allowed(found, "virTestScale", "enter", "count") == {42}
        assert allowed(found, "virTestTriple", "enter", "count") == {44}


def allowed(found: Trace, probe: str, kind: str, name: str) -> set[Any]:
    """The value, where it is known; else nothing, and there is a reason."""
    (about,) = (record for record in found.header["probes"] if record["name"] == probe)
    if about["level"] == "missing":
        assert about["why"]
        return set()
    value = values(found, probe, kind)[name]
    return set() if is_unavailable(value) else {str(value) if isinstance(value, dict) else value}
