"""Captured text that is JSON: in the trace once, as it is, and parsed where it is read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from virtrace.trace.format import MAX_DEPTH, Json, Record, is_deeper

# A trace has it a few levels deeper.
_MAX_DEPTH = MAX_DEPTH - 10
# A number that is longer than any that C has would keep Python busy.
LONGEST_NUMBER = 40
LONG_NUMBER = b"0" * (LONGEST_NUMBER + 1)
# Of a text, in one pass: every digit as 0, every bracket as {.
OUTLINE = bytes.maketrans(b"123456789[", b"000000000{")
# What may stand around JSON.
BLANK = " \t\r\n"
# The last member of an object, if the text is one up to here: within a string the quotes would be
# escaped.
_ID = re.compile(r',[ ]?"id":[ ]?"([\w-]+)"\}[ \t\r\n]*\Z', re.ASCII)
_ID_ROOM = 64
# Characters of the texts that are known, in all.
_MOST_KEPT = 1 << 20
# Before the text, which is the last member of its line. In a string `"` is escaped, so that this is
# a key wherever it is found.
JSON_KEY = b',"json":'


def parsed(text: Json, raw: bytes | None = None) -> Json | None:
    """Return the JSON value of a captured text; None if it is not JSON that a trace can hold.

    raw: the text in UTF-8, if it is at hand.
    """
    if not isinstance(text, str):
        return None
    try:
        outline = (raw or text.encode("utf-8", "surrogatepass")).translate(OUTLINE)
        value = (_decode_bounded if LONG_NUMBER in outline else _decode)(text)
        # Half of a surrogate pair, which only an escape can make: known by writing it.
        if "\\" in text and "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if outline.count(b"{") > _MAX_DEPTH and is_deeper(value, _MAX_DEPTH):
        return None
    return value


class RepeatedTexts:
    """Parses texts that differ in nothing but the id at their end, as answers of a QEMU mostly do.

    kept: characters of those that are known. What is returned may share parts with other values.
    """

    def __init__(self) -> None:
        # By the text up to the id. The one that was wanted last is the last one.
        self._known: dict[str, dict[str, Json]] = {}
        self.kept = 0

    def parsed(self, text: Json, raw: bytes | None = None) -> Json | None:
        """As ``parsed``."""
        end = _ID.search(text, max(0, len(text) - _ID_ROOM)) if isinstance(text, str) else None
        if not isinstance(text, str) or end is None or end.start() > _MOST_KEPT:
            return parsed(text, raw)
        body = text[: end.start()]
        known = self._known.pop(body, None)
        if known is None:
            found = parsed(f"{body}}}")
            if not isinstance(found, dict) or not found:
                return parsed(text, raw)
            known = found
            self.kept += len(body)
            while self.kept > _MOST_KEPT:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self.kept -= len(oldest)
        self._known[body] = known
        return {**known, "id": end[1]}


def without_quotes(record: Record, name: str) -> Record:
    """Return the record of an event whose text of this name was parsed, as ``to_line`` takes it.

    A text that is an object in one line is under `json` as bytes; any other stays in `values`.
    """
    values = record["values"]
    text = values[name]
    document = text.rstrip(BLANK)
    # Before the text there must be no other key `json`, which only an inner object could have.
    is_first = not any(isinstance(one, (dict, list)) for one in values.values())
    if not is_first or not document.startswith("{") or "\n" in document or "\r" in document:
        return record
    try:
        raw = document.encode()
    except UnicodeEncodeError:
        return record
    placed = {**record, "values": {key: one for key, one in values.items() if key != name}}
    if len(document) < len(text):
        placed["json_end"] = text[len(document) :]
    placed["json"] = raw
    return placed


def to_line(record: Mapping[str, Any]) -> bytes:
    """Return the line of a record."""
    raw = record.get("json")
    if not isinstance(raw, bytes):
        # Half of a character, or a byte of a name that is no UTF-8, is in a string: an escape.
        return f"{_encode(record)}\n".encode("utf-8", "backslashreplace")
    head = to_line({key: value for key, value in record.items() if key != "json"})
    return b"%b%b%b}\n" % (head.removesuffix(b"}\n"), JSON_KEY, raw)


def parts_of_line(line: bytes) -> tuple[bytes, bytes] | None:
    """Part a line into the record without its text, and the text; None if it has no such text."""
    at, end = line.find(JSON_KEY), line.rstrip()
    if at < 0 or not end.endswith(b"}"):
        return None
    return line[:at] + b"}", end[at + len(JSON_KEY) : -1]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a JSON number")
    return number


def bounded_integer(digits: str) -> int:
    """Convert digits. Raises: ValueError if there are too many to be a number of C."""
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


# What it gets is a tree: looking for circles would take a fifth of the time.
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=_finite, parse_float=_finite).decode
_decode_bounded = json.JSONDecoder(
    parse_constant=_finite, parse_float=_finite, parse_int=bounded_integer
).decode


def texts_of(recipe: Record) -> dict[str, str]:
    """Return the name of the captured JSON text of each point that has one, by the point's name.

    recipe: as in a header, which can come from a stranger.
    """
    points = recipe.get("points")
    return {
        point["name"]: point["json"]
        for point in (points if isinstance(points, list) else ())
        if isinstance(point, dict)
        and isinstance(point.get("name"), str)
        and isinstance(point.get("json"), str)
    }
