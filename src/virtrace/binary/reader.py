"""Files of programs as others see them: read by a child without rights (virtrace.confined).

The child parses; what comes back is plain data, checked here. No place that it tells is believed
to be an instruction before ``doubts`` has compared it with what the process has in memory.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from virtrace.binary.elf import (
    LARGEST,
    DebugLink,
    ElfFile,
    Segment,
    StapProbe,
    unreadable,
)
from virtrace.binary.functions import Callee, Functions, Instructions, call_before
from virtrace.binary.unwind import NotUnderstood, Row, Rule, UnwindTable, unwind_table
from virtrace.confined import Bounds, Child, Tell
from virtrace.errors import TargetError
from virtrace.files import open_regular

DEBUG_DIRS = (Path("/usr/lib/debug"),)

# statfs(2), of file systems whose answers come from a program of some user.
_FUSE = 0x65735546
_STATFS_SIZE = 256
# Who runs this; the child that asks is somebody else.
_US = os.geteuid()
_MOST_BREAKPOINTS = 10_000
# Bytes, of all files of a process: it becomes some three times as much here.
_MOST_ANSWERED = 48 << 20

Made = TypeVar("Made")


class Files:
    """Files of one file system, which one child reads. It is started by the first question."""

    def __init__(self, paths: Sequence[tuple[Path, str]], pid: int = 0) -> None:
        """paths: where each can be opened from here, and its name for messages.

        pid: of the process whose memory is compared with them; 0: of none.
        """
        self.paths = paths
        self._pid = pid
        self._child: Child | None = None
        self._answered = 0
        # By number: why a file is not read any more, and what to do.
        self._refused: dict[int, tuple[str, str]] = {}

    def ask(self, number: int, question: str, *arguments: Any) -> Any:
        """TargetError where the file cannot be read."""
        refused = self._refused.get(number)
        if refused is not None:
            raise TargetError(*refused)
        if self._child is None:
            wanted = {
                index: path for index, path in enumerate(self.paths) if index not in self._refused
            }
            pid = self._pid
            try:
                self._child = Child(
                    self.paths[number][1], lambda: _Answering(wanted, pid).answer, Bounds()
                )
            except OSError as error:
                raise TargetError(
                    f"no process can be started to read {self.paths[number][1]}: {error.strerror}",
                    "let root have more processes (ulimit -u)",
                ) from error
        try:
            answer = self._child.ask(question, number, *arguments)
            if self._answered + self._child.answered > _MOST_ANSWERED:
                self._child.close()
                raise TargetError(
                    f"{self.paths[number][1]} and the other files of the process say more than "
                    "those of a daemon do",
                    "they are damaged, or made to harm whoever reads them: look where they come "
                    "from",
                )
            return answer
        except TargetError as error:
            if self._child.has_ended:
                # Of this file; the others are read by another child. Where they could not even be
                # opened, their file system does not answer.
                stuck = [number] if self._child.has_begun else range(len(self.paths))
                self._refused.update(dict.fromkeys(stuck, (error.what, error.remedy)))
                self._answered += self._child.answered
                self._child = None
            raise


class Binary:
    """What one ELF file says of itself. Everything raises TargetError where it cannot be read."""

    def __init__(self, files: Files, number: int) -> None:
        self.path, self.name = files.paths[number]
        self._files = files
        self._number = number
        self._around: dict[int, int | None] = {}

    def _ask(self, question: str, *arguments: Any) -> Any:
        return self._files.ask(self._number, question, *arguments)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._ask("facts")
        return facts

    @property
    def machine(self) -> str:
        """As `uname -m` names it."""
        return str(self._facts["machine"])

    @property
    def machine_number(self) -> int:
        """As the ELF header has it."""
        return int(self._facts["machine_number"])

    @property
    def is_little_endian_64(self) -> bool:
        return bool(self._facts["is_little_endian_64"])

    @property
    def build_id(self) -> str | None:
        """In lower-case hexadecimal; None where the linker left none."""
        found = self._facts["build_id"]
        return None if found is None else bytes.fromhex(found).hex()

    @property
    def is_trusted(self) -> bool:
        """Nobody but root, or the user who runs this, can have written it."""
        return bool(self._facts["is_trusted"])

    @property
    def has_debug_info(self) -> bool:
        """Whether this very file carries DWARF that may be read by GDB."""
        return bool(self._facts["has_debug_info"]) and self.is_trusted

    @property
    def shared_debug_info(self) -> str | None:
        """The name of the file where dwz has put a part of its DWARF; None where it has all."""
        found = self._facts["shared_debug_info"]
        return None if found is None else str(found)

    @property
    def debuglink(self) -> DebugLink | None:
        found = self._facts["debuglink"]
        return None if found is None else DebugLink(str(found[0]), int(found[1]))

    @cached_property
    def segments(self) -> Sequence[Segment]:
        return [
            Segment(int(address), int(offset), int(size), bool(executable))
            for address, offset, size, executable in self._facts["segments"]
        ]

    @cached_property
    def fingerprint(self) -> tuple[int, bytes]:
        """Virtual address and bytes by which the loaded file is known again."""
        address, content = self._ask("fingerprint")
        return int(address), bytes.fromhex(content)

    def code_digests(self) -> dict[str, str]:
        """Of each section of code, by name, what is the same where address and bytes are."""
        return {str(name): str(digest) for name, digest in self._ask("code_digests").items()}

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        return str(self._ask("sha256"))

    @cached_property
    def crc(self) -> int:
        """CRC-32 of the whole file."""
        return int(self._ask("crc"))

    @cached_property
    def _exported(self) -> list[tuple[int, int, str]]:
        found = self._ask("exported_functions")
        return [(int(start), int(end), str(name)) for start, end, name in found]

    def exported_functions(self) -> list[tuple[int, int, str]]:
        """First address, address behind, and name of each function in ``.dynsym``, sorted."""
        return self._exported

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: start for start, _, name in reversed(self._exported)}

    def exported_function(self, name: str) -> int | None:
        """Virtual address of a function that this file defines in ``.dynsym``."""
        return self._by_name.get(name)

    def stap_probes(self) -> list[StapProbe]:
        """The static probes, in the file's order; one name can stand at several places."""
        return self._stap_probes

    @cached_property
    def _stap_probes(self) -> list[StapProbe]:
        return [
            StapProbe(str(provider), str(name), int(address), int(semaphore), str(arguments))
            for provider, name, address, semaphore, arguments in self._ask("stap_probes")
        ]

    def load_bias(self, start: int, offset: int) -> int:
        """What to add to this file's addresses for those of a process.

        start, offset: of the lowest mapping of the file, as in ``/proc/PID/maps``.
        """
        for segment in self.segments:
            return start - offset + segment.offset - segment.address
        raise TargetError(
            f"{self.name} has no loadable segment", "install the package that owns it again"
        )

    def file_offset(self, address: int) -> int | None:
        """Where in the file the byte of a virtual address is; None where it is in no segment."""
        for segment in self.segments:
            if 0 <= address - segment.address < segment.size:
                return segment.offset + address - segment.address
        return None

    def callers_of(self, check: str) -> list[int]:
        """As Functions has it, and so the next three."""
        return [int(address) for address in self._ask("callers_of", check)]

    def called_by(self, caller: int, calls: str) -> list[int]:
        return [int(address) for address in self._ask("called_by", caller, calls)]

    def callees(self, function: int) -> list[Callee]:
        return [
            Callee(None if address is None else int(address), None if name is None else str(name))
            for address, name in self._ask("callees", function)
        ]

    def uses(self, name: str) -> int:
        return int(self._ask("uses", name))

    def function_around(self, address: int) -> int | None:
        """Where the function, or fragment of one, begins that an address is in.

        None where the unwind table has none.
        """
        if address not in self._around:
            found = self._ask("function_around", address)
            self._around[address] = None if found is None else int(found)
        return self._around[address]

    def unwind_row(self, address: int) -> Row | None:
        """How the caller of a function is found at an address in it; None where it is not said."""
        found = self._ask("unwind_row", address)
        if found is None:
            return None
        start, end, cfa, rules, return_register, is_signal_frame = found
        return Row(
            *(int(start), int(end), _rule(*cfa)),
            {int(register): _rule(*rule) for register, *rule in rules},
            *(int(return_register), bool(is_signal_frame)),
        )

    def calls_before(self, addresses: Sequence[int]) -> dict[int, tuple[int | None, int | None]]:
        """What the direct calls that end at these addresses lead to.

        Two addresses of the file, None where not known: what is called, and a slot in memory
        that holds the address of what is called. Both None: no direct call ends there.
        """
        return {
            int(address): (
                None if target is None else int(target),
                None if slot is None else int(slot),
            )
            for address, target, slot in self._ask("calls_before", list(addresses))
        }

    def doubts(self, places: Mapping[int, bool], base: int | None = None) -> dict[int, str]:
        """Why a probe must not be set there, for each place that is not proven.

        places: addresses, and whether a function has to begin there. Proven is that an
        instruction of a function begins there. base: the load bias in the process of these
        files, whose code in memory must be the same; None: the file alone is looked at.
        """
        found = self._ask("doubts", [*places.items()], base)
        return {int(address): str(why) for address, why in found}

    def is_mapped(self, base: int) -> bool:
        """Whether the process of these files has this one, by its mark. base: the load bias."""
        return bool(self._ask("is_mapped", base))

    def breakpoints(self, base: int, instruction: bytes) -> list[tuple[int, bytes]]:
        """Where the process has that instruction in place of the file's bytes, and these.

        base: the load bias. Addresses are those of the process.
        """
        found = self._ask("breakpoints", base, instruction.hex())
        return [(int(address), bytes.fromhex(was)) for address, was in found]


def read_by_child(path: Path, name: str | os.PathLike[str] | None = None) -> Binary:
    """One file. name: for messages, where path tells a person little."""
    return Binary(Files([(path, os.fspath(name or path))]), 0)


class _Answering:
    """In the child. Opens the files with all rights; what it reads later it needs none for."""

    def __init__(self, paths: Mapping[int, tuple[Path, str]], pid: int) -> None:
        self._memory = -1
        if pid:
            # That of a process which is gone cannot be read, which is said when it is asked for.
            with suppress(OSError):
                self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self._files: dict[int, tuple[Path, str, BinaryIO | OSError]] = {}
        for number, (path, name) in paths.items():
            try:
                self._files[number] = path, name, open_regular(path, LARGEST)
            except OSError as error:
                self._files[number] = path, name, error
        self._elfs: dict[int, ElfFile] = {}
        self._known: dict[tuple[int, object], Any] = {}

    def answer(self, question: str, arguments: list[Any], tell: Tell) -> Any:
        number, *rest = arguments
        return getattr(self, f"_{question}")(number, *rest)

    def _elf(self, number: int) -> ElfFile:
        if number not in self._elfs:
            path, name, file = self._files[number]
            if isinstance(file, OSError):
                raise unreadable(name, file)
            self._elfs[number] = ElfFile(path, name, file)
        return self._elfs[number]

    def _made(self, number: int, make: Callable[[ElfFile], Made]) -> Made:
        """What is made of a file once."""
        key = number, make
        if key not in self._known:
            self._known[key] = make(self._elf(number))
        found: Made = self._known[key]
        return found

    def _facts(self, number: int) -> dict[str, Any]:
        elf = self._elf(number)
        return {
            "machine": elf.machine,
            "machine_number": elf.machine_number,
            "is_little_endian_64": elf.is_little_endian_64,
            "build_id": elf.build_id,
            "is_trusted": _is_trusted(elf.descriptor),
            "has_debug_info": elf.has_debug_info,
            "shared_debug_info": elf.shared_debug_info,
            "debuglink": elf.debuglink,
            "segments": elf.segments,
        }

    def _fingerprint(self, number: int) -> tuple[int, str]:
        address, content = self._elf(number).fingerprint
        return address, content.hex()

    def _code_digests(self, number: int) -> dict[str, str]:
        return {
            name: f"{section.address:#x} {hashlib.sha256(section.data).hexdigest()}"
            for name, section in self._elf(number).code_sections().items()
        }

    def _sha256(self, number: int) -> str:
        return self._elf(number).sha256

    def _crc(self, number: int) -> int:
        return self._elf(number).crc

    def _exported_functions(self, number: int) -> list[tuple[int, int, str]]:
        return self._elf(number).exported_functions()

    def _stap_probes(self, number: int) -> list[StapProbe]:
        return self._elf(number).stap_probes()

    def _callers_of(self, number: int, check: str) -> list[int]:
        return self._made(number, Functions).callers_of(check)

    def _called_by(self, number: int, caller: int, calls: str) -> list[int]:
        return self._made(number, Functions).called_by(caller, calls)

    def _callees(self, number: int, function: int) -> list[tuple[int | None, str | None]]:
        found = self._made(number, Functions).callees(function)
        return [(callee.address, callee.name) for callee in found]

    def _uses(self, number: int, name: str) -> int:
        return self._made(number, Functions).uses(name)

    def _function_around(self, number: int, address: int) -> int | None:
        table = self._made(number, unwind_table)
        found = table.around(address) if table is not None else None
        return None if found is None else found[0]

    def _unwind_row(self, number: int, address: int) -> list[Any] | None:
        elf = self._elf(number)
        try:
            row = self._made(number, UnwindTable).row(address)
        except NotUnderstood as error:
            raise TargetError(
                f"the call frame information of {elf.name} cannot be used: {error}",
                "install the package that owns it again, if it is damaged",
            ) from error
        if row is None:
            return None
        rules = [(register, *_plain(rule)) for register, rule in row.registers.items()]
        return [*row[:2], _plain(row.cfa), rules, row.return_register, row.is_signal_frame]

    def _calls_before(
        self, number: int, addresses: list[int]
    ) -> list[tuple[int, int | None, int | None]]:
        elf = self._elf(number)
        return [(address, *call_before(elf, address)) for address in addresses]

    def _doubts(
        self, number: int, places: list[tuple[int, bool]], base: int | None
    ) -> list[tuple[int, str]]:
        instructions = self._made(number, Instructions)
        read = None if base is None else lambda at, size: self._read(base + at, size)
        found = [(address, instructions.doubt(address, entry, read)) for address, entry in places]
        return [(address, why) for address, why in found if why is not None]

    def _is_mapped(self, number: int, base: int) -> bool:
        address, content = self._elf(number).fingerprint
        return self._read(base + address, len(content)) == content

    def _breakpoints(self, number: int, base: int, instruction: str) -> list[tuple[int, str]]:
        wanted = bytes.fromhex(instruction)
        found: list[tuple[int, str]] = []
        for section in self._elf(number).code_sections().values():
            start = base + section.address
            there = self._read(start, len(section.data))
            at = there.find(wanted)
            while at >= 0 and len(found) < _MOST_BREAKPOINTS:
                was = section.data[at : at + len(wanted)]
                if was != wanted:
                    found.append((start + at, was.hex()))
                at = there.find(wanted, at + 1)
        return found

    def _read(self, address: int, size: int) -> bytes:
        """Of the process; what is not there is missing at the end."""
        with suppress(OSError, OverflowError):
            return os.pread(self._memory, size, address)
        return b""


def _plain(rule: Rule) -> tuple[str, int, int, str]:
    return (*rule[:3], rule.expression.hex())


def _rule(kind: str, register: int, offset: int, expression: str) -> Rule:
    return Rule(str(kind), int(register), int(offset), bytes.fromhex(expression))


def open_trusted(path: Path) -> BinaryIO:
    """A file that Binary.is_trusted holds for. OSError where it does not any more."""
    file = open_regular(path, LARGEST)
    if not _is_trusted(file.fileno()):
        file.close()
        raise PermissionError(errno.EPERM, "others than root can have written it", str(path))
    return file


def _is_trusted(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    if status.st_uid not in (0, _US) or status.st_mode & 0o022:
        return False
    found = (ctypes.c_long * (_STATFS_SIZE // 8))()
    return ctypes.CDLL(None).fstatfs(descriptor, found) == 0 and found[0] != _FUSE


def debug_file(
    build_id: str | None,
    debuglink: DebugLink | None,
    path: str | os.PathLike[str],
    debug_dirs: Sequence[Path] = DEBUG_DIRS,
    root: Path = Path("/"),
) -> Binary | None:
    """The separate debug file of a binary, where GDB would look for it.

    path: the binary as its process sees it. root: where that process's ``/`` can be reached
    from here (``/proc/PID/root``); the debug directories are tried inside it and in our own
    ``/``. A candidate counts when its build-id is the same, or, for a binary without one,
    when its contents have the CRC of the debug link. None where there is no such file, or only
    one that others than root can have written. One inside another root counts only when it is
    whole: GDB would look for the rest of it here.
    """
    candidates = list(_debug_candidates(build_id, debuglink, Path(path), debug_dirs, root))
    files = Files([(candidate, str(candidate)) for candidate in candidates])
    for number, candidate in enumerate(candidates):
        found = Binary(files, number)
        try:
            elsewhere = root != Path("/") and candidate.is_relative_to(root)
            if not found.has_debug_info or (elsewhere and found.shared_debug_info is not None):
                continue
            if build_id is not None:
                if found.build_id == build_id:
                    return found
            elif debuglink is not None and found.crc == debuglink.crc:
                return found
        except TargetError:
            continue
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
    # A file of a stranger's may name any other.
    if debuglink is not None and debuglink.name == os.path.basename(debuglink.name):
        yield _inside(root, path.parent) / debuglink.name
        yield _inside(root, path.parent) / ".debug" / debuglink.name
        for place in roots:
            for directory in debug_dirs:
                yield _inside(place, directory) / _inside(Path(), path.parent) / debuglink.name


def _inside(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")
