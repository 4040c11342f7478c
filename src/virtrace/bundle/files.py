"""The files of a bundle: small ones in memory; the trace, which can be large, on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from tempfile import TemporaryFile
from typing import BinaryIO

from virtrace.trace.bundle_reader import TRACE

_PIECE = 1 << 20


class BundleFiles(Mapping[str, bytes]):
    """The files by name; each value is the whole content, also of the trace.

    The trace is in a file without a name, which no other process can open and which ends with this
    process.
    """

    def __init__(self) -> None:
        self._small: dict[str, bytes] = {}
        self._has_trace = False
        self._trace = TemporaryFile(prefix="virtrace-")  # noqa: SIM115

    def add(self, name: str, content: bytes) -> None:
        self._small[name] = content

    def add_trace(self, pieces: Iterable[bytes]) -> None:
        self._has_trace = True
        self._trace.seek(0)
        self._trace.truncate()
        self._trace.writelines(pieces)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading, one at a time. The caller must not close it."""
        if name != TRACE or not self._has_trace:
            return BytesIO(self._small[name])
        self._trace.seek(0)
        return self._trace

    def size(self, name: str) -> int:
        return self.open(name).seek(0, 2)

    def __getitem__(self, name: str) -> bytes:
        return self.open(name).read()

    def __iter__(self) -> Iterator[str]:
        return iter([*([TRACE] if self._has_trace else []), *self._small])

    def __len__(self) -> int:
        return self._has_trace + len(self._small)


def opened(files: Mapping[str, bytes], name: str) -> BinaryIO:
    return files.open(name) if isinstance(files, BundleFiles) else BytesIO(files[name])


def file_pieces(files: Mapping[str, bytes], name: str) -> Iterator[bytes]:
    """Yield the trace in pieces of whole records; any other file in one piece."""
    stream = opened(files, name)
    if name != TRACE:
        yield stream.read()
        return
    while lines := stream.readlines(_PIECE):
        yield b"".join(lines)


def digest(stream: Iterable[bytes]) -> tuple[int, str]:
    """Return size in bytes, and SHA-256."""
    size, found = 0, hashlib.sha256()
    for piece in stream:
        size += len(piece)
        found.update(piece)
    return size, found.hexdigest()
