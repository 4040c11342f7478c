"""A text that is JSON stands in its line as it was sent, and is read back byte for byte."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.support import samples
from tests.support.paths import DATA
from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engine.tracer import RawEvent
from virtrace.errors import TraceError
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Limits
from virtrace.trace.format import Json, Record
from virtrace.trace.json_text import RepeatedTexts, parsed
from virtrace.trace.reader import read_trace
from virtrace.trace.schema import schema
from virtrace.trace.writer import Writer

VALIDATOR = jsonschema_rs.Draft202012Validator(schema())
RECIPE = catalogue.find_recipe("blockinfo")
REAL = [
    event.values["text"]
    for event in read_trace(DATA / "version1" / "blockinfo.jsonl.gz").events
    if "json" in event.values
]
WITHOUT_QUOTES = [
    *REAL,
    '{"a":1}',
    '{"a":1}\r\n',
    "{}\n\n",
    '{ "a" :\t[1.50, 1e3, -0, 18446744073709551616] , "a" : "twice" } \t',
    '{"a":",\\"json\\":{}}","json":1,"b":{"x":0,"json":{}},"c":"\\u0000\\ud83d\\ude00\\\\"}',
    '{"é":"☃ \u2028 \U0001f600"}',
    '{"json_end":"}","json":{"json":{}}}',
]
IN_QUOTES = [
    '{"a":\n1}',
    '{"a":\r1}',
    ' {"a":1}',
    "[1]",
    '"text"',
    "7",
    "no JSON",
    '{"a":1},"seq":7,"x":{}',
    '{"a":1}}',
    '{"a":NaN}',
    '{"a":"\x01"}',
    '{"a":"\\ud800"}',
    '{"a":' + "1" * 50 + "}",
    '{"a":' * 250 + "1" + "}" * 250,
    "",
    '{"a":1',
]


class Nowhere:
    def banner(self, header: Any) -> None: ...
    def event(self, event: Any) -> None: ...
    def switched_off(self, record: Any) -> None: ...
    def summary(self, footer: Any) -> None: ...


def written(file: Path, values: Record) -> str:
    """Write one QMP command; return its line."""
    writer = Writer(file)
    output = Output(Answers(RECIPE.points), Limits(), writer, Nowhere())
    output.begin(samples.HEADER)
    output.take([RawEvent("point", 5, 7, "qmp.send", None, 1, 1, values)])
    writer.close()
    return file.read_text(encoding="utf-8").split("\n", 1)[1]


@pytest.mark.parametrize("text", [*WITHOUT_QUOTES, *IN_QUOTES], ids=lambda text: text[:24])
def test_every_text_comes_back_byte_for_byte(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.jsonl"
    line = written(file, {"mon": "0x1", "text": text})
    assert line.endswith("}\n")
    assert line.count("\n") == 1
    record = json.loads(line)
    VALIDATOR.validate(record)
    assert list(record) == [*list(record)[:8], "values", *list(record)[9:]]
    assert ("json" in record) == (text in WITHOUT_QUOTES)
    if "json" in record:
        assert f',"json":{text.rstrip()}}}\n' in line
        assert record["json"] == json.loads(text)
    [event] = read_trace(file).events
    document = parsed(text)
    said: Json = {} if document is None else {"json": document}
    assert event.values == {"mon": "0x1", "text": text, **said}
    assert event.to_record()["values"] == {"mon": "0x1", "text": text}


# What texts may have before and behind what they differ in.
BODIES = [
    *(re.split(',\\s*"id"', text)[0] for text in REAL),
    '{"a":1',
    '{"a":{"id":"x"}',
    '{"id":"x"',
    '{"id":"x","b":[1.5,{}]',
    '{"a":"b',
    '{"a":"\\ud800"',
    '{"a":"\\\\"',
    '{"a":"\\"',
    '{"a":1}',
    '{"a":[1',
    '{"a":1,',
    '{"a":NaN',
    '[{"a":1',
    "{",
    "",
    ' {"é":"☃"',
    '{"a":' + "1" * 50,
    '{"a":' * 250 + "1" + "}" * 249,
]
ENDS = [
    ',"id":"libvirt-1"}',
    ', "id": "libvirt-22"}\r\n',
    ',"id":"libvirt-1"}}',
    ',"id":"a\\"b"}',
    ',"id":""}',
    ',"id":7}',
    ', "id" : "x" } ',
    '\\"a,"id":"x"}',
    '","id":"x"}',
    ',"id":"x"}\n{}',
    "",
]


def test_a_text_that_comes_again_is_parsed_as_if_it_were_new() -> None:
    """With another id, or not; be it JSON or not."""
    texts = RepeatedTexts()
    chance, shared = random.Random(7), 0
    for _ in range(3000):
        text = chance.choice(BODIES) + chance.choice(ENDS)
        document = texts.parsed(text)
        expected = parsed(text)
        assert json.dumps(document) == json.dumps(expected), text
        again = texts.parsed(text)
        assert json.dumps(again) == json.dumps(expected), text
        if isinstance(document, dict) and isinstance(again, dict):
            shared += any(
                one is again[key] for key, one in document.items() if isinstance(one, (dict, list))
            )
    assert shared > 100
    assert texts.parsed({"unavailable": "why"}) is None


def test_no_more_is_kept_than_a_few_answers() -> None:
    texts = RepeatedTexts()
    for number in range(200):
        assert texts.parsed('{"a":"%s","id":"x"}' % (str(number) * 20_000)) is not None
        assert texts.kept <= 1 << 20
    assert texts.kept > 0


def test_beside_an_object_a_text_keeps_its_quotes(tmp_path: Path) -> None:
    """An inner object could have a key `json`, where the text seems to begin."""
    values: Record = {"mon": {"a": 1, "json": {"b": 2}}, "text": '{"c":3}'}
    file = tmp_path / "t.jsonl"
    assert json.loads(written(file, {**values}))["values"] == values
    assert read_trace(file).events[0].values == {**values, "json": {"c": 3}}


def test_a_text_of_a_line_that_was_written_anew_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    record = json.loads(written(file, {"mon": "0x1", "text": '{"a" : 1}\r\n'}))
    header = file.read_text().split("\n", 1)[0]
    for line in (json.dumps(record), json.dumps({**record, "more": 1}, separators=(",", ":"))):
        file.write_text(f"{header}\n{line}\n")
        [event] = read_trace(file).events
        assert event.values["json"] == {"a": 1}
        assert event.values["text"] == {
            "unavailable": "another program wrote the line anew, and may have changed its text"
        }


@pytest.mark.parametrize("change", [{"json": 1}, {"json": "{}"}, {"json": {}, "json_end": "x"}])
def test_another_kind_of_text_is_damage(tmp_path: Path, change: Record) -> None:
    file = tmp_path / "t.jsonl"
    record = {**json.loads(written(file, {"mon": "0x1", "text": "no JSON"})), **change}
    for separators in ((",", ":"), (", ", ": ")):
        lines = [samples.HEADER, record]
        file.write_text("".join(json.dumps(each, separators=separators) + "\n" for each in lines))
        with pytest.raises(TraceError, match=r"'json(_end)?' is not"):
            read_trace(file)


def test_whatever_is_read_of_a_damaged_line_is_what_json_says(tmp_path: Path) -> None:
    """A part of the line is never taken for another: any reader of JSON sees the same."""
    file = tmp_path / "t.jsonl"
    text = '{"return":{"json":{"a":"b,\\"json\\":{}"},"c":[1,2]},"id":"libvirt-1"}\r\n'
    line = written(file, {"mon": "0x1", "text": text}).encode()
    header = file.read_bytes().split(b"\n", 1)[0]
    chance, seen = random.Random(7), 0
    pieces = (b',"json":', b'"', b"}", b"{", b",", b"\\", b"]", b'"values":{', b"\n", b" ", b"0")
    for _ in range(3000):
        at, end = sorted(chance.randrange(len(line)) for _ in range(2))
        end = min(end, at + chance.choice((0, 0, 1, 5)))
        damaged = line[:at] + chance.choice(pieces) * chance.choice((0, 1, 1, 2)) + line[end:]
        file.write_bytes(b"%b\n%b" % (header, damaged))
        try:
            [event] = read_trace(file).events
        except (TraceError, ValueError):
            continue
        if "json" in event.values and isinstance(event.values["text"], str):
            record = json.loads(damaged)
            assert event.values["json"] == record.get("json", event.values["json"])
            assert json.loads(event.values["text"]) == event.values["json"]
            seen += 1
    assert seen > 300
