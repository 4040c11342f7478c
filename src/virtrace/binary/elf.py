"""What one ELF file says of itself, read without GDB.

Addresses are the file's own virtual addresses: add the load bias for those of a process.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.constants import SH_FLAGS

from virtrace.errors import TargetError

# As `uname -m` names them; any other keeps its ELF name (EM_...).
MACHINES = {
    "EM_386": "i686",
    "EM_AARCH64": "aarch64",
    "EM_PPC64": "ppc64le",
    "EM_RISCV": "riscv64",
    "EM_S390": "s390x",
    "EM_X86_64": "x86_64",
}
DEBUG_DIRS = (Path("/usr/lib/debug"),)
# Far above the largest library or debug file of libvirt; it is held in memory.
LARGEST = 1 << 28


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


class ElfFile:
    """An ELF file, held in memory: no file stays open, and none can shrink under us.

    contents: the whole of it. Raises TargetError where the file cannot be read or is not ELF.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str | os.PathLike[str] | None = None
    ) -> None:
        """name: for messages, where path tells a person little."""
        self.path = Path(path)
        self.name = name or path
        try:
            self.contents = read_file(self.path, LARGEST)
        except OSError as error:
            raise TargetError(
                f"cannot read {self.name}: {error.strerror}",
                "run as root, or as the user whose file it is",
            ) from error
        # Not above: what reads no ELF file need not wait for it.
        from elftools.elf.elffile import ELFFile

        with self._parsing():
            self._elf = ELFFile(io.BytesIO(self.contents))

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (ELFError, struct.error, ValueError, OverflowError) as error:
            # The last three come from sizes and offsets that point out of the file.
            raise TargetError(
                f"{self.name} is not an intact ELF file: {error or type(error).__name__}",
                "install the package that owns it again",
            ) from error

    @cached_property
    def _sections(self) -> dict[str, Any]:
        # pyelftools reads a section anew each time; that of .gnu.hash takes as long as the rest.
        return {section.name: section for section in self._elf.iter_sections()}

    def _section(self, name: str) -> Any | None:
        """The section, None where there is none or where the file keeps only its header."""
        section = self._sections.get(name)
        return None if section is None or section["sh_type"] == "SHT_NOBITS" else section

    def loaded_sections(self) -> dict[str, Section]:
        """Those that are loaded with contents from the file, by name."""
        with self._parsing():
            return {
                name: Section(
                    section["sh_addr"],
                    section.data(),
                    section["sh_entsize"],
                    bool(section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR),
                )
                for name, section in self._sections.items()
                if _is_loaded(section)
            }

    @property
    def machine(self) -> str:
        name: str = self._elf["e_machine"]
        return MACHINES.get(name, name)

    @property
    def is_little_endian_64(self) -> bool:
        return bool(self._elf.little_endian) and self._elf.elfclass == 64

    @property
    def build_id(self) -> str | None:
        """In lower-case hexadecimal; None where the linker left none."""
        with self._parsing():
            for note_type, descriptor in self._notes(".note.gnu.build-id", "GNU"):
                if note_type == 3:  # NT_GNU_BUILD_ID
                    return descriptor.hex()
        return None

    @property
    def mark(self) -> tuple[int, bytes]:
        """Virtual address and bytes of what tells this file from all others, once it is loaded.

        The build-id's note; of a file without one, the code.
        """
        with self._parsing():
            for name in (".note.gnu.build-id", ".text"):
                section = self._sections.get(name)
                if section is not None and _is_loaded(section):
                    return section["sh_addr"], section.data()
        raise TargetError(f"{self.name} has no code", "install the package that owns it again")

    @property
    def has_debug_info(self) -> bool:
        """Whether this very file carries DWARF, not whether some other file has it."""
        with self._parsing():
            return any(self._section(name) is not None for name in (".debug_info", ".zdebug_info"))

    @property
    def shares_debug_info(self) -> bool:
        """Whether a part of its DWARF is in another file, where dwz has put it."""
        with self._parsing():
            return self._section(".gnu_debugaltlink") is not None

    @property
    def debuglink(self) -> DebugLink | None:
        with self._parsing():
            section = self._section(".gnu_debuglink")
            if section is None:
                return None
            data: bytes = section.data()
            (crc,) = struct.unpack_from(self._byte_order + "I", data, len(data) - 4)
            return DebugLink(os.fsdecode(data.split(b"\0", 1)[0]), crc)

    def exported_function(self, name: str) -> int | None:
        """Virtual address of a function that this file defines in ``.dynsym``.

        Goes through the hash table: a lookup reads one chain, not the whole table.
        """
        with self._parsing():
            table = self._section(".gnu.hash") or self._section(".hash")
            symbol = None if table is None else table.get_symbol(name)
            if symbol is None or symbol["st_shndx"] == "SHN_UNDEF":
                return None
            address: int = symbol["st_value"]
            return address if symbol["st_info"]["type"] == "STT_FUNC" else None

    def exported_functions(self) -> list[tuple[int, int, str]]:
        """First address, address behind, and name of each function in ``.dynsym``, sorted."""
        found = []
        with self._parsing():
            table = self._section(".dynsym")
            for symbol in table.iter_symbols() if table is not None else ():
                if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["type"] == "STT_FUNC":
                    start = symbol["st_value"]
                    found.append((start, start + symbol["st_size"], symbol.name))
        return sorted(found)

    def stap_probes(self) -> list[StapProbe]:
        """The static probes, in the file's order; one name can stand at several places."""
        probes = []
        with self._parsing():
            base_section = self._section(".stapsdt.base")
            words = struct.Struct(self._byte_order + ("QQQ" if self._elf.elfclass == 64 else "III"))
            for note_type, descriptor in self._notes(".note.stapsdt", "stapsdt"):
                if note_type != 3:  # the only version of the note there is
                    continue
                address, base, semaphore = words.unpack_from(descriptor)
                # prelink moves sections but not what notes say: the base tells how far.
                moved = base_section["sh_addr"] - base if base_section is not None else 0
                provider, name, arguments = (
                    os.fsdecode(text) for text in descriptor[words.size :].split(b"\0")[:3]
                )
                if semaphore:
                    semaphore += moved
                probes.append(StapProbe(provider, name, address + moved, semaphore, arguments))
        return probes

    def load_bias(self, start: int, offset: int) -> int:
        """What to add to this file's addresses for those of a process.

        start, offset: of the lowest mapping of the file, as in ``/proc/PID/maps``.
        """
        with self._parsing():
            for segment in self._elf.iter_segments():
                if segment["p_type"] == "PT_LOAD":
                    bias: int = start - offset + segment["p_offset"] - segment["p_vaddr"]
                    return bias
        raise TargetError(
            f"{self.name} has no loadable segment", "install the package that owns it again"
        )

    def file_offset(self, address: int) -> int | None:
        """Where in the file the byte of a virtual address is; None where it is in no segment."""
        with self._parsing():
            for segment in self._elf.iter_segments():
                inside = address - segment["p_vaddr"]
                if segment["p_type"] == "PT_LOAD" and 0 <= inside < segment["p_filesz"]:
                    offset: int = segment["p_offset"] + inside
                    return offset
        return None

    @property
    def _byte_order(self) -> str:
        return "<" if self._elf.little_endian else ">"

    def _notes(self, section_name: str, owner: str) -> Iterator[tuple[int, bytes]]:
        """Type and descriptor of each of the owner's notes."""
        # By hand: what pyelftools gives for a note it does not know differs by its version.
        section = self._section(section_name)
        data: bytes = b"" if section is None else section.data()
        header = struct.Struct(self._byte_order + "III")
        position = 0
        while position < len(data):
            name_size, size, note_type = header.unpack_from(data, position)
            name_at = position + header.size
            descriptor_at = name_at + _align4(name_size)
            position = descriptor_at + _align4(size)
            if data[name_at : name_at + name_size].rstrip(b"\0").decode("latin-1") == owner:
                yield note_type, data[descriptor_at : descriptor_at + size]


def _is_loaded(section: Any) -> bool:
    """With contents from the file."""
    return bool(section["sh_flags"] & SH_FLAGS.SHF_ALLOC) and section["sh_type"] != "SHT_NOBITS"


def read_file(path: Path, largest: int) -> bytes:
    """A file that may be a stranger's: nothing but a regular file of bounded size is opened.

    Raises OSError. The symbolic links of a path through ``/proc/PID/root`` can lead anywhere.
    """
    # Opening a FIFO waits for its writer, and opening a device can set it to work; this does not.
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > largest:
            raise OSError(errno.EFBIG, f"it is larger than {largest >> 20} MiB", str(path))
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(largest)
    finally:
        os.close(found)


def debug_file(
    build_id: str | None,
    debuglink: DebugLink | None,
    path: str | os.PathLike[str],
    debug_dirs: Sequence[Path] = DEBUG_DIRS,
    root: Path = Path("/"),
) -> ElfFile | None:
    """The separate debug file of a binary, where GDB would look for it.

    path: the binary as its process sees it. root: where that process's ``/`` can be reached
    from here (``/proc/PID/root``); the debug directories are tried inside it and in our own
    ``/``. A candidate counts when its build-id is the same, or, for a binary without one,
    when its contents have the CRC of the debug link. None where there is no such file. One
    inside another root counts only when it is whole: GDB would look for the rest of it here.
    """
    for candidate in _debug_candidates(build_id, debuglink, Path(path), debug_dirs, root):
        try:
            found = ElfFile(candidate)
            elsewhere = root != Path("/") and candidate.is_relative_to(root)
            if not found.has_debug_info or (elsewhere and found.shares_debug_info):
                continue
            if build_id is not None:
                if found.build_id == build_id:
                    return found
            elif debuglink is not None and zlib.crc32(found.contents) == debuglink.crc:
                return found
        except TargetError:
            continue  # none there, unreadable or broken: the next one may do
    return None


def _debug_candidates(
    build_id: str | None,
    debuglink: DebugLink | None,
    path: Path,
    debug_dirs: Sequence[Path],
    root: Path,
) -> Iterable[Path]:
    roots = [root] if root == Path("/") else [root, Path("/")]
    if build_id is not None:
        for place in roots:
            for directory in debug_dirs:
                yield (
                    _inside(place, directory)
                    / ".build-id"
                    / build_id[:2]
                    / (build_id[2:] + ".debug")
                )
    if debuglink is not None:
        yield _inside(root, path.parent) / debuglink.name
        yield _inside(root, path.parent) / ".debug" / debuglink.name
        for place in roots:
            for directory in debug_dirs:
                yield _inside(place, directory) / _inside(Path(), path.parent) / debuglink.name


def _inside(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")


def _align4(size: int) -> int:
    return (size + 3) & ~3
