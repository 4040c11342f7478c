"""A reader of core files: memory, threads, mapped files.

The file may be a stranger's: a child without rights reads it (virtrace.image.core), and every read
is bounded. The facts are from the System V ABI (ELF), core(5), Linux' <sys/procfs.h>
(struct elf_prstatus, elf_prpsinfo) and fs/binfmt_elf.c (NT_FILE).
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from virtrace.binary.headers import (
    HEADER_SIZE,
    PT_LOAD,
    PT_NOTE,
    Broken,
    file_header,
    notes,
    parsing,
    program_headers,
)

# Bytes; a core is as large as the memory of its process.
LARGEST = 1 << 40
_LARGEST_NOTES = 64 << 20
# At one time.
MOST_READ = 4 << 20
_MOST_SEGMENTS = 1 << 17
_MOST_FILES = 1 << 16
_LONGEST_PATH = 1 << 12
_MOST_THREADS = 1 << 15

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT_SIZE = 56
_IDENT = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian, version 1
_ET_CORE, _PN_XNUM = 4, 0xFFFF
_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV, _NT_FILE, _NT_SIGINFO = 1, 3, 6, 0x46494C45, 0x53494749

# si_signo, si_errno, si_code, and of struct siginfo the address of a fault.
_SIGINFO = struct.Struct("<iii4xQ")
_FILE_COUNT = struct.Struct("<QQ")
_FILE_RANGE = struct.Struct("<QQQ")
# struct elf_prstatus up to the registers, all 64-bit processors: the signal that the thread gets
# or was stopped by, and its id.
_STATUS = struct.Struct("<12xh18xi76x")
# struct elf_prpsinfo: the pid, the name and the arguments.
_INFO = struct.Struct("<24xi12x16s80s")
# Bytes of registers that are kept, more than any processor has there.
_MOST_REGISTERS = 1024
_AUXV = struct.Struct("<QQ")


class Segment(NamedTuple):
    """Memory of the process. size: bytes of it that the core has; the rest was left out."""

    address: int
    offset: int
    size: int
    size_in_memory: int
    flags: int


class MappedFile(NamedTuple):
    """A part of a file that was mapped. offset: in the file, bytes."""

    start: int
    end: int
    offset: int
    path: str


class CoreThread(NamedTuple):
    """tid: as the kernel counts. registers: the bytes of struct user_regs_struct."""

    tid: int
    signal: int
    registers: bytes


class Signal(NamedTuple):
    """What ended the process. address: of a fault; of other signals it means something else."""

    number: int
    code: int
    address: int


class CoreFile:
    """An open core file. Raises: TargetError if it is not a core, or damaged."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self.name = name
        self._file = file
        self.segments: list[Segment] = []
        self.threads: list[CoreThread] = []
        self.files: list[MappedFile] = []
        self.auxv: dict[int, int] = {}
        self.pid: int | None = None
        self.name_of_process: str | None = None
        self.signal: Signal | None = None
        self._notes_size = 0
        remedy = (
            "name the core file of a 64-bit little-endian process, as the kernel or gcore writes it"
        )
        with parsing(name, "an intact core file", remedy):
            self._read_all()
        self._starts = [segment.address for segment in self.segments]

    def read(self, address: int, size: int) -> bytes:
        """Read memory, up to the first byte that the core does not contain."""
        data = bytearray()
        size = min(size, MOST_READ)
        while len(data) < size:
            at = address + len(data)
            segment = self.segments[bisect_right(self._starts, at) - 1] if self.segments else None
            inside = at - segment.address if segment is not None else -1
            if segment is None or not 0 <= inside < segment.size:
                break
            left = min(size - len(data), segment.size - inside)
            piece = self._read_at(segment.offset + inside, left)
            if not piece:
                break
            data += piece
        return bytes(data)

    def _read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def _whole(self, offset: int, size: int) -> bytes:
        data = self._read_at(offset, size)
        if len(data) != size:
            raise Broken("it is truncated")
        return data

    def _read_all(self) -> None:
        head = self._whole(0, HEADER_SIZE)
        if not head.startswith(_IDENT):
            raise Broken("its header is not that of a core")
        header = file_header(head)
        if header.kind != _ET_CORE or header.segment_size != _SEGMENT_SIZE:
            raise Broken("its header is not that of a core")
        self.machine_number = header.machine
        if header.segments == _PN_XNUM:
            section = _SECTION.unpack(self._whole(header.sections_at, _SECTION.size))
            header = header._replace(segments=section[7])
        if header.segments > _MOST_SEGMENTS:
            raise Broken("it has more segments than any core")
        table = self._whole(header.segments_at, header.segments * header.segment_size)
        for kind, flags, offset, address, size, in_memory in program_headers(table, header):
            if kind == PT_LOAD:
                self.segments.append(Segment(address, offset, size, max(size, in_memory), flags))
            elif kind == PT_NOTE:
                self._read_notes(offset, size)
        self.segments.sort()

    def _read_notes(self, offset: int, size: int) -> None:
        self._notes_size += size
        if self._notes_size > _LARGEST_NOTES:
            raise Broken("its notes are larger than those of any core")
        for owner, kind, content in notes(self._whole(offset, size), "<"):
            if owner == b"CORE":
                self._read_note(kind, content)

    def _read_note(self, kind: int, content: bytes) -> None:
        if kind == _NT_PRSTATUS:
            if len(self.threads) == _MOST_THREADS:
                raise Broken("it has more threads than any process")
            signal, tid = _STATUS.unpack_from(content)
            registers = content[_STATUS.size : _STATUS.size + _MOST_REGISTERS]
            self.threads.append(CoreThread(tid, signal, registers))
        elif kind == _NT_PRPSINFO:
            self.pid, name, _ = _INFO.unpack_from(content)
            self.name_of_process = os.fsdecode(name.partition(b"\0")[0])
        elif kind == _NT_SIGINFO and self.signal is None:
            # Of the thread that ended the process, which comes first.
            number, _, code, address = _SIGINFO.unpack_from(content)
            self.signal = Signal(number, code, address)
        elif kind == _NT_AUXV:
            self.auxv = dict(_AUXV.iter_unpack(content[: len(content) // _AUXV.size * _AUXV.size]))
        elif kind == _NT_FILE:
            self.files = list(_mapped_files(content))


def _mapped_files(content: bytes) -> Iterator[MappedFile]:
    count, page = _FILE_COUNT.unpack_from(content)
    if count > _MOST_FILES:
        raise Broken("it has more mapped files than any process")
    paths_at = _FILE_COUNT.size + count * _FILE_RANGE.size
    paths = content[paths_at:].split(b"\0", count)
    for number, path in zip(range(count), paths):
        start, end, offset = _FILE_RANGE.unpack_from(
            content, _FILE_COUNT.size + number * _FILE_RANGE.size
        )
        yield MappedFile(start, end, offset * page, os.fsdecode(path[:_LONGEST_PATH]))
