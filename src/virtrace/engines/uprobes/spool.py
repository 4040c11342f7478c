"""Records on their way from the kernel's buffer to their decoder.

What the kernel has is copied out at once, and decoded when there is time: so decoding neither
loses events nor takes the processor from the daemon.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from virtrace.engines.uprobes.frames import SIZE, records_of
from virtrace.errors import TraceError

_SEGMENT = 1 << 24
# Segments that lie in memory; further ones lie in files without a name.
_IN_MEMORY = 4

M = TypeVar("M")


class Spool(Generic[M]):
    """Holds frames, and marks between them, in their order.

    size: of the frames that wait, bytes.
    """

    def __init__(self, folder: Path) -> None:
        """folder: where its files are made."""
        self.size = 0
        self._folder = folder
        # In their order; marks have their place between segments.
        self._waiting: deque[_Segment | M] = deque()

    def write(self, data: bytes) -> None:
        """Append frames. Raises: TraceError if there is no room."""
        last = self._waiting[-1] if self._waiting else None
        if not isinstance(last, _Segment) or last.end + len(data) > _SEGMENT:
            segments = sum(isinstance(item, _Segment) for item in self._waiting)
            last = _Segment(None if segments < _IN_MEMORY else self._folder)
            self._waiting.append(last)
        last.write(data)
        self.size += len(data)

    def mark(self, mark: M) -> None:
        self._waiting.append(mark)

    def read(self) -> Iterator[bytes | M]:
        """Take what waits: records and marks, until nothing waits."""
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, _Segment):
                data = first.read()
                if not data:
                    if len(self._waiting) == 1:
                        return
                    first.close()
                    self._waiting.popleft()
                    continue
                for record in records_of(data):
                    self.size -= SIZE.size + len(record)
                    yield record
            else:
                self._waiting.popleft()
                yield first

    def close(self) -> None:
        for item in self._waiting:
            if isinstance(item, _Segment):
                item.close()


class _Segment:
    """A file; end: where it is written next, bytes."""

    def __init__(self, folder: Path | None) -> None:
        """folder: where it is made; None: in memory. Raises: TraceError if there is no room."""
        self.end = 0
        self._read = 0
        self._folder = folder
        try:
            if folder is None:
                self._descriptor = os.memfd_create("virtrace-records")
            else:
                with tempfile.TemporaryFile(dir=folder) as file:
                    self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise _no_room(folder, error) from error

    def write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            try:
                written += os.pwrite(self._descriptor, data[written:], self.end + written)
            except OSError as error:
                raise _no_room(self._folder, error) from error
        self.end += len(data)

    def read(self) -> bytes:
        data = os.pread(self._descriptor, self.end - self._read, self._read)
        self._read += len(data)
        return data

    def close(self) -> None:
        os.close(self._descriptor)


def _no_room(folder: Path | None, error: OSError) -> TraceError:
    return TraceError(
        f"cannot keep what was recorded in {folder or 'memory'}: {error.strerror}",
        "make room there, or give another place for the trace (-o)",
    )
