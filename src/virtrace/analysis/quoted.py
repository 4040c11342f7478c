"""Values with their place in the trace, so that what is said of them can be looked up."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple, Union

from virtrace.trace.format import Json

_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")

Key = Union[str, int]


@functools.lru_cache(maxsize=1024)
def step(key: Key) -> str:
    """Write one step of a path for jq: ``.name``, ``["odd name"]``, ``[3]``."""
    if isinstance(key, int):
        return f"[{key}]"
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f".{key}" if _IDENTIFIER.fullmatch(key) else f'["{quoted}"]'


class Quoted(NamedTuple):
    """A value in the trace.

    where: the function or QMP command that returned it.
    seq: its event.
    keys: path in the event's ``values``.

    >>> reply = Quoted({"return": [{"node-name": "n1"}]}, "query-block", 18, ("json",))
    >>> reply.get("return", 0, "node-name").path
    '.json.return[0]["node-name"]'
    """

    value: Json
    where: str
    seq: int
    keys: tuple[Key, ...] = ()

    @property
    def path(self) -> str:
        """Its path in the event's ``values``, for jq."""
        return "".join(map(step, self.keys))

    def get(self, *keys: Key) -> Quoted | None:
        """Return the value below these keys; None if there is none."""
        value = self.value
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
        return Quoted(value, self.where, self.seq, self.keys + keys)

    def number(self, *keys: Key) -> Quoted | None:
        """Return the value below these keys if it is an integer, else None."""
        found = self.get(*keys)
        return found if found is not None and type(found.value) is int else None

    def text(self, *keys: Key) -> str | None:
        found = self.get(*keys)
        return found.value if found is not None and isinstance(found.value, str) else None

    def items(self) -> Iterator[Quoted]:
        """Yield the elements of an array; nothing for any other value."""
        for index in range(len(self.value) if isinstance(self.value, list) else 0):
            found = self.get(index)
            assert found is not None
            yield found


class Evidence(NamedTuple):
    """A statement that the trace supports.

    value: in bytes, if the statement is about a value.
    seq, path: as in a lineage; seq is None if no event supports it.
    """

    text: str
    value: int | None = None
    seq: int | None = None
    path: str | None = None


def state(reading: Quoted, text: str) -> Evidence:
    """Quote a value that is no number of bytes."""
    return Evidence(f"{text}: {reading.value} ({reading.where})", None, reading.seq, reading.path)


def quote(reading: Quoted, text: str) -> Evidence:
    """Quote a value; of a number, it is one of bytes."""
    value = reading.value if type(reading.value) is int else None
    return Evidence(f"{text} ({reading.where})", value, reading.seq, reading.path)
