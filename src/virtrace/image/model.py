"""What every image of a program has in common: modules, memory, threads and registers.

An image is a program as it is: a live process (`live`), a core file (`core`), or files on disk
(`files`), which have neither memory nor threads.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from virtrace.binary.reader import Binary, Files, debug_file, read_by_child
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import MemoryCopy, PartialMemory
from virtrace.trace.target import is_file_of

# A function of glibc's dynamic linker that debuggers watch: r_brk of <link.h>.
_LINKER_HOOK = "_dl_debug_state"


@dataclass(frozen=True)
class Module:
    """An executable file or shared library that a program has mapped.

    path: as the program itself sees it.
    file: where it can be opened from here. For a live process this is the mapped file itself,
        whatever its path leads to by now, where the kernel allows that (root on the host); else
        its path below the root of the process.
    start: address of the lowest mapping; offset: the file offset of that mapping, bytes.
    end: address behind the highest mapping.
    deleted: the file was replaced or removed on disk since it was mapped.
    """

    path: str
    file: Path
    start: int
    end: int
    offset: int
    deleted: bool
    # All files that one child reads, and the place of this one among them.
    files: Files | None = field(default=None, compare=False, repr=False)
    number: int = field(default=0, compare=False, repr=False)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def contains(self, address: int) -> bool:
        return self.start <= address < self.end

    @cached_property
    def elf(self) -> Binary:
        """The file's contents; its answers raise TargetError where it cannot be read."""
        if self.files is None:
            return read_by_child(self.file, self.path)
        return Binary(self.files, self.number)

    @cached_property
    def base(self) -> int:
        """The load bias: add it to an address of the file for one of the program."""
        return self.elf.load_bias(self.start, self.offset)

    @cached_property
    def build_id(self) -> str | None:
        return self.elf.build_id


@dataclass(frozen=True)
class Program:
    """The files of a program, mapped or as they would be mapped.

    exe: path of the executable, as the program sees it.
    root: where its ``/`` can be reached from here.
    """

    exe: str
    root: Path
    modules: tuple[Module, ...]

    def module(self, name: str) -> Module | None:
        """The module of that name or soname."""
        for module in self.modules:
            if is_file_of(module.name, name):
                return module
        return None

    def module_at(self, address: int) -> Module | None:
        """The module that is mapped at an address."""
        starts, modules = self._by_start
        index = bisect_right(starts, address) - 1
        return modules[index] if index >= 0 and modules[index].contains(address) else None

    @cached_property
    def _by_start(self) -> tuple[list[int], list[Module]]:
        modules = sorted(self.modules, key=lambda module: module.start)
        return [module.start for module in modules], modules

    @cached_property
    def linker(self) -> tuple[Module, int] | None:
        """The dynamic linker and the address of its hook for debuggers (r_brk).

        The hook is called after each load or unload of a file. None if there is none.
        """
        for module in self.modules:
            if module.name.startswith("ld"):
                with suppress(TargetError):
                    hook = module.elf.exported_function(_LINKER_HOOK)
                    if hook is not None and not self.doubts({module.base + hook: True}):
                        return module, module.base + hook
        return None

    def doubts(self, addresses: Mapping[int, bool]) -> dict[int, str]:
        """Why a probe must not be set at an address, for each address that is not proven safe.

        An address is proven safe where the file says that an instruction of a function begins
        there and, for a process, where the memory holds the file's code, breakpoints apart.

        addresses: addresses in the program, and whether a function must begin there.
        Raises: TargetError if a file cannot be read, or is not the one that is mapped.
        """
        doubts: dict[int, str] = dict.fromkeys(addresses, "it is in no file of the process")
        for module in self.modules:
            inside = {
                address - module.base: must_begin
                for address, must_begin in addresses.items()
                if module.contains(address)
            }
            if inside:
                doubted = self._doubts_of(module, inside)
                for address in inside:
                    del doubts[module.base + address]
                    if address in doubted:
                        doubts[module.base + address] = doubted[address]
        return doubts

    def _doubts_of(self, module: Module, addresses: Mapping[int, bool]) -> dict[int, str]:
        """The same for one module, by addresses of the file."""
        return module.elf.doubts(addresses)

    def debug_info(self, module: Module) -> Binary | None:
        """The file with the debug info of a module: its own, or a separate one on this host.

        None if there is none, and where somebody other than root can have written the module:
        GDB reads no debug info for it then.
        """
        if not module.elf.is_trusted:
            return None
        if module.elf.has_debug_info:
            return module.elf
        return debug_file(module.build_id, module.elf.debuglink, module.path, root=self.root)


@dataclass(frozen=True)
class Registers:
    """The registers of a thread, as far as they are known.

    known: values by GDB's names for registers.
    missing: why the others are not known.
    """

    known: Mapping[str, int]
    missing: str

    def __getitem__(self, name: str) -> int:
        """Raises: Unavailable if the register is not known."""
        if name not in self.known:
            raise Unavailable(f"{name} is not known: {self.missing}")
        return self.known[name]


@dataclass(frozen=True)
class SystemCall:
    """The system call that a thread waits in.

    number: as the kernel of this processor counts; arguments: six words.
    """

    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Thread:
    """A thread as it was when the image was taken.

    tid: the thread id, as the image's source counts (the host for /proc, the kernel's for a core).
    name: at most 15 bytes; None where the image does not say.
    state: the letter of /proc/PID/stat, such as S or D; None where the image does not say.
    waits_in: the system call it waits in; None where it is in none, or none is known.
    wait_channel: the kernel function it sleeps in (/proc/PID/wchan); None where it is not known.
    stack: memory that belongs to the registers: what the thread's stack held at that moment.
    """

    tid: int
    name: str | None
    state: str | None
    registers: Registers
    waits_in: SystemCall | None
    wait_channel: str | None
    stack: MemoryCopy


class Image(Protocol):
    """A program with its memory and its threads."""

    @property
    def program(self) -> Program: ...

    @property
    def memory(self) -> PartialMemory: ...

    def threads(self) -> Sequence[Thread]:
        """Take a look at every thread."""

    def heaps(self) -> Sequence[tuple[int, int]]:
        """First address and end of what may hold what the program allocates, its stacks apart."""
