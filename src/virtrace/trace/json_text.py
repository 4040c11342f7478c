"""Captured text that is JSON: stored as text alone, parsed where it is read."""

from __future__ import annotations

import json
import math

from virtrace.trace.format import MAX_DEPTH, Json, Record, is_deeper

# A trace has it a few levels deeper.
_MAX_DEPTH = MAX_DEPTH - 10
# A number that is longer than any that C has would keep Python busy.
LONGEST_NUMBER = 40
LONG_NUMBER = b"0" * (LONGEST_NUMBER + 1)
# Of a text, in one pass: every digit as 0, every bracket as {.
OUTLINE = bytes.maketrans(b"123456789[", b"000000000{")


def parsed(text: Json) -> Json | None:
    """Return the JSON value of a captured text; None if it is not JSON that a trace can hold."""
    if not isinstance(text, str):
        return None
    try:
        outline = text.encode("utf-8", "surrogatepass").translate(OUTLINE)
        value = (_decode_bounded if LONG_NUMBER in outline else _decode)(text)
        # Half of a surrogate pair, which only an escape can make: known by writing it.
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if outline.count(b"{") > _MAX_DEPTH and is_deeper(value, _MAX_DEPTH):
        return None
    return value


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
