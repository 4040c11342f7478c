"""Records of the trace file, format version 1.

One JSON object a line: a header, events, a footer. Integers are JSON integers of any
size, pointers are strings ``"0x.."``; the other shapes a value can take are built by the
functions below, and only by them.
"""

from __future__ import annotations

import base64
from operator import itemgetter
from typing import Any, NamedTuple

FORMAT = "virtrace-trace"
VERSION = 1

# A JSON value; typing it exactly would need recursion that mypy's strict mode makes noisy.
Json = Any
Record = dict[str, Any]

# Of a `lost` event: why no return of the function was seen.
ENDED = "the trace ended before its return"
SWITCHED_OFF = "a probe was switched off before its return"
ROTATED = "the file was full before its return: the recording goes on in the next one"

# Levels of objects and arrays in a line. What walks over them takes up to three calls a level, of
# the thousand that Python has room for.
MAX_DEPTH = 250

LEVELS = ("dwarf", "pack", "symbol", "inferred", "usdt", "missing")


class Event(NamedTuple):
    """One thing that happened.

    type: enter, exit, point, line or lost. seq: its place in the file, from 0.
    t_ns: monotonic nanoseconds since the trace started. tid: the kernel's thread id.
    name: the probe. span: of enter and exit. parent: the span it happened in.
    call: the span of the outermost traced API call, None outside of one.
    """

    type: str
    seq: int
    t_ns: int
    tid: int
    name: str
    span: int | None
    parent: int | None
    call: int | None
    values: Record

    def to_record(self) -> Record:
        return self._asdict()

    @classmethod
    def from_record(cls, record: Record) -> Event:
        """KeyError where a key of version 1 is absent; keys added later are ignored."""
        return cls._make(_PARTS(record))


_PARTS = itemgetter(*Event._fields)


def as_argument(value: Json) -> str:
    """A value as the argument of a command has it, where bytes that are no text are, too."""
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return base64.b64decode(value["bytes"]).decode("utf-8", "surrogateescape")
    return str(value)


def pointer(address: int) -> str:
    return f"{address:#x}"


def unavailable(reason: str) -> Record:
    return {"unavailable": reason}


def is_unavailable(value: Json) -> bool:
    return isinstance(value, dict) and set(value) == {"unavailable"}


def is_deeper(value: Json, most: int) -> bool:
    """Whether objects and arrays are nested in more levels than that. Not recursive itself."""
    level = [value]
    for _ in range(most + 1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [
            inner for one in level for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return True


def text(raw: bytes, length: int | None = None) -> Json:
    """A C string as it stood in memory, without its NUL.

    length: the whole string's length in bytes, where ``raw`` is only its beginning.
    Text that is not UTF-8 becomes base64; a cut never splits a character.
    """
    if length is None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return {"bytes": base64.b64encode(raw).decode("ascii")}
    for cut in range(4):
        try:
            return {"text": raw[: len(raw) - cut].decode("utf-8"), "length": length}
        except UnicodeDecodeError:
            continue
    return {"bytes": base64.b64encode(raw).decode("ascii"), "length": length}
