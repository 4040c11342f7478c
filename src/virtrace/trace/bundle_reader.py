"""Reads a bundle: a gzip-compressed tar archive, which a stranger may have made.

Nothing is unpacked to disk, and nothing is read into memory except in pieces. Only plain files and
folders are accepted, with the one old header that every tar can write. Python's own reader would
also accept links, devices and headers that change the names and sizes of other entries.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from virtrace.errors import TraceError
from virtrace.trace.compression import GZIP, Inflated

TRACE = "trace.jsonl"
FOLDER = "virtrace-bundle/"
# Limits for everything except the trace, and for one line of the trace. A JSON value of two bytes
# takes about 70 bytes in memory.
MAX_BYTES = 48 << 20
MAX_VALUES = 2_000_000
MAX_FILES = 64
_BLOCK = 512
_LONGEST_FILL = 1 << 20
_FILES, _DIRECTORY = (b"0", b"\0"), b"5"
_TYPES = {
    b"1": "a link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"L": "a name longer than 255 characters",
    b"S": "a file with holes",
    b"x": "an extended header",
    b"g": "an extended header",
}


class _NotABundle(Exception):
    """The message says why."""


class BundleMember(io.RawIOBase):
    """The content of a file; readable until the next member is requested."""

    def __init__(self, bundle: BundleReader, size: int) -> None:
        self._bundle = bundle
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._bundle.stream.read1(min(len(buffer), self._left)) if self._left else b""
        if self._left and not data:
            raise self._bundle.error("it ends in the middle")
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class BundleReader:
    """Reads an open file. Raises TraceError if it is not a bundle, is damaged, or is too large."""

    def __init__(self, file: BinaryIO, path: object) -> None:
        file.seek(0)
        self._path = path
        self._inflated = Inflated(file, GZIP, path)
        self.stream = io.BufferedReader(self._inflated)

    def members(self) -> Iterator[tuple[str, BundleMember]]:
        """Yield each file and its name, without the bundle's folder."""
        try:
            yield from self._members()
        except _NotABundle as error:
            raise self.error(str(error)) from error

    def error(self, why: str) -> TraceError:
        if self._inflated.cut:
            return TraceError(
                f"{self._path} is truncated, or not a bundle",
                "take a fresh copy of the file",
            )
        return TraceError(
            f"{self._path} is not a virtrace bundle: {why}",
            "ask for one that `virtrace bundle` made, or for the trace itself",
        )

    def _members(self) -> Iterator[tuple[str, BundleMember]]:
        names: set[str] = set()
        room, members = MAX_BYTES, 0
        while True:
            header = self.stream.read(_BLOCK)
            if len(header) < _BLOCK:
                raise _NotABundle("it ends in the middle")
            if not any(header):
                break
            members += 1
            if members > MAX_FILES:
                raise _NotABundle(f"it holds more than {MAX_FILES} files")
            name, size, is_folder = _read_header(header)
            if name in names:
                raise _NotABundle(f"it holds {name} twice")
            if name != TRACE:
                room -= size
            if room < 0:
                raise _NotABundle(f"it holds more than {MAX_BYTES >> 20} MiB beside the trace")
            member = BundleMember(self, size)
            if not is_folder:
                names.add(name)
                yield name, member
            self._skip_rest(member, -size % _BLOCK)
        self._check_end()

    def _skip_rest(self, member: BundleMember, fill: int) -> None:
        while member.read(_LONGEST_FILL):
            pass
        if len(self.stream.read(fill)) < fill:
            raise _NotABundle("it ends in the middle")

    def _check_end(self) -> None:
        # Read to the end, for the checksum: tars are padded with zeros.
        if self.stream.read(_LONGEST_FILL).strip(b"\0") or self.stream.read(1):
            raise _NotABundle("there is more after its end")
        if self._inflated.cut:
            raise _NotABundle("it ends in the middle")


def is_bundle(file: BinaryIO, path: object) -> bool:
    """Whether content compressed with gzip is an archive rather than a line of JSON."""
    return io.BufferedReader(Inflated(file, GZIP, path)).read(1) != b"{"


def excess(files: Mapping[str, bytes]) -> str | None:
    """Return what exceeds the limits of a bundle; None if nothing does."""
    if sum(map(len, files.values())) > MAX_BYTES:
        return f"more than {MAX_BYTES >> 20} MiB"
    documents = [content for name, content in files.items() if name.endswith((".json", ".jsonl"))]
    if (
        sum(content.count(mark) for content in documents for mark in (b",", b"[", b"{"))
        > MAX_VALUES
    ):
        return f"more than {MAX_VALUES:,} values"
    return None


def _read_header(header: bytes) -> tuple[str, int, bool]:
    """Name, size in bytes, and whether it is a folder."""
    if header[257:262] != b"ustar":
        raise _NotABundle("the compressed content is not a tar archive")
    # The checksum counts itself as spaces.
    if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise _NotABundle("a header of it is damaged")
    kind = header[156:157]
    is_folder = kind == _DIRECTORY
    if not is_folder and kind not in _FILES:
        raise _NotABundle(f"it holds {_TYPES.get(kind, 'something that is not a file')}")
    prefix = header[345:500] if header[257:263] == b"ustar\0" else b""
    parts = [_text(part) for part in (prefix, header[:100]) if part[:1] != b"\0" and part]
    name = "/".join(parts).removeprefix("./")
    if is_folder:
        name = name.rstrip("/") + "/"
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise _NotABundle(f"the name {name!a} leads out of it")
    if not name.startswith(FOLDER):
        raise _NotABundle(f"{name!a} is not in the folder {FOLDER}")
    size = _octal(header[124:136])
    if is_folder and size:
        raise _NotABundle("a folder in it has a size")
    return name[len(FOLDER) :], size, is_folder


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise _NotABundle("a file name is not ASCII") from error


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits or any(digit not in b"01234567" for digit in digits):
        raise _NotABundle("a number in a header is damaged")
    return int(digits, 8)
