"""Records one after the other, each behind its size."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from virtrace.engines.uprobes.layout import BYTES, CONTENT, LENGTH, TEXT

SIZE = struct.Struct("<I")
_USED = struct.Struct("<q")


def frames(records: Sequence[memoryview]) -> bytes:
    """Return records one after the other, each behind its size; room that is not used is cut."""
    pieces: list[bytes | memoryview] = []
    for record in records:
        size = len(record)
        if record[0] in (TEXT, BYTES):
            used = _USED.unpack_from(record, LENGTH)[0]
            size = min(CONTENT + max(used, 0), size)
        pieces.append(SIZE.pack(size))
        pieces.append(record[:size])
    return b"".join(pieces)


def records_of(data: bytes) -> Iterator[bytes]:
    """Return the records in what ``frames`` made, up to the first that is cut."""
    at, end = 0, len(data)
    while at + SIZE.size <= end:
        (size,) = SIZE.unpack_from(data, at)
        at += SIZE.size
        if at + size > end:
            return
        yield data[at : at + size]
        at += size
