"""ELF files of strangers, read by a child without rights (virtrace.confined).

The child parses; what it returns is plain data, which is checked here. No address that it returns
counts as an instruction before ``doubts`` has compared it with the memory of the process.
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
)
from virtrace.binary.functions import Callee, Functions, Instructions, call_before
from virtrace.binary.headers import unreadable
from virtrace.binary.unwind import NotUnderstood, Row, Rule, UnwindTable, unwind_table
from virtrace.confined import Bounds, Child, Tell
from virtrace.errors import TargetError, Unavailable
from virtrace.files import open_regular

DEBUG_DIRS = (Path("/usr/lib/debug"),)

# statfs(2): file systems that are served by a program of some user.
_FUSE = 0x65735546
_STATFS_SIZE = 256
# The user of this program; the child that asks runs as another one.
_US = os.geteuid()
_MOST_BREAKPOINTS = 10_000
# Bytes of answers about all files of a process; they take about three times as much memory here.
_MOST_ANSWERED = 48 << 20
# Bytes that are asked for at a time.
_MOST_CONTENT = 1 << 20

Made = TypeVar("Made")


class Files:
    """Files of one file system, read by one child, which the first question starts."""

    def __init__(self, paths: Sequence[tuple[Path, str]], pid: int = 0) -> None:
        """Prepare the questions.

        paths: for every file the path that can be opened from here, and its name for messages.
        pid: the process whose memory is compared with the files; 0: none.
        """
        self.paths = paths
        self._pid = pid
        self._child: Child | None = None
        self._answered = 0
        # The files that the child was told to work on ahead of questions.
        self._prepared: list[int] = []
        # What is wrong with a file that is not read any more, and the remedy, by its number.
        self._refused: dict[int, tuple[str, str]] = {}

    def ask(self, number: int, question: str, *arguments: Any) -> Any:
        """Ask the child about a file. Raises: TargetError if the file cannot be read."""
        self._wait()
        child = self._begun(number)
        child.send(question, number, *arguments)
        return self._answer(child, number)

    def prepare(self, number: int, question: str, *arguments: Any) -> None:
        """Ask what has no answer, only lets the child work ahead; do not wait."""
        with suppress(TargetError):
            self._begun(number).send(question, number, *arguments)
            self._prepared.append(number)

    def _wait(self) -> None:
        """Wait until the child has prepared what it was told to."""
        prepared, self._prepared = self._prepared, []
        for number in prepared:
            # What is wrong with this file is told by questions about it.
            with suppress(TargetError):
                if self._child is not None:
                    self._answer(self._child, number)

    def _begun(self, number: int) -> Child:
        """Return the child, for a question about a file. Raises: TargetError."""
        refused = self._refused.get(number)
        if refused is not None:
            raise TargetError(*refused)
        if self._child is None:
            wanted = {
                index: path for index, path in enumerate(self.paths) if index not in self._refused
            }
            name, pid = self.paths[number][1], self._pid
            try:
                self._child = Child(name, lambda: _Answering(wanted, pid).answer, Bounds())
            except OSError as error:
                raise TargetError(
                    f"no process can be started to read {name}: {error.strerror}",
                    "let root have more processes (ulimit -u)",
                ) from error
        return self._child

    def _answer(self, child: Child, number: int) -> Any:
        """Wait for the child's answer about a file. Raises: TargetError."""
        try:
            answer = child.answer()
            if self._answered + child.answered > _MOST_ANSWERED:
                child.close()
                raise TargetError(
                    f"{self.paths[number][1]} and the other files of the process contain more than "
                    "the files of any daemon",
                    "they are damaged or malicious: check where they come from",
                )
            return answer
        except TargetError as error:
            if child.has_ended:
                # Another child will read the other files. If the child could not even open them,
                # their file system does not answer.
                stuck = [number] if child.has_begun else range(len(self.paths))
                self._refused.update(dict.fromkeys(stuck, (error.what, error.remedy)))
                self._answered += child.answered
                self._child = None
            raise


class Binary:
    """The contents of one ELF file. Raises: TargetError, everywhere, if it cannot be read."""

    def __init__(self, files: Files, number: int) -> None:
        self.path, self.name = files.paths[number]
        self._files = files
        self._number = number
        self._around: dict[int, int | None] = {}
        self._rows: dict[int, Row | None] = {}

    def _ask(self, question: str, *arguments: Any) -> Any:
        return self._files.ask(self._number, question, *arguments)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._ask("facts")
        return facts

    @property
    def machine(self) -> str:
        """The processor, as `uname -m` names it."""
        return str(self._facts["machine"])

    @property
    def machine_number(self) -> int:
        """e_machine of the ELF header."""
        return int(self._facts["machine_number"])

    @property
    def is_little_endian_64(self) -> bool:
        return bool(self._facts["is_little_endian_64"])

    @property
    def build_id(self) -> str | None:
        """Lower-case hexadecimal; None if the linker wrote none."""
        found = self._facts["build_id"]
        return None if found is None else bytes.fromhex(found).hex()

    @property
    def is_trusted(self) -> bool:
        """Whether only root or this user can have written it."""
        return bool(self._facts["is_trusted"])

    @property
    def has_debug_info(self) -> bool:
        """Whether the file itself contains DWARF, and GDB may read it."""
        return bool(self._facts["has_debug_info"]) and self.is_trusted

    @property
    def shared_debug_info(self) -> str | None:
        """The file with the part of the DWARF that dwz moved out of this one; None if none."""
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
        """Virtual address and bytes by which the file is recognised in memory."""
        address, content = self._ask("fingerprint")
        return int(address), bytes.fromhex(content)

    def code_digests(self) -> dict[str, str]:
        """Address and digest of every section with code, by its name."""
        return {str(name): str(digest) for name, digest in self._ask("code_digests").items()}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the whole file, hexadecimal."""
        return str(self._ask("sha256"))

    @cached_property
    def crc(self) -> int:
        """The CRC-32 of the whole file."""
        return int(self._ask("crc"))

    @cached_property
    def _exported(self) -> list[tuple[int, int, str]]:
        found = self._ask("exported_functions")
        return [(int(start), int(end), str(name)) for start, end, name in found]

    def exported_functions(self) -> list[tuple[int, int, str]]:
        """First address, end and name of every function in ``.dynsym``, sorted."""
        return self._exported

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: start for start, _, name in reversed(self._exported)}

    def exported_function(self, name: str) -> int | None:
        """Virtual address of a function that this file defines in ``.dynsym``."""
        return self._by_name.get(name)

    def stap_probes(self) -> list[StapProbe]:
        """The static probes, in the file's order; several can have one name."""
        return self._stap_probes

    @cached_property
    def _stap_probes(self) -> list[StapProbe]:
        return [
            StapProbe(str(provider), str(name), int(address), int(semaphore), str(arguments))
            for provider, name, address, semaphore, arguments in self._ask("stap_probes")
        ]

    def load_bias(self, start: int, offset: int) -> int:
        """The difference between addresses of a process and addresses of the file.

        start, offset: those of the file's lowest mapping in ``/proc/PID/maps``.
        """
        for segment in self.segments:
            return start - offset + segment.offset - segment.address
        raise TargetError(
            f"{self.name} has no loadable segment", "reinstall the package that owns it"
        )

    def file_offset(self, address: int) -> int | None:
        """The file offset of a virtual address; None if it is in no segment."""
        for segment in self.segments:
            if 0 <= address - segment.address < segment.size:
                return segment.offset + address - segment.address
        return None

    def prepare(self, *, calls: bool) -> None:
        """Let the child look through the file ahead of questions about it; do not wait.

        calls: also for what the functions call
        """
        self._files.prepare(self._number, "prepare", calls)

    def callers_of(self, check: str) -> list[int]:
        """Functions.callers_of; the next three are methods of Functions, too."""
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

    def content(self, address: int, size: int) -> bytes | None:
        """Return what is loaded to an address; None unless all of it is in the file."""
        found: str | None = self._ask("content", address, size)
        return None if found is None else bytes.fromhex(found)

    def function_around(self, address: int) -> int | None:
        """First address of the function, or fragment of one, that contains an address.

        None if the file does not say.
        """
        if address not in self._around:
            found = self._ask("function_around", address)
            self._around[address] = None if found is None else int(found)
        return self._around[address]

    def unwind_row(self, address: int) -> Row | None:
        """How a function's caller is found at an address of the function; None if not known."""
        if address not in self._rows:
            self._rows[address] = self._row(address)
        return self._rows[address]

    def _row(self, address: int) -> Row | None:
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
        """The targets of the direct calls that end at these addresses.

        Two addresses of the file for each: the target of the call, and the slot in memory that
        contains the address of the target. None if not known; both are None if no call ends there.
        """
        return {
            int(address): (
                None if target is None else int(target),
                None if slot is None else int(slot),
            )
            for address, target, slot in self._ask("calls_before", list(addresses))
        }

    def doubts(self, places: Mapping[int, bool], base: int | None = None) -> dict[int, str]:
        """Why a probe must not be set at an address, for each address that is not proven safe.

        An address is safe if an instruction of a function begins there.

        places: addresses, and whether a function must begin there.
        base: the load bias in the process of these files, whose code in memory must be the same;
            None: look at the file alone.
        """
        found = self._ask("doubts", [*places.items()], base)
        return {int(address): str(why) for address, why in found}

    def returns(self, function: int) -> Sequence[int]:
        """The addresses of all `ret` instructions by which a function ends.

        Raises: Unavailable if not all of them are certain.
        """
        found = self._ask("returns", function)
        if isinstance(found, str):
            raise Unavailable(f"not every end of the function is known: {found}")
        return [int(address) for address in found]

    def is_mapped(self, base: int) -> bool:
        """Whether the process has this file in memory, by its fingerprint. base: the load bias."""
        return bool(self._ask("is_mapped", base))

    def breakpoints(self, base: int, instruction: bytes) -> list[tuple[int, bytes]]:
        """Where the process has a breakpoint in place of the file's code.

        base: the load bias. instruction: the breakpoint.
        Returns addresses in the process, and the bytes of the file.
        """
        found = self._ask("breakpoints", base, instruction.hex())
        return [(int(address), bytes.fromhex(was)) for address, was in found]


def read_by_child(path: Path, name: str | os.PathLike[str] | None = None) -> Binary:
    """Read one file. name: for messages, if path means little to a person."""
    return Binary(Files([(path, os.fspath(name or path))]), 0)


class _Answering:
    """Answers in the child. It opens the files while it still has all rights."""

    def __init__(self, paths: Mapping[int, tuple[Path, str]], pid: int) -> None:
        self._memory = -1
        if pid:
            # If the process is gone, questions about its memory fail later.
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
        """Return what ``make`` computes for a file; it is computed, or refused, only once."""
        key = number, make
        if key not in self._known:
            try:
                self._known[key] = make(self._elf(number))
            except TargetError as error:
                self._known[key] = error
        found: Made = self._known[key]
        if isinstance(found, TargetError):
            raise TargetError(found.what, found.remedy)
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

    def _prepare(self, number: int, calls: bool) -> None:
        if calls:
            self._made(number, Functions)
        self._made(number, Instructions)
        self._exported_functions(number)

    def _callers_of(self, number: int, check: str) -> list[int]:
        return self._made(number, Functions).callers_of(check)

    def _called_by(self, number: int, caller: int, calls: str) -> list[int]:
        return self._made(number, Functions).called_by(caller, calls)

    def _callees(self, number: int, function: int) -> list[tuple[int | None, str | None]]:
        found = self._made(number, Functions).callees(function)
        return [(callee.address, callee.name) for callee in found]

    def _uses(self, number: int, name: str) -> int:
        return self._made(number, Functions).uses(name)

    def _content(self, number: int, address: int, size: int) -> str | None:
        found = self._elf(number).content(address, address + min(size, _MOST_CONTENT))
        return None if found is None else found.hex()

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
                "reinstall the package that owns it, if it is damaged",
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

    def _returns(self, number: int, function: int) -> list[int] | str:
        try:
            return self._made(number, Instructions).returns(function)
        except Unavailable as why:
            return str(why)

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
        """Read memory of the process, up to the first byte that cannot be read."""
        with suppress(OSError, OverflowError):
            return os.pread(self._memory, size, address)
        return b""


def _plain(rule: Rule) -> tuple[str, int, int, str]:
    return (*rule[:3], rule.expression.hex())


def _rule(kind: str, register: int, offset: int, expression: str) -> Rule:
    return Rule(str(kind), int(register), int(offset), bytes.fromhex(expression))


def open_trusted(path: Path) -> BinaryIO:
    """Open a file for which Binary.is_trusted was true. Raises: OSError if it no longer is."""
    file = open_regular(path, LARGEST)
    if not _is_trusted(file.fileno()):
        file.close()
        raise PermissionError(errno.EPERM, "users other than root can write to it", str(path))
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
    """Find the separate debug file of a binary where GDB would look for it.

    The debug directories are searched below root and below our own ``/``. A file counts if its
    build-id is the same or, for a binary without a build-id, if its CRC is that of the debug link.
    A file below another root counts only if it is whole: GDB would look for the rest of it here.

    path: the binary as its process sees it.
    root: the process's ``/`` as seen from here (``/proc/PID/root``).
    Returns None if there is no such file, or only one that users other than root can write to.
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
    # The debug link of a stranger's file may name any other file.
    if debuglink is not None and debuglink.name == os.path.basename(debuglink.name):
        yield _inside(root, path.parent) / debuglink.name
        yield _inside(root, path.parent) / ".debug" / debuglink.name
        for place in roots:
            for directory in debug_dirs:
                yield _inside(place, directory) / _inside(Path(), path.parent) / debuglink.name


def _inside(root: Path, path: Path) -> Path:
    return root / str(path).lstrip("/")
