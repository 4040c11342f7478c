"""What one ELF file says of itself, read without GDB.

The file may be a stranger's: what is read of it is bounded, and it is read in a child without
rights (virtrace.binary.reader). Addresses are the file's own virtual addresses: add the load bias
for those of a process. Facts of the ELF-64 and ELF-32 Object File Formats.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from virtrace.errors import TargetError
from virtrace.files import open_regular

# Of e_machine, as `uname -m` names them; any other keeps its number.
MACHINES = {3: "i686", 21: "ppc64le", 22: "s390x", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
# Far above the largest library or debug file of libvirt.
LARGEST = 1 << 28

# What no file of a daemon comes near, and what would take long to read.
_LARGEST_SECTION = 64 << 20
_LARGEST_SUM = 96 << 20
_MOST_HEADERS = 1 << 12
_MOST_SYMBOLS = 1 << 17
_MOST_PROBES = 1 << 14
_LONGEST_NAME = 1 << 12
_LARGEST_FINGERPRINT = 1 << 12
_PIECE = 1 << 20

_MAGIC, _CLASS_32, _CLASS_64, _LITTLE, _BIG = b"\x7fELF", 1, 2, 1, 2
_PT_LOAD, _PF_X = 1, 1
_SHT_NOBITS, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 8, 2, 4, 1 << 11
_STT_FUNC = 2


class StapProbe(NamedTuple):
    """A static probe (USDT), as ``.note.stapsdt`` describes it.

    address and semaphore are virtual addresses in the file; semaphore is 0 where the
    probe has none. arguments is the assembler's text, such as ``8@%rdi -4@%eax``.
    """

    provider: str
    name: str
    address: int
    semaphore: int
    arguments: str


class DebugLink(NamedTuple):
    """Name of the separate debug file, and the CRC-32 of its whole contents."""

    name: str
    crc: int


class Section(NamedTuple):
    """A section that a process has in memory. address: virtual, in the file."""

    address: int
    data: bytes
    entry_size: int
    executable: bool

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and 0 <= address - self.address < len(self.data)


class Segment(NamedTuple):
    """A part of the file that is loaded. size: in the file; the rest of it in memory is zeroes."""

    address: int
    offset: int
    size: int
    executable: bool


class Symbol(NamedTuple):
    """One of ``.dynsym``. section: 0 where the file does not define it."""

    name: bytes
    is_function: bool
    section: int
    address: int
    size: int


class _Header(NamedTuple):
    """Of a section."""

    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int

    @property
    def is_loaded(self) -> bool:
        """With contents from the file."""
        return bool(self.flags & _SHF_ALLOC) and self.kind != _SHT_NOBITS


class _Broken(Exception):
    """The file is not as the format has it; the message says what is wrong."""


class ElfFile:
    """An ELF file that is open. Raises TargetError where it cannot be read or is not ELF."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str | os.PathLike[str] | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        """name: for messages, where path tells a person little. file: where it is open already."""
        self.path = Path(path)
        self.name = name or path
        try:
            self._file = file or open_regular(self.path, LARGEST)
        except OSError as error:
            raise unreadable(self.name, error) from error
        self._size = os.fstat(self.descriptor).st_size
        with self._parsing():
            self._read_headers()

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreadable(self.name, error) from error
        except (_Broken, struct.error, IndexError, ValueError, OverflowError) as error:
            # The last four come from sizes and offsets that point out of the file.
            raise TargetError(
                f"{self.name} is not an intact ELF file: {error or type(error).__name__}",
                "install the package that owns it again",
            ) from error

    def _read(self, offset: int, size: int) -> bytes:
        """That part of the file, all of it."""
        if size > _LARGEST_SECTION:
            raise _Broken("a part of it is larger than a library has it")
        data = os.pread(self.descriptor, size, offset) if size else b""
        if len(data) != size:
            raise _Broken("it ends before one of its parts does")
        return data

    def _read_headers(self) -> None:
        head = os.pread(self.descriptor, 64, 0)
        if head[:4] != _MAGIC or head[4] not in (_CLASS_32, _CLASS_64):
            raise _Broken("it does not begin as one")
        if head[5] not in (_LITTLE, _BIG):
            raise _Broken("its byte order is not known")
        self._order = "<" if head[5] == _LITTLE else ">"
        self._is_64 = head[4] == _CLASS_64
        word = "Q" if self._is_64 else "I"
        fields = struct.unpack_from(f"{self._order}HI3{word}I6H", head, 18)
        self.machine_number, _, _, segments_at, sections_at, _, _ = fields[:7]
        segment_size, segments, section_size, sections, names_in = fields[7:]
        if max(segments, sections) > _MOST_HEADERS:
            raise _Broken("it has more parts than a library has")
        self.segments = list(self._read_segments(segments_at, segments, segment_size))
        self._sections: dict[str, _Header] = {}
        shape = struct.Struct(f"{self._order}II4{word}II2{word}")
        table = self._read(sections_at, sections * section_size)
        headers, names_at = [], []
        for at in range(0, len(table), section_size or 1):
            name_at, kind, flags, address, offset, size, link, _, _, entry = shape.unpack_from(
                table, at
            )
            headers.append(_Header(kind, flags, address, offset, size, link, entry))
            names_at.append(name_at)
        self._by_number = headers
        if headers:
            names = self._data(headers[names_in]) or b""
            for header, name_at in zip(headers, names_at):
                self._sections[os.fsdecode(_text_at(names, name_at))] = header

    def _read_segments(self, at: int, count: int, size: int) -> Iterator[Segment]:
        if self._is_64:
            shape = struct.Struct(f"{self._order}II6Q")
            kind, flags, offset, address, file_size = 0, 1, 2, 3, 5
        else:
            shape = struct.Struct(f"{self._order}8I")
            kind, offset, address, file_size, flags = 0, 1, 2, 4, 6
        table = self._read(at, count * size)
        for number in range(count):
            fields = shape.unpack_from(table, number * size)
            if fields[kind] == _PT_LOAD:
                yield Segment(
                    fields[address],
                    fields[offset],
                    fields[file_size],
                    bool(fields[flags] & _PF_X),
                )

    def _data(self, header: _Header | None) -> bytes | None:
        """Of a section; None where there is none, or where the file keeps only its header."""
        if header is None or header.kind == _SHT_NOBITS:
            return None
        if header.flags & _SHF_COMPRESSED:
            raise _Broken("a section that is no debug info is compressed")
        return self._read(header.offset, header.size)

    def _section(self, name: str) -> bytes | None:
        return self._data(self._sections.get(name))

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
                for name, header in self._sections.items()
                if header.is_loaded and is_wanted(name, header)
            }
            if sum(header.size for header in wanted.values()) > _LARGEST_SUM:
                raise _Broken("its sections are larger than those of a library")
            return {
                name: Section(
                    header.address,
                    self._data(header) or b"",
                    header.entry_size,
                    bool(header.flags & _SHF_EXECINSTR),
                )
                for name, header in wanted.items()
            }

    @property
    def descriptor(self) -> int:
        """Of the open file."""
        return self._file.fileno()

    @property
    def machine(self) -> str:
        return MACHINES.get(self.machine_number, f"machine {self.machine_number}")

    @property
    def is_little_endian_64(self) -> bool:
        return self._is_64 and self._order == "<"

    @cached_property
    def build_id(self) -> str | None:
        """In lower-case hexadecimal; None where the linker left none."""
        with self._parsing():
            for note_type, descriptor in self._notes(".note.gnu.build-id", "GNU"):
                if note_type == 3:  # NT_GNU_BUILD_ID
                    return descriptor.hex()
        return None

    @property
    def fingerprint(self) -> tuple[int, bytes]:
        """Virtual address and bytes by which a loaded file is known again.

        The build-id's note; of a file without one, the beginning of the code.
        """
        with self._parsing():
            for name in (".note.gnu.build-id", ".text"):
                header = self._sections.get(name)
                if header is not None and header.is_loaded:
                    size = min(header.size, _LARGEST_FINGERPRINT)
                    return header.address, self._read(header.offset, size)
        raise TargetError(f"{self.name} has no code", "install the package that owns it again")

    @property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        found = hashlib.sha256()
        for at in range(0, self._size, _PIECE):
            found.update(os.pread(self.descriptor, _PIECE, at))
        return found.hexdigest()

    @property
    def crc(self) -> int:
        """CRC-32 of the whole file, as a debug link has it."""
        found = 0
        for at in range(0, self._size, _PIECE):
            found = zlib.crc32(os.pread(self.descriptor, _PIECE, at), found)
        return found

    @property
    def has_debug_info(self) -> bool:
        """Whether this very file carries DWARF, not whether some other file has it."""
        found = map(self._sections.get, (".debug_info", ".zdebug_info"))
        return any(header is not None and header.kind != _SHT_NOBITS for header in found)

    @property
    def shared_debug_info(self) -> str | None:
        """The name of the file where dwz has put a part of its DWARF; None where it has all."""
        with self._parsing():
            data = self._section(".gnu_debugaltlink")
            return None if data is None else os.fsdecode(_text_at(data, 0))

    @property
    def debuglink(self) -> DebugLink | None:
        with self._parsing():
            data = self._section(".gnu_debuglink")
            if data is None:
                return None
            (crc,) = struct.unpack_from(self._order + "I", data, len(data) - 4)
            return DebugLink(os.fsdecode(_text_at(data, 0)), crc)

    def symbols(self) -> Iterator[Symbol]:
        """Those of ``.dynsym``, in its order."""
        with self._parsing():
            header = self._sections.get(".dynsym")
            table = self._data(header)
            if header is None or table is None:
                return
            names = self._data(self._by_number[header.link]) or b""
            shape = struct.Struct(self._order + ("IBBHQQ" if self._is_64 else "IIIBBH"))
            if len(table) > _MOST_SYMBOLS * shape.size:
                raise _Broken("it has more symbols than a library has")
            for fields in shape.iter_unpack(table):
                if self._is_64:
                    name_at, info, _, section, address, size = fields
                else:
                    name_at, address, size, info, _, section = fields
                name = _text_at(names, name_at)
                yield Symbol(name, info & 15 == _STT_FUNC, section, address, size)

    def exported_functions(self) -> list[tuple[int, int, str]]:
        """First address, address behind, and name of each function in ``.dynsym``, sorted."""
        return sorted(
            (symbol.address, symbol.address + symbol.size, os.fsdecode(symbol.name))
            for symbol in self.symbols()
            if symbol.section and symbol.is_function
        )

    def stap_probes(self) -> list[StapProbe]:
        """The static probes, in the file's order; one name can stand at several places."""
        probes = []
        with self._parsing():
            base_section = self._sections.get(".stapsdt.base")
            words = struct.Struct(self._order + ("QQQ" if self._is_64 else "III"))
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
                    raise _Broken("it has more static probes than a library has")
        return probes

    def code(self, low: int, high: int) -> bytes | None:
        """The bytes at these addresses; None where not all of them are code of the file."""
        with self._parsing():
            for segment in self.segments:
                inside = low - segment.address
                if segment.executable and inside >= 0 and high - segment.address <= segment.size:
                    return self._read(segment.offset + inside, high - low)
        return None

    def _notes(self, section_name: str, owner: str) -> Iterator[tuple[int, bytes]]:
        """Type and descriptor of each of the owner's notes."""
        data = self._section(section_name) or b""
        header = struct.Struct(self._order + "III")
        position = 0
        while position < len(data):
            name_size, size, note_type = header.unpack_from(data, position)
            name_at = position + header.size
            descriptor_at = name_at + _align4(name_size)
            position = descriptor_at + _align4(size)
            if data[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1") == owner:
                yield note_type, data[descriptor_at : descriptor_at + size]


def _text_at(table: bytes, at: int) -> bytes:
    """The text that begins there, to the byte of zero that ends it."""
    end = table.find(b"\0", at, at + _LONGEST_NAME)
    if at > len(table) or (end < 0 and at < len(table)):
        raise _Broken("a name in it has no end")
    return table[at : max(end, at)]


def unreadable(name: str | os.PathLike[str], error: OSError) -> TargetError:
    return TargetError(
        f"cannot read {os.fspath(name)}: {error.strerror}",
        "run as root, or as the user whose file it is",
    )


def _align4(size: int) -> int:
    return (size + 3) & ~3
