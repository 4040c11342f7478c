"""The image in a core file: a process as it was when it ended, or when gcore wrote the file.

The file may be a stranger's: a child without rights reads it (virtrace.confined).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from virtrace.binary import x86_64
from virtrace.binary.core import LARGEST, MOST_READ, CoreFile, MappedFile, Signal
from virtrace.binary.debuginfo import fetch
from virtrace.binary.elf import MACHINES
from virtrace.binary.headers import Broken, build_id_in, unreadable
from virtrace.binary.reader import Files
from virtrace.confined import Answer, Bounds, Child, Json, Tell
from virtrace.errors import TargetError, Unavailable
from virtrace.files import open_regular
from virtrace.image import packed_core
from virtrace.image.memory import PAGE, STACK_SIZES, StackCopier, stack_ranges
from virtrace.image.model import Module, Program, Registers, SystemCall, Thread
from virtrace.image.packed_core import format_of, unpacking
from virtrace.image.process import visible_path

_BOUNDS = Bounds(processor_seconds=60)
_REGISTERS = struct.Struct(f"<{len(x86_64.ABI.user_registers)}Q")
_PF_W = 2  # of <elf.h>: the segment is writable
_ELF = b"\x7fELF"
# More than any daemon has; and for how long servers are asked for them.
_MOST_MODULES, _SECONDS_TO_ASK = 1000, 300.0
_WORD = struct.Struct("<Q")
# Of struct user_regs_struct.
_FS_BASE = 21 * _WORD.size
_AT_ENTRY = 9  # of <elf.h>: where the program begins


class Missing(NamedTuple):
    """A file that was not found. build_id: None if the core does not contain it."""

    path: str
    build_id: str | None


class CoreImage:
    """A process in a core file.

    pid: the process id; None if the core does not contain it.
    signal: the signal that ended the process; None if the core does not contain it.
    missing: executable files and libraries of the process that were not found.
    """

    def __init__(self, path: Path, root: Path = Path("/"), progress: Tell | None = None) -> None:
        """Open it.

        root: the folder that contains the program's files, at their own paths or by their build-ids
            (usr/lib/.build-id). A file is used only if its build-id is the one in the core's
            memory. If the user has named debuginfod servers, they are asked for what is not there.
        progress: called with a line now and then while a compressed core is unpacked
        Raises: TargetError if the file cannot be read, or is not a core.
        """
        try:
            with open_regular(path, LARGEST) as file:
                packed = format_of(file)
            bounds = _BOUNDS if packed is None else packed_core.BOUNDS
            self._child = Child(str(path), lambda: _answering(path), bounds)
        except OSError as error:
            raise unreadable(path, error) from error
        self._facts: Mapping[str, Any] = self._child.ask("facts", progress=progress)
        self.program = self._program(root, {})
        self.memory = CoreMemory(self._child, self.program)
        self.missing = self._missing()
        until = time.monotonic() + _SECONDS_TO_ASK
        found = {
            one.path: place
            for one in self.missing
            if (place := _file_of_build(one, root, ask=time.monotonic() < until)) is not None
        }
        if found:
            self.program = self._program(root, found)
            self.memory = CoreMemory(self._child, self.program)
            self.missing = self._missing()

    @property
    def pid(self) -> int | None:
        pid = self._facts["pid"]
        return None if pid is None else int(pid)

    @property
    def signal(self) -> Signal | None:
        signal = self._facts["signal"]
        return None if signal is None else Signal(*map(int, signal))

    def threads(self) -> Sequence[Thread]:
        """Every thread, in the core's order: the one that ended the process is the first."""
        ranges = [(int(start), int(start) + int(size)) for start, size in self._facts["segments"]]
        threads = [(int(tid), bytes.fromhex(data)) for tid, data in self._facts["threads"]]
        blocks = (self._thread_block(data) for _, data in threads)
        stacks = StackCopier(self.memory, stack_ranges(ranges, filter(None, blocks)))
        return [self._thread(tid, data, stacks) for tid, data in threads]

    def heaps(self) -> Sequence[tuple[int, int]]:
        """Writable memory that the core contains and that is of no file, and no thread's stack."""
        files = [(int(start), int(end)) for start, end, _, _ in self._facts["files"]]
        found = []
        for start, size, is_writable in self._facts["contained"]:
            is_of_file = any(begin <= start < end for begin, end in files)
            if is_writable and size and size not in STACK_SIZES and not is_of_file:
                found.append((int(start), int(start) + int(size)))
        return found

    def _thread_block(self, registers: bytes) -> int:
        """Where the C library keeps what it knows of a thread; 0 if that is not known."""
        if self.machine != x86_64.ABI.machine or len(registers) < _FS_BASE + _WORD.size:
            return 0
        return int(_WORD.unpack_from(registers, _FS_BASE)[0])

    def _thread(self, tid: int, data: bytes, stacks: StackCopier) -> Thread:
        known: dict[str, int] = {}
        call = None
        missing = f"registers of {self.machine} are not understood, only of x86_64"
        if self.machine == x86_64.ABI.machine and len(data) >= _REGISTERS.size:
            known = dict(zip(x86_64.ABI.user_registers, _REGISTERS.unpack_from(data)))
            missing = "the core does not contain it"
            # -1 outside of a system call.
            if known["orig_rax"] < 1 << 63:
                arguments = tuple(known[name] for name in x86_64.SYSTEM_CALL_ARGUMENTS)
                call = SystemCall(known["orig_rax"], arguments)
        stack = stacks.copy(known.get(x86_64.ABI.stack_pointer))
        return Thread(tid, None, None, Registers(known, missing), call, None, stack)

    @property
    def machine(self) -> str:
        number = int(self._facts["machine_number"])
        return MACHINES.get(number, f"machine {number}")

    def _missing(self) -> tuple[Missing, ...]:
        """The files that are not those of the core."""
        found = []
        for module in self.program.modules[:_MOST_MODULES]:
            if not self.memory.is_same(module):
                head = bytes.fromhex(self._child.ask("read", module.start, PAGE))
                if head.startswith(_ELF) or ".so" in module.name:
                    found.append(Missing(module.path, _build_id(head)))
        return tuple(found)

    def _program(self, root: Path, found: Mapping[str, Path]) -> Program:
        """found: files that are elsewhere, by their own paths."""
        mapped = [
            MappedFile(int(start), int(end), int(offset), str(path))
            for start, end, offset, path in self._facts["files"]
        ]
        parts: dict[str, list[MappedFile]] = {}
        for part in sorted(mapped):
            parts.setdefault(part.path, []).append(part)
        names = {path: visible_path(path, "/") for path in parts}
        places = [(found.get(name, root / name.lstrip("/")), name) for name, _ in names.values()]
        files = Files(places)
        modules = tuple(
            Module(
                *(names[path][0], places[number][0], of[0].start, max(part.end for part in of)),
                *(of[0].offset, names[path][1], files, number),
            )
            for number, (path, of) in enumerate(parts.items())
        )
        entry = self._facts["entry"]
        exe = next((one.path for one in modules if entry and one.contains(int(entry))), "")
        return Program(exe, root, modules)


class CoreMemory:
    """The memory in a core.

    It leaves out what the process had mapped from files and not changed: that is read from the
    files, as far as they are proven to be the same.
    """

    def __init__(self, child: Child, program: Program) -> None:
        self._child = child
        self._program = program
        self._is_same: dict[Module, bool] = {}

    def read(self, address: int, size: int) -> bytes:
        data = self.read_available(address, size)
        if len(data) != size:
            raise Unavailable(f"the core does not contain the memory at {address:#x}")
        return data

    def read_available(self, address: int, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            wanted = min(size - len(data), MOST_READ)
            piece = bytes.fromhex(self._child.ask("read", address + len(data), wanted))
            data += piece
            if len(piece) < wanted:
                data += self._of_file(address + len(data), size - len(data))
                break
        return bytes(data)

    def is_same(self, module: Module) -> bool:
        """Whether the file of a module is the one that the process had mapped."""
        if module not in self._is_same:
            # What proves it has to be in the core itself.
            self._is_same[module] = False
            with suppress(TargetError):
                at, content = module.elf.fingerprint
                there = self.read_available(module.base + at, len(content))
                self._is_same[module] = there == content
        return self._is_same[module]

    def _of_file(self, address: int, size: int) -> bytes:
        """Return what a file has for an address that the core leaves out."""
        module = self._program.module_at(address)
        if module is None:
            return b""
        if not self.is_same(module):
            return b""
        try:
            end = min(address + size, (address // PAGE + 1) * PAGE)
            return module.elf.content(address - module.base, end - address) or b""
        except TargetError:
            return b""


def _build_id(head: bytes) -> str | None:
    """head: the first bytes of a mapped file; they may be a stranger's."""
    try:
        return build_id_in(head)
    except (Broken, struct.error, IndexError):
        return None


def _file_of_build(file: Missing, root: Path, *, ask: bool) -> Path | None:
    """Return a file by its build-id: where Fedora's packages link it, or from debuginfod.

    ask: whether debuginfod's servers may be asked
    """
    build_id = file.build_id
    if build_id is None:
        return None
    linked = root / "usr/lib/.build-id" / build_id[:2] / build_id[2:]
    if linked.exists():
        return linked
    return fetch(build_id, os.path.basename(file.path), is_executable=True) if ask else None


def _answering(path: Path) -> Answer:
    """Open a core file; runs in the child, before it drops its rights."""
    try:
        file = open_regular(path, LARGEST)
        packed = format_of(file)
        unpack = None if packed is None else unpacking(str(path), file, packed)
    except OSError as error:
        raise unreadable(path, error) from error
    opened: list[CoreFile] = []

    def answer(question: str, arguments: list[Json], tell: Tell) -> Json:
        if question == "facts":
            opened.append(CoreFile(str(path), file if unpack is None else unpack(tell)))
            return _facts(opened[0])
        address, size = arguments
        return opened[0].read(address, size).hex()

    return answer


def _facts(core: CoreFile) -> Json:
    return {
        "machine_number": core.machine_number,
        "pid": core.pid,
        "signal": core.signal,
        "entry": core.auxv.get(_AT_ENTRY),
        "segments": [(segment.address, segment.size_in_memory) for segment in core.segments],
        "contained": [
            (segment.address, segment.size, bool(segment.flags & _PF_W))
            for segment in core.segments
        ],
        "threads": [(thread.tid, thread.registers.hex()) for thread in core.threads],
        "files": core.files,
    }
