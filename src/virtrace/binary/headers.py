"""What ELF files and core files have in common: the file header, program headers and notes.

The facts are from the ELF-64 and ELF-32 Object File Formats.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from virtrace.errors import TargetError

# Bytes of the file header, of the larger class.
HEADER_SIZE = 64
PT_LOAD, PT_NOTE = 1, 4
_NT_GNU_BUILD_ID = 3
# Of a file; a core can have more.
_MOST_SEGMENTS = 256

_MAGIC, _CLASS_32, _CLASS_64, _LITTLE, _BIG = b"\x7fELF", 1, 2, 1, 2


class Broken(Exception):
    """The file violates the format; the message says how."""


class FileHeader(NamedTuple):
    """The file header. order: byte order, a format character of struct. Places are offsets."""

    is_64: bool
    order: str
    kind: int
    machine: int
    segments_at: int
    sections_at: int
    segment_size: int
    segments: int
    section_size: int
    sections: int
    names_in: int


class ProgramHeader(NamedTuple):
    """A program header. size: bytes in the file; size_in_memory: with the zeros behind them."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int
    size_in_memory: int


def file_header(head: bytes) -> FileHeader:
    """Parse the first bytes of a file. Raises: Broken, struct.error."""
    if head[:4] != _MAGIC or head[4] not in (_CLASS_32, _CLASS_64):
        raise Broken("its first bytes are not those of ELF")
    if head[5] not in (_LITTLE, _BIG):
        raise Broken("its byte order is unknown")
    is_64, order = head[4] == _CLASS_64, "<" if head[5] == _LITTLE else ">"
    word = "Q" if is_64 else "I"
    fields = struct.unpack_from(f"{order}HHI3{word}I6H", head, 16)
    kind, machine, _, _, segments_at, sections_at, _, _, *rest = fields
    return FileHeader(is_64, order, kind, machine, segments_at, sections_at, *rest)


def program_headers(table: bytes, header: FileHeader) -> Iterator[ProgramHeader]:
    """Parse the table of program headers. Raises: struct.error."""
    shape = struct.Struct(f"{header.order}II6Q" if header.is_64 else f"{header.order}8I")
    for number in range(header.segments):
        at = number * header.segment_size
        if header.is_64:
            kind, flags, offset, address, _, size, in_memory, _ = shape.unpack_from(table, at)
        else:
            kind, offset, address, _, size, in_memory, flags, _ = shape.unpack_from(table, at)
        yield ProgramHeader(kind, flags, offset, address, size, in_memory)


def notes(data: bytes, order: str) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield owner, type and descriptor of each note. Raises: Broken."""
    header, at = struct.Struct(f"{order}III"), 0
    while at + header.size <= len(data):
        name_size, size, kind = header.unpack_from(data, at)
        name_at = at + header.size
        content_at = name_at + _align4(name_size)
        content = data[content_at : content_at + size]
        if len(content) != size:
            raise Broken("a note in it has no end")
        yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, content
        at = content_at + _align4(size)


def build_id_in(head: bytes) -> str | None:
    """Return the build-id of a file by its first bytes, lower-case hexadecimal; None if not there.

    head: of the file, or of its first mapping. Raises: Broken, struct.error.
    """
    header = file_header(head)
    if header.segments > _MOST_SEGMENTS:
        raise Broken("it has more segments than any file")
    size = header.segments * header.segment_size
    table = head[header.segments_at : header.segments_at + size]
    for kind, _, offset, _, length, _ in program_headers(table, header):
        if kind == PT_NOTE:
            for owner, note, content in notes(head[offset : offset + length], header.order):
                if (owner, note) == (b"GNU", _NT_GNU_BUILD_ID):
                    return content.hex()
    return None


def _align4(size: int) -> int:
    return (size + 3) & ~3


@contextmanager
def parsing(name: str | os.PathLike[str], kind: str, remedy: str) -> Iterator[None]:
    """Turn what a damaged file raises into the error for it.

    kind: what the file should be, with its article
    Raises: TargetError
    """
    try:
        yield
    except OSError as error:
        raise unreadable(name, error) from error
    except (Broken, struct.error, IndexError, ValueError, OverflowError) as error:
        # The last four: sizes or offsets point out of the file.
        raise TargetError(
            f"{name} is not {kind}: {error or type(error).__name__}", remedy
        ) from error


def unreadable(name: str | os.PathLike[str], error: OSError) -> TargetError:
    """Return the error for a file that cannot be read."""
    return TargetError(
        f"cannot read {os.fspath(name)}: {error.strerror}",
        "run as root, or as the user whose file it is",
    )
