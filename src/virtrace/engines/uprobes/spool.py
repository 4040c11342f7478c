"""Records on their way from the kernel's buffer to their decoder.

What the kernel has is copied out at once, and decoded when there is time: so decoding neither
loses events nor takes the processor from the daemon.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from virtrace.engines.uprobes.frames import SIZE, records_of
from virtrace.errors import TraceError

_SEGMENT = 1 << 24
# Segments that lie in memory; further ones lie in files without a name, compressed: texts of calls
# that come one after the other resemble each other.
_IN_MEMORY = 4
# Of zlib: the fastest.
_LEVEL = 1

# Stands for a mark: no record is so short.
_MARKED = b"\0"
_MARK = SIZE.pack(len(_MARKED)) + _MARKED

M = TypeVar("M")


class Spool(Generic[M]):
    """Holds frames, and marks between them, in their order.

    size: of all that waits, bytes. stored: what that takes in memory and in files, bytes.
    """

    def __init__(self, folder: Path) -> None:
        """folder: where its files are made."""
        self.size = 0
        self.stored = 0
        self._folder = folder
        self._segments: deque[_Segment] = deque()
        self._marks: deque[M] = deque()

    def write(self, data: bytes) -> None:
        """Append frames. Raises: TraceError if there is no room."""
        if not self._segments or self._segments[-1].end + len(data) > _SEGMENT:
            is_in_memory = len(self._segments) < _IN_MEMORY
            self._segments.append(_Memory() if is_in_memory else _File(self._folder))
        self.stored += self._segments[-1].write(data)
        self.size += len(data)

    def mark(self, mark: M) -> None:
        """Append a mark. Raises: TraceError, as ``write``."""
        self.write(_MARK)
        self._marks.append(mark)

    def read(self) -> Iterator[bytes | M]:
        """Take what waits: records and marks, until nothing waits."""
        while self._segments:
            data, stored = self._segments[0].read()
            self.stored -= stored
            if not data:
                if len(self._segments) == 1:
                    return
                self._segments.popleft().close()
                continue
            for record in records_of(data):
                self.size -= SIZE.size + len(record)
                yield self._marks.popleft() if record == _MARKED else record

    def close(self) -> None:
        for segment in self._segments:
            segment.close()


class _Segment(Protocol):
    """A part of what waits. end: bytes written to it."""

    end: int

    def write(self, data: bytes) -> int:
        """Write data; return how many bytes that takes. Raises: TraceError if there is no room."""

    def read(self) -> tuple[bytes, int]:
        """Return what was written next, empty at the end, and how many bytes that took."""

    def close(self) -> None: ...


class _Memory:
    """A segment in memory."""

    def __init__(self) -> None:
        self.end = 0
        self._waiting: deque[bytes] = deque()

    def write(self, data: bytes) -> int:
        self._waiting.append(data)
        self.end += len(data)
        return len(data)

    def read(self) -> tuple[bytes, int]:
        data = self._waiting.popleft() if self._waiting else b""
        return data, len(data)

    def close(self) -> None:
        self._waiting.clear()


class _File:
    """A segment in a file without a name, compressed."""

    def __init__(self, folder: Path) -> None:
        """folder: where it is made. Raises: TraceError if there is no room."""
        self.end = 0
        self._read = 0
        self._folder = folder
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _no_room(folder, error) from error

    def write(self, data: bytes) -> int:
        packed = zlib.compress(data, _LEVEL)
        data = SIZE.pack(len(packed)) + packed
        written = 0
        while written < len(data):
            try:
                written += os.pwrite(self._descriptor, data[written:], self.end + written)
            except OSError as error:
                raise _no_room(self._folder, error) from error
        self.end += len(data)
        return len(data)

    def read(self) -> tuple[bytes, int]:
        header = os.pread(self._descriptor, SIZE.size, self._read)
        if not header:
            return b"", 0
        packed = os.pread(self._descriptor, SIZE.unpack(header)[0], self._read + SIZE.size)
        taken = SIZE.size + len(packed)
        self._read += taken
        return zlib.decompress(packed), taken

    def close(self) -> None:
        os.close(self._descriptor)


def _no_room(folder: Path, error: OSError) -> TraceError:
    return TraceError(
        f"cannot keep what was recorded in {folder}: {error.strerror}",
        "make room there, or give another place for the trace (-o)",
    )
