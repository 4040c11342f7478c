"""The lines of a trace, parsed and checked: a stranger may have written them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from virtrace.errors import TraceError
from virtrace.trace.format import (
    FORMAT,
    MAX_DEPTH,
    VERSION,
    Event,
    EventRecord,
    Header,
    Json,
    Record,
    is_deeper,
    unavailable,
)
from virtrace.trace.json_text import (
    BLANK,
    JSON_KEY,
    LONG_NUMBER,
    OUTLINE,
    RepeatedTexts,
    bounded_integer,
    parsed,
    parts_of_line,
    texts_of,
)
from virtrace.trace.schema import ShapeError, check
from virtrace.trace.upgrade import HeaderOfVersion1, UpgradedEvents, upgraded_header

_REWRITTEN = unavailable("another program wrote the line anew, and may have changed its text")
_TOO_DEEP = f"it has more than {MAX_DEPTH} levels of objects and arrays"


def parse(line: bytes) -> Record:
    # A number that is longer than any that C has would keep Python busy.
    outline = line.translate(OUTLINE)
    decode = _decode_bounded if LONG_NUMBER in outline else _decode
    try:
        # As json.loads does, which looks at each line for its encoding and for blanks first.
        text = line.strip(_BLANK).decode("utf-8", "surrogatepass")
        record, end = decode(text)
    except ValueError as error:
        raise ShapeError(str(error)) from error
    except RecursionError as error:
        raise ShapeError(_TOO_DEEP) from error
    if end != len(text):
        raise ShapeError("there is more after the JSON value")
    if not isinstance(record, dict):
        raise ShapeError("it is not a JSON object")
    # Most lines are too short for it, and are not counted through.
    is_suspect = len(line) > 2 * MAX_DEPTH and outline.count(b"{") > MAX_DEPTH
    if is_suspect and is_deeper(record, MAX_DEPTH):
        raise ShapeError(_TOO_DEEP)
    return record


class _JsonText(NamedTuple):
    """A text that its line has as it is, and what it says."""

    text: str
    document: Json


def parse_with_text(line: bytes, texts: RepeatedTexts) -> Record:
    """Parse a line of version 2. `json` in it is a _JsonText, unless the line was written anew.

    texts: of the lines before it.
    """
    # Most lines have none, and are not taken apart.
    parts = parts_of_line(line) if JSON_KEY in line else None
    if parts is not None:
        try:
            record, text = parse(parts[0]), parts[1].decode("utf-8", "surrogatepass")
            document = texts.parsed(text, parts[1])
            if document is not None:
                record["json"] = _JsonText(text, document)
                return record
        except ValueError:
            # `json` is a key of something else, as in a recipe.
            pass
    return parse(line)


def event_of(record: Record, roles: Mapping[str, str | None]) -> Event:
    try:
        event = Event.from_record(record, roles)
    except (KeyError, TypeError):
        # Says what is missing or wrong.
        check(record, EventRecord)
        raise
    kind, seq, t_ns, tid, name, span, parent, call, values, answers, _, _ = event
    # Compared here: check() would take as long as to read the line.
    if not (
        type(seq) is type(t_ns) is type(tid) is int
        and type(name) is str
        and type(values) is dict
        and (type(span) is int or (span is None and kind in ("point", "line")))
        and (parent is None or type(parent) is int)
        and (call is None or type(call) is int)
        and (answers is None or type(answers) is int)
    ):
        check(record, EventRecord)
        raise ShapeError("'span' is not an integer")
    return event


def completing(header: Header, version: int) -> Callable[[Event, Record], Event]:
    """Return what adds to each point of a trace what is not in the values of its record."""
    if version == 1:
        upgraded = UpgradedEvents().upgraded
        return lambda event, _: upgraded(event)
    texts = texts_of(header["recipe"])

    def completed(event: Event, record: Record) -> Event:
        name = texts.get(event.name)
        if name is None:
            return event
        if "json" in record:
            text, document = _text_and_document(record)
        else:
            text = event.values.get(name)
            document = parsed(text)
        if document is None:
            return event
        return event.with_json({**event.values, name: text, "json": document}, event.answers)

    return completed


def _text_and_document(record: Record) -> tuple[Json, Json]:
    """Return the text of a point that its record has without quotes, and what it says."""
    found, end = record["json"], record.get("json_end", "")
    text, document = found if isinstance(found, _JsonText) else (_REWRITTEN, found)
    if type(document) is not dict:
        raise ShapeError("'json' is not an object")
    if type(end) is not str or end.strip(BLANK):
        raise ShapeError("'json_end' is not blank")
    return text + end if isinstance(text, str) else text, document


_BLANK = BLANK.encode()
_decode = json.JSONDecoder().raw_decode
_decode_bounded = json.JSONDecoder(parse_int=bounded_integer).raw_decode


def header_of(line: bytes | None, path: str | Path) -> tuple[Header, int]:
    """Return the header in the newest version, and the version that the file has."""
    try:
        if line is None:
            raise ShapeError("it is empty or not JSON")
        record = parse(line)
        if record.get("type") != "header" or record.get("format") != FORMAT:
            raise ShapeError("its first line is not the header of one")
        version = record.get("version")
        if type(version) is not int or version < 1:
            raise ShapeError("its header has no version")
    except ShapeError as broken:
        raise TraceError(
            f"{path} is not a virtrace trace, or was cut short in its first line: {broken}",
            "name the .jsonl file that the trace was written to",
        ) from broken
    if version > VERSION:
        raise TraceError(
            f"{path} is a trace of format version {version}; "
            f"this virtrace understands version {VERSION}",
            f"use the virtrace that wrote it, or a newer one ({_writer(record)})",
        )
    try:
        return read_header(record), version
    except ShapeError as broken:
        raise TraceError(
            f"{path}:1: not the header of a trace: {broken}", "take a fresh copy of the file"
        ) from broken


def read_header(record: Record) -> Header:
    """Check the header of a trace, which may be a stranger's, and return it in the newest version.

    Raises: ShapeError, which says what is wrong with it.
    """
    if is_deeper(record, MAX_DEPTH):
        raise ShapeError(_TOO_DEEP)
    if record.get("version") == 1:
        check(record, HeaderOfVersion1)
        return upgraded_header(cast("HeaderOfVersion1", record))
    check(record, Header)
    return cast("Header", record)


def _writer(header: Record) -> str:
    tool = header.get("tool")
    version = tool.get("virtrace") if isinstance(tool, dict) else None
    return f"written by virtrace {version}" if version else "its header does not say which"
