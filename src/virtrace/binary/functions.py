"""Find static functions of a stripped file by what they call.

Bounds come from the unwind table, imports from the relocations, calls from the code itself. To
tell a call from bytes that only look like one, the function is decoded up to these bytes.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from virtrace.binary import abi, x86_64
from virtrace.binary.elf import ElfFile, Section, Symbol
from virtrace.binary.unwind import NotUnderstood, UnwindTable, unwind_table
from virtrace.errors import TargetError, Unavailable

# Ten times as many as QEMU has, the largest traced program. References take memory and time.
_MOST_REFERENCES = 2_500_000
_MOST_RELOCATIONS = 1 << 20
# Bytes to decode: in all, and of one function.
_MOST_DECODED = 64 << 20
_LARGEST_FUNCTION = 1 << 20
# Breakpoints in one function, by all tracers together.
_MOST_BREAKPOINTS = 64
_STRIDE = 256
# Of one function: fragments and functions that it goes on in, and `ret` instructions.
_MOST_PARTS, _MOST_RETURNS = 16, 64


@dataclass(frozen=True)
class Callee:
    """A called function. address: in this file; None if imported. name: None if static."""

    address: int | None
    name: str | None


class Functions:
    """Functions of one file without symbols, by their start address in the file.

    All methods raise TargetError if the file cannot be read that way (another processor, no unwind
    table), or if an answer would be a guess.

    A *part* is the code that one unwind entry covers: a function, or a fragment that the compiler
    split off (``name.cold``). A part is identified by its start address, a reference by the address
    of its opcode.
    """

    def __init__(self, elf: ElfFile) -> None:
        if not abi.convention_of_file(elf).is_known:
            raise _unknown(elf, f"code for {elf.machine} is not understood, only for x86_64")
        self._elf = elf
        self._may_decode = _MOST_DECODED
        sections = elf.loaded_sections()
        self._text = [
            section
            for name, section in sections.items()
            if section.executable and name not in _STUB_SECTIONS
        ]
        try:
            self._table = UnwindTable(elf)
        except NotUnderstood as error:
            raise _unknown(elf, str(error)) from error
        self._starts = self._table.starts
        try:
            self._symbols = _Symbols([*elf.symbols()], sections)
        except (struct.error, IndexError, ValueError) as error:
            raise _unknown(elf, f"its tables are broken ({error})") from error
        self._calls = self._references(x86_64.CALLS)

    def callers_of(self, check: str) -> list[int]:
        """Return the functions that use ``check``, an imported or exported function.

        Raises: TargetError: there is exactly one, but no pointer leads to it. It is then a part of
        the driver's method that became a function of its own, with other arguments.
        """
        # Some methods pass the check to a common function instead of calling it.
        methods = self._users(self._symbols.ways_to_symbol(check))
        if len(methods) == 1 and not methods <= self._symbols.pointers:
            raise _unknown(
                self._elf,
                f"the function that calls {check}, at {min(methods):#x}, is not the driver's "
                "method itself (no pointer leads to it)",
            )
        return sorted(methods)

    def called_by(self, caller: int, calls: str) -> list[int]:
        """Return the functions that ``caller`` calls directly and that themselves call ``calls``.

        calls: the name of a function that this file imports or exports.
        Raises: TargetError: ``caller`` calls it too, so the function in between may be inlined.
        """
        targets = self._symbols.ways_to_symbol(calls)
        inner = self._users(targets)
        if caller in inner:
            raise _unknown(
                self._elf,
                f"the function at {caller:#x} calls {calls} itself: "
                "the function between them may be inlined",
            )
        found = sorted(
            function for function in inner if caller in self._users(self._symbols.ways_to(function))
        )
        if len(found) == 1 and not (
            caller in self._users(self._symbols.ways_to(found[0]), loads=False)
            and found[0] in self._users(targets, loads=False)
        ):
            raise _unknown(
                self._elf,
                f"it is not certain that {found[0]:#x} is called by {caller:#x} and calls {calls}: "
                "an address is loaded, maybe not for a call",
            )
        return found

    def callees(self, function: int) -> Iterator[Callee]:
        """Return the functions that a function calls directly, in the order of its code.

        Calls through pointers, and calls in fragments that were split off, are not included.
        """
        end = self._end(function)
        found = set()
        for site, target in self._calls.within(function, end):
            if function <= target < end or self._is_load(site) or not self._decodes(function, site):
                continue
            callee = self._callee(target)
            if callee is not None and callee.address != function and callee not in found:
                found.add(callee)
                yield callee

    def uses(self, name: str) -> int:
        """Count the apparent references to an imported or exported function in the code."""
        targets = self._symbols.ways_to_symbol(name)
        return sum(len(self._calls.to(target, target + 1)) for target in targets)

    def _callee(self, target: int) -> Callee | None:
        name = self._symbols.names.get(target)
        if name is not None:
            return Callee(self._symbols.exported.get(name), name.decode("ascii", "replace"))
        with suppress(TargetError):
            if self._starts[max(bisect_right(self._starts, target) - 1, 0)] == target:
                return Callee(self._function(target), None)
        return None

    def _users(self, targets: Iterable[int], loads: bool = True) -> set[int]:
        """Return the functions that call, or jump to, any of the targets.

        loads: include functions that load an address from its slot. Code without a PLT may call it
        through a register, but may also pass it to another function.
        """
        return {
            self._function(part)
            for target in targets
            for site, part in self._proven(self._calls_to(target, target + 1))
            if loads or not self._is_load(site)
        }

    def _is_load(self, site: int) -> bool:
        section = self._section(site)
        return x86_64.is_load(section.data, site - section.address)

    def _function(self, part: int) -> int:
        """Return the function to which a part belongs.

        A fragment is never called and no pointer leads to it. The function from which it was split
        jumps into it, with its own frame.
        """
        if part in self._symbols.pointers or part in self._symbols.exports:
            return part
        to_start = [*self._proven(self._calls_to(part, part + 1))]
        if any(self._byte(site) == x86_64.CALL for site, _ in to_start):
            return part
        end, has_frame = self._unwind(part)
        outside = [site for site in self._calls_to(part + 1, end) if not part <= site < end]
        inside = {source for _, source in self._proven(outside)}
        sources = inside.union(source for _, source in to_start) - {part}
        if not sources or any(self._proven(self._addresses.to(part, part + 1))):
            return part
        is_fragment = bool(inside) or has_frame
        if len(sources) == 1 and is_fragment:
            return sources.pop()
        if len(sources) > 1 and not is_fragment:
            return part  # tail calls from several functions
        raise _unknown(
            self._elf, f"the code at {part:#x} may be a function or a fragment of another one"
        )

    @cached_property
    def _addresses(self) -> _References:
        return self._references(x86_64.LOADS_OF_ADDRESSES)

    def _references(self, forms: Iterable[tuple[re.Pattern[bytes], int]]) -> _References:
        try:
            return _References(self._text, forms)
        except OverflowError as error:
            raise _unknown(self._elf, "it has more code than a driver") from error

    def _proven(self, sites: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yield site and part of each true reference; skip bytes that only look like one."""
        for site in sites:
            index = bisect_right(self._starts, site) - 1
            part = self._starts[max(index, 0)]
            if not part <= site < self._end(part):
                raise _unknown(self._elf, f"the code at {site:#x} belongs to no function")
            if self._decodes(part, site):
                yield site, part
            elif not self._decodes(part, self._end(part)):
                raise _unknown(self._elf, f"the function at {part:#x} has unknown instructions")

    def _calls_to(self, low: int, high: int) -> list[int]:
        """Return the sites of apparent calls of, or jumps to, [low, high)."""
        return [*self._calls.to(low, high), *self._short_jumps(low, high)]

    def _short_jumps(self, low: int, high: int) -> Iterator[int]:
        """Yield the sites of apparent jumps to [low, high) with a displacement of one byte."""
        for section in self._text:
            if low in section:
                first, last = low - section.address, high - section.address
                for site in x86_64.short_jumps(section.data, first, last):
                    yield section.address + site

    def _decodes(self, start: int, end: int) -> bool:
        """Whether the bytes are whole instructions, maybe followed by prefixes of one more."""
        section = self._section(start)
        at = section.address
        self._may_decode -= end - start
        if self._may_decode < 0:
            raise _unknown(self._elf, "decoding its code takes too long")
        return x86_64.instructions().fullmatch(section.data, start - at, end - at) is not None

    def _unwind(self, part: int) -> tuple[int, bool]:
        """Return the end address of a part, and whether it has a frame when it is entered."""
        with suppress(NotUnderstood):
            entry = self._table.entry(part)
            if entry is not None and entry.start == part:
                return entry.end, not _is_later(entry.instructions[:1] or b"\0")
        raise _unknown(self._elf, f"it is not known where the function at {part:#x} ends")

    def _end(self, part: int) -> int:
        return self._unwind(part)[0]

    def _byte(self, address: int) -> int:
        section = self._section(address)
        return section.data[address - section.address]

    def _section(self, address: int) -> Section:
        for section in self._text:
            if address in section:
                return section
        raise _unknown(self._elf, f"a function at {address:#x} is not in its code")


class _Symbols:
    """The imported and exported functions of a file, and the pointers that the loader fills in.

    pointers: values of pointers: driver tables, callbacks, virtual methods
    exports: names by address
    Raises: struct.error, IndexError, ValueError if the tables are broken
    """

    def __init__(self, symbols: Sequence[Symbol], sections: Mapping[str, Section]) -> None:
        self._sections = sections
        data = {name: section.data for name, section in sections.items()}
        self.pointers = set(self._relative_pointers(data.get(".relr.dyn", b"")))
        slots = self._relocated(data, symbols)
        ways: dict[int, set[int]] = {}
        for place, symbol in slots.items():
            ways.setdefault(symbol, set()).add(place)
        for name in _STUB_SECTIONS:
            for stub, slot in self._stubs(name):
                if slot in slots:
                    ways[slots[slot]].add(stub)
        # Addresses that a call of a symbol can use: its slot, stubs that jump through it, itself.
        self._targets: dict[bytes, set[int]] = {}
        self.exports: dict[int, list[bytes]] = {}
        for index, symbol_ in enumerate(symbols):
            targets = ways.get(index, set())
            if not symbol_.is_function and not targets:
                continue
            if symbol_.section:
                targets = targets | {symbol_.address}
                self.exports.setdefault(symbol_.address, []).append(symbol_.name)
            self._targets.setdefault(symbol_.name, set()).update(targets)

    def ways_to_symbol(self, name: str) -> set[int]:
        """Return the addresses that a call of an imported or exported function can use."""
        return self._targets.get(name.encode(), set())

    def ways_to(self, function: int) -> set[int]:
        """Return the addresses that a call of a function of this file can use, with PLT stubs."""
        exported = (self._targets[name] for name in self.exports.get(function, ()))
        return {function}.union(*exported)

    @cached_property
    def names(self) -> dict[int, bytes]:
        """Symbol name by each address that a call of it can use; of several names the first."""
        return {
            target: name
            for name, targets in sorted(self._targets.items(), reverse=True)
            for target in targets
        }

    @cached_property
    def exported(self) -> dict[bytes, int]:
        return {name: address for address, names in self.exports.items() for name in names}

    def _relocated(self, data: Mapping[str, bytes], symbols: Sequence[Symbol]) -> dict[int, int]:
        """Add the pointers that relocations fill in; return each slot's index of a symbol."""
        slots: dict[int, int] = {}
        if any(len(data.get(name, b"")) > _MOST_RELOCATIONS * _RELA.size for name in _RELOCATIONS):
            raise ValueError("more relocations than a library has")
        for name in _RELOCATIONS:
            for place, kind, symbol, addend in _RELA.iter_unpack(data.get(name, b"")):
                if kind == x86_64.RELATIVE:
                    self.pointers.add(addend)
                elif kind == x86_64.ABSOLUTE:
                    self.pointers.add(symbols[symbol].address + addend)
                elif kind in (x86_64.GLOB_DAT, x86_64.JUMP_SLOT):
                    slots[place] = symbol
        return slots

    def _stubs(self, table: str) -> Iterator[tuple[int, int]]:
        """Yield each stub of a procedure linkage table, and the slot through which it jumps."""
        section = self._sections.get(table)
        if section is None:
            return
        # Some linkers omit the size of an entry.
        size = section.entry_size or x86_64.STUB_SIZE
        for at, slot in x86_64.jumps_through_slots(section.data):
            yield section.address + at - at % size, section.address + slot

    def _relative_pointers(self, bitmaps: bytes) -> Iterator[int]:
        """Yield the unrelocated values at the places that ``.relr.dyn`` (generic ABI) lists."""
        places, base = [], 0
        for (entry,) in _U64.iter_unpack(bitmaps):
            if entry & 1 == 0:
                places.append(entry)
                base = entry + 8
            else:
                places += [base + 8 * bit for bit in range(63) if entry >> (bit + 1) & 1]
                base += 8 * 63
            if len(places) > _MOST_RELOCATIONS:
                raise ValueError("more relocations than a library has")
        for section in self._sections.values():
            for place in places:
                if place in section:
                    yield _U64.unpack_from(section.data, place - section.address)[0]


class Instructions:
    """Where the instructions of a file's functions begin.

    The functions are those of the unwind table and the exported ones. For a processor whose
    instructions are unknown here, only code can be told from data.
    """

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._table = unwind_table(elf)
        self._exported = [(start, end) for start, end, _ in elf.exported_functions()]
        self._entries = {start for start, _ in self._exported}

    def doubt(
        self, address: int, is_entry: bool, read: Callable[[int, int], bytes] | None
    ) -> str | None:
        """Why a breakpoint at this address could break the process; None if that is ruled out.

        is_entry: a function must begin there.
        read: returns the memory of a process, by address in the file and size; it must equal the
        file's code, except for breakpoints.
        """
        if not abi.convention_of_file(self._elf).is_known:
            start, end = address, address + 1
        else:
            found = self._around(address)
            if found is None:
                return "it is in no function of the file"
            start, end = found
        if end - start > _LARGEST_FUNCTION:
            return "the function around it is too large to decode"
        code = self._elf.code(start, end)
        if code is None:
            return "it is not in the code of the file"
        if is_entry and address != start and address not in self._entries:
            return "no function begins there"
        at = address - start
        if abi.convention_of_file(self._elf).is_known and not x86_64.begins(code, at):
            return "no instruction begins there"
        if read is not None and not _is_same(code, read(start, end - start)):
            return "the process has other code there than the file"
        return None

    def returns(self, function: int) -> list[int]:
        """Return the addresses of all `ret` instructions by which a function ends.

        Those of its fragments, and of functions of the file that it jumps to as its last act, are
        among them: there the stack pointer is what it was when the function was entered.

        Raises: Unavailable if not all of them are known.
        """
        if not abi.convention_of_file(self._elf).is_known:
            raise Unavailable(f"returns on {self._elf.machine} are not known")
        found: list[int] = []
        parts: dict[int, int] = {}
        waiting = [function]
        while waiting:
            address = waiting.pop()
            if any(start <= address < end for start, end in parts.items()):
                continue
            if len(parts) == _MOST_PARTS:
                raise Unavailable(f"it goes on in more than {_MOST_PARTS} functions")
            start, code = self._code_around(address)
            parts[start] = start + len(code)
            try:
                returns, jumps = x86_64.ends(code)
            except ValueError as error:
                raise Unavailable(f"in the function at {start:#x}, {error}") from error
            found += [start + at for at in returns]
            for at, target in jumps:
                if target is None:
                    raise Unavailable(
                        f"a register or memory says where it jumps at {start + at:#x}"
                    )
                waiting.append(start + target)
        if not 0 < len(found) <= _MOST_RETURNS or function in found:
            raise Unavailable(f"{len(found)} ret instructions were found")
        return sorted(found)

    def _code_around(self, address: int) -> tuple[int, bytes]:
        """First address and code of a function; an instruction begins at the address."""
        start, end = self._around(address) or (0, 0)
        code = self._elf.code(start, end) if 0 < end - start <= _LARGEST_FUNCTION else None
        if code is None or not x86_64.begins(code, address - start):
            raise Unavailable(f"it goes on at {address:#x}, which is no code that is understood")
        return start, code

    def _around(self, address: int) -> tuple[int, int] | None:
        found = self._table.around(address) if self._table is not None else None
        if found is None:
            index = bisect_right(self._exported, (address, sys.maxsize)) - 1
            if index >= 0 and address < self._exported[index][1]:
                found = self._exported[index]
        return found


def _is_same(code: bytes, there: bytes) -> bool:
    """Whether code in memory is that of a file, except for breakpoints and uprobes."""
    if len(there) != len(code):
        return False
    at = 0
    # More differences mean other code.
    for _ in range(_MOST_BREAKPOINTS):
        while at < len(code) and code[at : at + _STRIDE] == there[at : at + _STRIDE]:
            at += _STRIDE
        at = next((i for i in range(at, len(code)) if code[i] != there[i]), len(code))
        if at == len(code):
            return True
        if there[at : at + 1] == x86_64.ABI.breakpoint and x86_64.begins(code, at):
            at += 1
        elif code.startswith(x86_64.NOP5, at) and there[at] == x86_64.CALL:
            # A uprobe of Linux 6.18 or later.
            at += len(x86_64.NOP5)
        else:
            return False
    return False


def call_before(elf: ElfFile, address: int) -> tuple[int | None, int | None]:
    """Return where a direct call that ends at ``address`` leads; see Binary.calls_before."""
    if elf.machine != x86_64.ABI.machine:
        return None, None
    code = elf.code(address - 6, address) or b""
    slot = x86_64.called_slot(code)
    if slot is not None:
        return None, address + slot
    target = x86_64.called(code)
    if target is None:
        return None, None
    stub = elf.code(address + target, address + target + x86_64.STUB_SIZE) or b""
    slot = x86_64.stub_slot(stub)
    return address + target, None if slot is None else address + target + slot


class _References:
    """Apparent references relative to the program counter, sorted by target."""

    def __init__(self, text: Iterable[Section], forms: Iterable[tuple[re.Pattern[bytes], int]]):
        """Raises OverflowError if there are more than any driver has."""
        # One number made of target and site sorts several times faster than a pair.
        self._sorted: list[int] = []
        for section in text:
            data, displacement = section.data, x86_64.I32.unpack_from
            for pattern, size in forms:
                behind = section.address + size + x86_64.I32.size
                room = _MOST_REFERENCES - len(self._sorted)
                self._sorted += [
                    (behind + at + displacement(data, at + size)[0] << _SITE_BITS)
                    + section.address
                    + at
                    for at in islice(map(re.Match.start, pattern.finditer(data)), room)
                ]
        if len(self._sorted) == _MOST_REFERENCES:
            raise OverflowError
        self._sorted.sort()

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return site and target of each reference in [low, high), sorted."""
        pairs = ((one & (1 << _SITE_BITS) - 1, one >> _SITE_BITS) for one in self._sorted)
        return sorted((site, target) for site, target in pairs if low <= site < high)

    def to(self, low: int, high: int) -> list[int]:
        """Return the sites that refer to an address in [low, high)."""
        first = bisect_left(self._sorted, low << _SITE_BITS)
        last = bisect_left(self._sorted, high << _SITE_BITS)
        return [reference & (1 << _SITE_BITS) - 1 for reference in self._sorted[first:last]]


def _is_later(instruction: bytes) -> bool:
    """Whether a call frame instruction is padding, or for code after the first instruction."""
    return instruction[0] >> 6 == 1 or instruction[0] in (0, 2, 3, 4)  # DW_CFA_advance_loc*, nop


def _unknown(elf: ElfFile, why: str) -> TargetError:
    return TargetError(
        f"static functions of {os.path.basename(elf.name)} cannot be found: {why}",
        f"install debug info for {os.path.basename(elf.name)}",
    )


# ELF-64 Object File Format.
_RELA = struct.Struct("<QIIq")  # place, type, symbol, addend
_RELOCATIONS = (".rela.dyn", ".rela.plt")
_STUB_SECTIONS = (".plt", ".plt.sec", ".plt.got")
_U64 = struct.Struct("<Q")
_SITE_BITS = 48
