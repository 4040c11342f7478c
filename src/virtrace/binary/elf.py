"""A reader of ELF files: sections, symbols, notes, static probes. It needs no GDB.

The file may be a stranger's: every read is bounded, and a child without rights does it
(virtrace.binary.reader). Addresses are virtual addresses of the file; add the load bias for those
of a process. The facts are from the ELF-64 and ELF-32 Object File Formats.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from virtrace.binary.headers import (
    HEADER_SIZE,
    PT_LOAD,
    Broken,
    file_header,
    notes,
    parsing,
    program_headers,
    unreadable,
)
from virtrace.errors import TargetError
from virtrace.files import open_regular

# e_machine to the names of `uname -m`; other machines are named by their number.
MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
# Bytes; far more than the largest library or debug file of libvirt.
LARGEST = 1 << 28

# Limits far above every file of a daemon; more would take long to read.
_LARGEST_SECTION = 64 << 20
_LARGEST_SUM = 96 << 20
_MOST_HEADERS = 1 << 12
_MOST_SYMBOLS = 1 << 17
_MOST_PROBES = 1 << 14
_LONGEST_NAME = 1 << 12
_LARGEST_FINGERPRINT = 1 << 12
_PIECE = 1 << 20

_PF_X = 1
_SHT_NOBITS, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 8, 2, 4, 1 << 11
_STT_FUNC = 2


class StapProbe(NamedTuple):
    """A static probe (USDT), as ``.note.stapsdt`` describes it.

    address: virtual address in the file.
    semaphore: virtual address in the file; 0 if the probe has none.
    arguments: text of the assembler, such as ``8@%rdi -4@%eax``.
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class DebugLink(NamedTuple):
    """The name of the separate debug file and the CRC-32 of its contents."""

    name: str
    crc: int


class Section(NamedTuple):
    """A section that is loaded into memory. address: virtual address in the file."""

    address: int
    data: bytes
    entry_size: int
    executable: bool

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and 0 <= address - self.address < len(self.data)


class Segment(NamedTuple):
    """A part of the file that is loaded. size: bytes in the file; memory beyond it is zero."""

    address: int
    offset: int
    size: int
    executable: bool


class Symbol(NamedTuple):
    """A symbol of ``.dynsym``. section: 0 if the file does not define the symbol."""

    name: bytes
    is_function: bool
    section: int
    address: int
    size: int


class _Header(NamedTuple):
    """A section header."""

    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def is_loaded(self) -> bool:
        """Whether the section is loaded with contents from the file."""
        return bool(self.flags & _SHF_ALLOC) and self.kind != _SHT_NOBITS


class _Layout:
    """The headers of a file, and access to the parts that they describe.

    order: byte order, a format character of struct.
    sections: section headers by name; by_number: by their index.
    Raises: Broken, struct.error and others; ElfFile converts them to TargetError.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read_headers()

    def read(self, offset: int, size: int) -> bytes:
        """Read a part of the file. Raises: Broken if the file ends before it."""
        if size > _LARGEST_SECTION:
            raise Broken("one of its sections is larger than those of any library")
        data = os.pread(self._descriptor, size, offset) if size else b""
        if len(data) != size:
            raise Broken("it is truncated")
        return data

    def _read_headers(self) -> None:
        header = file_header(os.pread(self._descriptor, HEADER_SIZE, 0))
        self.order, self.is_64 = header.order, header.is_64
        self.machine_number = header.machine
        if max(header.segments, header.sections) > _MOST_HEADERS:
            raise Broken("it has more sections or segments than any library")
        table = self.read(header.segments_at, header.segments * header.segment_size)
        self.segments = [
            Segment(found.address, found.offset, found.size, bool(found.flags & _PF_X))
            for found in program_headers(table, header)
            if found.kind == PT_LOAD
        ]
        self.sections: dict[str, _Header] = {}
        word = "Q" if self.is_64 else "I"
        shape = struct.Struct(f"{self.order}II4{word}II2{word}")
        table = self.read(header.sections_at, header.sections * header.section_size)
        headers, names_at = [], []
        for at in range(0, len(table), header.section_size or 1):
            name_at, kind, flags, address, offset, size, link, _, _, entry = shape.unpack_from(
                table, at
            )
            headers.append(_Header(kind, flags, address, offset, size, link, entry))
            names_at.append(name_at)
        self.by_number = headers
        if headers:
            names = self.data(headers[header.names_in]) or b""
            for section, name_at in zip(headers, names_at):
                self.sections[os.fsdecode(_text_at(names, name_at))] = section

    def data(self, header: _Header | None) -> bytes | None:
        """The contents of a section; None if there is none, or only its header."""
        if header is None or header.kind == _SHT_NOBITS:
            return None
        if header.flags & _SHF_COMPRESSED:
            raise Broken("a section other than debug info is compressed")
        return self.read(header.offset, header.size)

    def section(self, name: str) -> bytes | None:
        return self.data(self.sections.get(name))


class ElfFile:
    """An open ELF file. Raises: TargetError, from every method, if it cannot be read."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str | os.PathLike[str] | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        """Open it.

        name: for messages, if path means little to a person.
        file: the file, if it is open already.
        """
        self.path = Path(path)
        self.name = name or path
        try:
            self._file = file or open_regular(self.path, LARGEST)
        except OSError as error:
            raise unreadable(self.name, error) from error
        self._size = os.fstat(self.descriptor).st_size
        with self._parsing():
            self._layout = _Layout(self.descriptor)

    def _parsing(self) -> AbstractContextManager[None]:
        return parsing(self.name, "an intact ELF file", "reinstall the package that owns it")

    def loaded_sections(self, *names: str) -> dict[str, Section]:
        """The sections of these names, or all, that are loaded with contents from the file."""
        return self._loaded(lambda name, _: not names or name in names)

    def code_sections(self) -> dict[str, Section]:
        """The loaded sections that have code."""
        return self._loaded(lambda _, header: bool(header.flags & _SHF_EXECINSTR))

    def _loaded(self, is_wanted: Callable[[str, _Header], bool]) -> dict[str, Section]:
        with self._parsing():
            wanted = {
                name: header
                for name, header in self._layout.sections.items()
                if header.is_loaded and is_wanted(name, header)
            }
            if sum(header.size for header in wanted.values()) > _LARGEST_SUM:
                raise Broken("its sections are larger than those of any library")
            return {
                name: Section(
                    header.address,
                    self._layout.data(header) or b"",
                    header.entry_size,
                    bool(header.flags & _SHF_EXECINSTR),
                )
                for name, header in wanted.items()
            }

    @property
    def descriptor(self) -> int:
        """The file descriptor."""
        return self._file.fileno()

    @property
    def segments(self) -> list[Segment]:
        """The parts of the file that are loaded."""
        return self._layout.segments

    @property
    def machine_number(self) -> int:
        """e_machine of the header."""
        return self._layout.machine_number

    @property
    def machine(self) -> str:
        return MACHINES.get(self.machine_number, f"machine {self.machine_number}")

    @property
    def is_little_endian_64(self) -> bool:
        return self._layout.is_64 and self._layout.order == "<"

    @cached_property
    def build_id(self) -> str | None:
        """Lower-case hexadecimal; None if the linker wrote none."""
        with self._parsing():
            for note_type, descriptor in self._notes(".note.gnu.build-id", "GNU"):
                if note_type == 3:  # NT_GNU_BUILD_ID
                    return descriptor.hex()
        return None

    @property
    def fingerprint(self) -> tuple[int, bytes]:
        """Virtual address and bytes by which the file is recognised in memory.

        The note of the build-id; for a file without one, the beginning of the code.
        """
        with self._parsing():
            for name in (".note.gnu.build-id", ".text"):
                header = self._layout.sections.get(name)
                if header is not None and header.is_loaded:
                    size = min(header.size, _LARGEST_FINGERPRINT)
                    return header.address, self._layout.read(header.offset, size)
        raise TargetError(f"{self.name} has no code", "reinstall the package that owns it")

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, hexadecimal."""
        found = hashlib.sha256()
        for at in range(0, self._size, _PIECE):
            found.update(os.pread(self.descriptor, _PIECE, at))
        return found.hexdigest()

    @property
    def crc(self) -> int:
        """The CRC-32 of the whole file, as in a debug link."""
        found = 0
        for at in range(0, self._size, _PIECE):
            found = zlib.crc32(os.pread(self.descriptor, _PIECE, at), found)
        return found

    @property
    def has_debug_info(self) -> bool:
        """Whether this file itself contains DWARF."""
        found = map(self._layout.sections.get, (".debug_info", ".zdebug_info"))
        return any(header is not None and header.kind != _SHT_NOBITS for header in found)

    @property
    def shared_debug_info(self) -> str | None:
        """The file with the part of the DWARF that dwz moved out of this one; None if none."""
        with self._parsing():
            data = self._layout.section(".gnu_debugaltlink")
            return None if data is None else os.fsdecode(_text_at(data, 0))

    @property
    def debuglink(self) -> DebugLink | None:
        with self._parsing():
            data = self._layout.section(".gnu_debuglink")
            if data is None:
                return None
            (crc,) = struct.unpack_from(self._layout.order + "I", data, len(data) - 4)
            return DebugLink(os.fsdecode(_text_at(data, 0)), crc)

    def symbols(self) -> Iterator[Symbol]:
        """The symbols of ``.dynsym``, in its order."""
        with self._parsing():
            header = self._layout.sections.get(".dynsym")
            table = self._layout.data(header)
            if header is None or table is None:
                return
            names = self._layout.data(self._layout.by_number[header.link]) or b""
            shape = struct.Struct(
                self._layout.order + ("IBBHQQ" if self._layout.is_64 else "IIIBBH")
            )
            if len(table) > _MOST_SYMBOLS * shape.size:
                raise Broken("it has more symbols than any library")
            for fields in shape.iter_unpack(table):
                if self._layout.is_64:
                    name_at, info, _, section, address, size = fields
                else:
                    name_at, address, size, info, _, section = fields
                name = _text_at(names, name_at)
                yield Symbol(name, info & 15 == _STT_FUNC, section, address, size)

    def exported_functions(self) -> list[tuple[int, int, str]]:
        """First address, end and name of every function in ``.dynsym``, sorted."""
        return self._exported_functions

    @cached_property
    def _exported_functions(self) -> list[tuple[int, int, str]]:
        return sorted(
            (symbol.address, symbol.address + symbol.size, os.fsdecode(symbol.name))
            for symbol in self.symbols()
            if symbol.section and symbol.is_function
        )

    def stap_probes(self) -> list[StapProbe]:
        """The static probes, in the file's order; several can have one name."""
        probes = []
        with self._parsing():
            base_section = self._layout.sections.get(".stapsdt.base")
            words = struct.Struct(self._layout.order + ("QQQ" if self._layout.is_64 else "III"))
            for note_type, descriptor in self._notes(".note.stapsdt", "stapsdt"):
                if note_type != 3:  # the only version of the note there is
                    continue
                address, base, semaphore = words.unpack_from(descriptor)
                # prelink moves sections but not what notes say: the base tells how far.
                moved = base_section.address - base if base_section is not None else 0
                provider, name, arguments = (
                    os.fsdecode(text[:_LONGEST_NAME])
                    for text in descriptor[words.size :].split(b"\0")[:3]
                )
                if semaphore:
                    semaphore += moved
                probes.append(StapProbe(provider, name, address + moved, semaphore, arguments))
                if len(probes) > _MOST_PROBES:
                    raise Broken("it has more static probes than any library")
        return probes

    def code(self, low: int, high: int) -> bytes | None:
        """The bytes at these addresses; None unless all of them are code of the file."""
        return self._content(low, high, [one for one in self.segments if one.executable])

    def content(self, low: int, high: int) -> bytes | None:
        """The bytes that are loaded to these addresses; None unless all of them are of the file."""
        return self._content(low, high, self.segments)

    def _content(self, low: int, high: int, segments: Iterable[Segment]) -> bytes | None:
        with self._parsing():
            for segment in segments:
                inside = low - segment.address
                if inside >= 0 and high - segment.address <= segment.size:
                    return self._layout.read(segment.offset + inside, high - low)
        return None

    def _notes(self, section_name: str, owner: str) -> Iterator[tuple[int, bytes]]:
        """Type and descriptor of every note of an owner."""
        data = self._layout.section(section_name) or b""
        for found, kind, descriptor in notes(data, self._layout.order):
            if found == owner.encode():
                yield kind, descriptor


def _text_at(table: bytes, at: int) -> bytes:
    """The text at an offset of a string table, up to its NUL."""
    end = table.find(b"\0", at, at + _LONGEST_NAME)
    if at > len(table) or (end < 0 and at < len(table)):
        raise Broken("one of its names has no end")
    return table[at : max(end, at)]
