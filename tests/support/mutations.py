"""How data is mutated: JSON by its structure, and any bytes. All of it is drawn from a seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

from virtrace.trace.reader import Trace

ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 10**39, 10**400, 0.5, 1e308,
    -1e-308, float("nan"), float("inf"), "", "0x0", "-0x1", "0x" + "f" * 300, "x" * 5000,
    "\ud800", "a\udfffb", "\x00", "\x00\x1b[2J", "\u202e\u2066", "\u0301" * 50, "\U0001f469\u200d",
    "\r\n", "\u2028", [], {}, [[]], [None], {"": {}}, {"unavailable": 7}, {"unavailable": "\x00"},
    {"text": 1, "length": ""}, {"text": "a", "length": 2**70}, {"bytes": "!"},
    {"from": [], "to": {}}, "json:{", 'json:{"file": 7}', "<domain/>", "<a", "/" * 300,
    "../../etc/passwd", "://", "nbd://[::1", "'", '"', "-", "=,=,", "%", "%s%n", "{}", "[1]",
    "1970-01-01", "9999-12-31T23:59:59+14:00", "qmp.send", "qmp.reply", "error", "rpc.reply",
]  # fmt: skip
KEYS = ["", "0x", "a b", "\u202e", "\x00", "\ud800", "x" * 300, "unavailable", "text", "bytes",
        "length", "result", "json", "type", "id", "domain", "disk", "info", "name", "mon",
        "a.b", "a[0]", "__class__", "<<", "{{7*7}}"]  # fmt: skip
# What json.dumps cannot write is written under such a name, and put in afterwards.
_DEEP = "@deep@"
_DEPTHS = (20, 100, 250, 450, 700, 900, 2000, 100_000)
_MANY = (10, 10, 300, 300, 3000, 3000, 100_000)
# Of what is made very long, in bytes: far more than a real one has, and read in a second or two.
_LARGEST = 2 << 20


def structure(document: Any, rng: Random) -> bytes:
    """JSON text of the document, which is changed in one to five places."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        document = _changed(document, rng)
    text = json.dumps(document)
    if rng.random() < 0.05:
        text = _doubled(text, rng)
    if _DEEP in text:
        text = text.replace(f'"{_DEEP}"', _deep(rng, _LARGEST // text.count(_DEEP)))
    return text.encode("utf-8")


def _deep(rng: Random, most: int) -> str:
    """most: characters, or the least depth."""
    depth = rng.choice([depth for depth in _DEPTHS if depth * 20 < most] or _DEPTHS[:1])
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"unavailable":', "}]")))
    inner = rng.choice(("1", '"x"', '{"unavailable":"x"}', "[]"))
    return opened * depth + inner + closed * depth


def _doubled(text: str, rng: Random) -> str:
    """A key that stands there twice."""
    places = [at for at in range(len(text)) if text.startswith('{"', at)]
    if not places:
        return text
    at = rng.choice(places) + 1
    key = text[at : text.find('"', at + 1) + 1]
    return f"{text[:at]}{key}: {json.dumps(rng.choice(ODD))}, {text[at:]}"


def odd(rng: Random) -> Any:
    return copy.deepcopy(rng.choice(ODD))


def _changed(document: Any, rng: Random) -> Any:
    """A change in place, somewhere below; or of the whole."""
    holder: Any = None
    key: Any = None
    place = document
    while isinstance(place, (dict, list)) and place:
        holder, key = place, rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        place = holder[key]
        if rng.random() < 0.25:
            break
    if holder is None:
        return odd(rng)
    _change(holder, key, rng)
    return document


def _change(holder: Any, key: Any, rng: Random) -> None:
    place = holder[key]
    kind = rng.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25 and isinstance(holder, dict):
        holder[rng.choice(KEYS)] = rng.choice((place, odd(rng)))
    elif kind < 0.29:
        holder[key] = _DEEP
    elif kind < 0.32:
        holder[key] = _many(place, rng)
    elif kind < 0.36:
        holder[key] = rng.choice(([place], {"a": place}, [place, place], {key: place}))
    elif kind < 0.45 and isinstance(place, (int, float)):
        holder[key] = rng.choice((place + 1, place - 1, -place, place * 10**9, str(place)))
    elif kind < 0.50 and isinstance(place, str):
        holder[key] = _text(place, rng)
    else:
        like = [odd for odd in ODD if type(odd) is type(place)]
        holder[key] = copy.deepcopy(rng.choice(like if like and rng.random() < 0.6 else ODD))


def _many(place: Any, rng: Random) -> Any:
    """Very many of something, or something very long."""
    count = rng.choice(_MANY)
    if isinstance(place, str) or rng.random() < 0.3:
        text = place if isinstance(place, str) and place else rng.choice(("x", "\u202e", "a b"))
        return text * (count * rng.choice((1, 10)) // len(text) + 1)
    if rng.random() < 0.5:
        return {f"k{number}": place for number in range(min(count, _LARGEST // _size(place)))}
    return [place] * min(count, _LARGEST // _size(place))


def _size(place: Any) -> int:
    return len(json.dumps(place)) + 20


def _text(place: str, rng: Random) -> str:
    at = rng.randrange(len(place) + 1)
    new = rng.choice([each for each in ODD if isinstance(each, str)])
    return rng.choice((place[:at], place[:at] + new + place[at:], place[at:], place.upper()))


def raw(data: bytes, rng: Random) -> bytes:
    """Any bytes, as they are damaged or forged without knowing what they mean."""
    change: Callable[[bytes, Random], bytes] = rng.choice(
        (_bits, _bits, _cut, _spliced, _inserted, _number)
    )
    return change(data, rng)


def _bits(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _spliced(data: bytes, rng: Random) -> bytes:
    """A piece of it taken out, or once more somewhere else."""
    start, at = rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)
    piece = data[start : start + rng.choice((1, 10, 300, 5000))]
    if rng.random() < 0.5:
        return data.replace(piece, b"", 1)
    return data[:at] + piece * rng.choice((1, 1, 2, 50)) + data[at:]


def _inserted(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    odd = rng.choice((b"\n", b"\0", b'"', b"{", b"}", b"[", b",", b"\xff\xfe", b"\xed\xa0\x80",
                      b"\r", b"\n\n", b"-", b"\\u0000", b"\\ud800", rng.randbytes(40),
                      b"[" * 100_000, b" " * 100_000, b"x" * 1_000_000))  # fmt: skip
    return data[:at] + odd + data[at:]


def _number(data: bytes, rng: Random) -> bytes:
    """Another number, or what is none of JSON, in place of a value."""
    start = data.find(b":", rng.randrange(len(data) + 1)) + 1
    ends = [end for end in (data.find(b",", start), data.find(b"}", start)) if end > 0]
    digits = rng.choice((b"9" * 30, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"-Infinity",
                         b"1" + b"0" * 4000, b"-0", b"1.5", b"0" * 50, b"1E5"))  # fmt: skip
    return data[:start] + digits + data[min(ends, default=start) :]


def lines(data: bytes, rng: Random) -> bytes:
    """The order of lines, and how many there are."""
    found = data.splitlines(keepends=True)
    if not found:
        return data
    one, other = rng.randrange(len(found)), rng.randrange(len(found))
    few, many = rng.choice((1, 20)), rng.choice((100, 100, 100, 3000))
    few, many = min(few, _LARGEST // len(data)), min(many, _LARGEST // len(found[other]))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: found.pop(one),
        lambda: found.insert(one, found[other]),
        lambda: found.insert(one, b"\n"),
        lambda: found.insert(one, rng.randbytes(40) + b"\n"),
        lambda: found.reverse(),
        lambda: rng.shuffle(found),
        lambda: found.sort(),
        lambda: found.__setitem__(slice(one, one), found * few),
        lambda: found.__setitem__(slice(one, one), [found[other]] * many),
    )
    rng.choice(changes)()
    return b"".join(found)


def a_line(
    data: bytes, rng: Random, pick: Callable[[list[bytes]], list[int]], below: str | None = None
) -> bytes:
    """One line of JSON changed by its structure. pick: which lines it may be.

    below: only the value of this key, where there is one.
    """
    found = data.splitlines()
    choice = pick(found)
    if not choice:
        return data
    index = rng.choice(choice)
    try:
        document = json.loads(found[index])
        if below is None or not isinstance(document, dict) or below not in document:
            found[index] = structure(document, rng)
        else:
            # Written apart, as what is changed may be what json.dumps cannot write.
            changed = structure(document[below], rng)
            whole = json.dumps({**document, below: "@below@"}).encode()
            found[index] = whole.replace(b'"@below@"', changed)
    except (ValueError, RecursionError):
        return data
    return b"\n".join(found) + b"\n"


def take_away(trace: Trace, chance: Random) -> None:
    """Leave out some of the events of a trace, and some of what is in their values."""
    events = []
    for event in trace.events:
        values = _smaller(event.values, chance)
        values = values if isinstance(values, dict) else {}
        if chance.random() > 0.05:
            events.append(event._replace(values=values))
    trace.events[:] = events


def _smaller(value: Any, chance: Random) -> Any:
    """A copy of JSON in which something is missing, or is another thing."""
    if chance.random() < 0.02:
        return chance.choice([None, {}, [], "text", -1, {"unavailable": "why"}, True])
    if isinstance(value, dict):
        kept = ((key, inner) for key, inner in value.items() if chance.random() > 0.03)
        return {key: _smaller(inner, chance) for key, inner in kept}
    if isinstance(value, list):
        return [_smaller(inner, chance) for inner in value if chance.random() > 0.05]
    return value
