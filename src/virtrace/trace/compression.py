"""Reads compressed traces piece by piece, up to a bound, and writes them.

gzip is always available, Zstandard if the package zstandard is installed.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import zlib
from typing import Any, BinaryIO

from virtrace.errors import TraceError, UsageError

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# How much a stranger's file may expand. Traces shrink to a 20th; gzip shrinks zeros to a 1000th.
MAX_RATIO = 100
SMALL = 48 << 20
# Memory that a Zstandard file may require; the highest levels take 8 MiB.
_MAX_WINDOW = 8 << 20
_GZIP_FORMAT = 31
_PIECE = 1 << 20
# Python's message if a file was cut in the first bytes of a further part.
_HALF_A_MAGIC = f"({GZIP[:1]!r})"


class Inflated(io.RawIOBase):
    """The content of a compressed file.

    cut: the file is truncated, which is not an error here
    """

    def __init__(self, file: BinaryIO, magic: bytes, path: object) -> None:
        self.cut = False
        self._path = path
        self._room = max(SMALL, MAX_RATIO * os.fstat(file.fileno()).st_size)
        self._errors: tuple[type[Exception], ...] = (OSError, zlib.error)
        # A process without rights can look for no package: only what needs this one does.
        if magic == GZIP:
            self._inner: Any = gzip.GzipFile(fileobj=file)
        else:
            self._inner, failed = _zstd_reader(file)
            self._errors = (*self._errors, failed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read1(len(buffer))
        except EOFError:
            self.cut = True
            return 0
        except self._errors as error:
            if str(error).endswith(_HALF_A_MAGIC):
                self.cut = True
                return 0
            raise TraceError(
                f"{self._path} is damaged, or not a bundle or trace: {error}",
                "take a fresh copy of the file",
            ) from error
        self._room -= len(data)
        if self._room < 0:
            raise TraceError(
                f"{self._path} expands to more than {MAX_RATIO} times its size, which no genuine "
                "trace does",
                "if you trust it, unpack it yourself and name the result",
            )
        buffer[: len(data)] = data
        return len(data)


class Packer:
    """Compresses piece by piece, so that each can be read without those that follow."""

    def __init__(self, name: str) -> None:
        """name: the file name, whose ending is the format.

        Raises: UsageError if this Python lacks the format
        """
        self._is_gzip = name.endswith(".gz")
        self._zstandard: Any = None if self._is_gzip else _zstandard(f"write {name}")
        self._compressor = self._new()
        self._before: Any = None

    def pack(self, data: bytes) -> bytes:
        if self._compressor is None:
            raise OSError(errno.EPIPE, "the data continues from a piece that was not kept")
        # The state before this piece, from which to continue if the piece is not written.
        self._before = self._compressor.copy() if self._is_gzip else None
        packed: bytes = self._compressor.compress(data)
        mode = zlib.Z_SYNC_FLUSH if self._is_gzip else self._zstandard.COMPRESSOBJ_FLUSH_BLOCK
        return packed + bytes(self._compressor.flush(mode))

    def undo(self) -> None:
        """Take back the last piece, which was not written: gzip can, Zstandard cannot."""
        self._compressor = self._before

    def end(self, data: bytes = b"") -> bytes:
        """Compress the last piece of a part; what follows begins a new part."""
        packed = self.pack(data) + bytes(self._compressor.flush())
        self._compressor = self._new()
        return packed

    def _new(self) -> Any:
        if self._zstandard is not None:
            return self._zstandard.ZstdCompressor().compressobj()
        return zlib.compressobj(wbits=_GZIP_FORMAT)


def is_packed(name: str) -> bool:
    """Whether a file of this name is to be compressed."""
    return name.endswith((".gz", ".zst"))


def last_part(file: BinaryIO) -> tuple[int, bytes]:
    """Return the offset of the last part of a file, and its content."""
    start, content = 0, b""
    decompressor: Any = None
    while data := file.read(_PIECE):
        while data:
            if decompressor is None or decompressor.eof:
                start, content = file.tell() - len(data), b""
                is_gzip = data.startswith(GZIP)
                zstandard = None if is_gzip else _zstandard("read this file")
                decompressor = (
                    zlib.decompressobj(_GZIP_FORMAT)
                    if zstandard is None
                    else zstandard.ZstdDecompressor().decompressobj()
                )
            content = (content + decompressor.decompress(data))[-_PIECE:]
            data = decompressor.unused_data
    return start, content


def _zstd_reader(file: BinaryIO) -> tuple[Any, type[Exception]]:
    """Return a reader of what is compressed, and the error that it raises if that is damaged."""
    zstandard = _zstandard("read this file")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    return decompressor.stream_reader(file, read_across_frames=True), zstandard.ZstdError


def _zstandard(what: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(
            f"the package zstandard, which is needed to {what}, is not usable here: {error}",
            "pip install 'virtrace[zstd]', or use gzip (.gz)",
        ) from error
    return zstandard
