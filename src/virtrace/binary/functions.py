"""Static functions of a stripped file, found by what they call.

Bounds come from the unwind table, imports from the relocations, calls from the code itself.
Bytes that only look like a call are told from one by decoding the function up to them.
"""

from __future__ import annotations

import json
import os
import re
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from virtrace.binary import private, x86_64
from virtrace.binary.elf import ElfFile, Section
from virtrace.errors import TargetError

CACHE_FORMAT = 1
CACHE_BYTES = 1 << 20


@dataclass(frozen=True)
class Callee:
    """address: of a function of this file; None where it is imported. name: None where static."""

    address: int | None
    name: str | None


class Functions:
    """Functions of one file without symbols, by their first address as the file counts.

    Answers for a file with a build-id are kept in the user's cache; the code is read for
    the first one that is not there. Everything here raises TargetError where the file cannot
    be read that way (another processor, no unwind table) or an answer would be a guess.
    """

    def __init__(self, elf: ElfFile) -> None:
        if elf.machine != x86_64.ABI.machine:
            raise _unknown(elf, f"code for {elf.machine} is not understood, only for x86_64")
        self._elf = elf
        self._build_id = elf.build_id
        self._answers = _load(self._build_id) if self._build_id else {}

    def driver_methods(self, api: str) -> list[int]:
        """The functions that make the access check of a public API: none, one or several.

        TargetError where there is one, but no pointer leads to it: a part of the driver's
        method that became a function of its own, with other arguments.
        """
        return self._answer(f"driver_method {api}", lambda: self._code.driver_methods(api))

    def called_by(self, caller: int, calls: str) -> list[int]:
        """The functions that ``caller`` calls directly and that themselves call ``calls``.

        calls: the name of a function that this file imports or exports.
        TargetError where caller calls it too: the one between them may be inlined.
        """
        key = f"called_by {caller:#x} calls {calls}"
        return self._answer(key, lambda: self._code.called_by(caller, calls))

    def callees(self, function: int) -> list[Callee]:
        """What a function calls directly, in the order of its code.

        Without what it calls by a pointer, and in a fragment that was split from it.
        """
        return list(self._code.callees(function))

    def uses(self, name: str) -> int:
        """How often the code seems to name an imported or exported function: how common it is."""
        return self._code.uses(name)

    def _answer(self, key: str, find: Callable[[], list[int]]) -> list[int]:
        if key not in self._answers:
            self._answers[key] = find()
            if self._build_id:
                _save(self._build_id, self._answers)
        return list(self._answers[key])

    @cached_property
    def _code(self) -> _Code:
        return _Code(self._elf)


class _Code:
    """Who calls whom in one file.

    A *part* is what one unwind entry covers: a function, or a fragment that the compiler
    split from one (``name.cold``). Parts go by their first address, references by that of
    the opcode.
    """

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._sections = elf.loaded_sections()
        self._text = [
            section
            for name, section in self._sections.items()
            if section.executable and name not in _STUB_SECTIONS
        ]
        try:
            self._starts, self._unwind_entries = _unwind_table(elf, self._sections)
            self._read_symbols()
        except (struct.error, IndexError, ValueError) as error:
            raise _unknown(elf, f"its tables are broken ({error})") from error
        self._calls = _References(self._text, x86_64.CALLS)

    def driver_methods(self, api: str) -> list[int]:
        # Some methods hand the check to a common function instead of calling it.
        check = f"{api}EnsureACL"
        methods = self._users(self._targets.get(check.encode(), set()))
        if len(methods) == 1 and not methods <= self._pointers:
            raise _unknown(
                self._elf,
                f"the function that calls {check}, at {min(methods):#x}, is not the driver's "
                "method itself (no pointer leads to it)",
            )
        return sorted(methods)

    def called_by(self, caller: int, calls: str) -> list[int]:
        targets = self._targets.get(calls.encode(), set())
        inner = self._users(targets)
        if caller in inner:
            raise _unknown(
                self._elf,
                f"the function at {caller:#x} calls {calls} itself: "
                "what should stand between them may be inlined",
            )
        found = sorted(
            function for function in inner if caller in self._users(self._ways_to(function))
        )
        if len(found) == 1 and not (
            caller in self._users(self._ways_to(found[0]), loads=False)
            and found[0] in self._users(targets, loads=False)
        ):
            raise _unknown(
                self._elf,
                f"that {found[0]:#x} stands between {caller:#x} and {calls} is not sure: "
                "an address is taken, maybe not for a call",
            )
        return found

    def callees(self, function: int) -> Iterator[Callee]:
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
        targets = self._targets.get(name.encode(), set())
        return sum(len(self._calls.to(target, target + 1)) for target in targets)

    def _callee(self, target: int) -> Callee | None:
        name = self._names.get(target)
        if name is not None:
            return Callee(self._exported.get(name), name.decode("ascii", "replace"))
        with suppress(TargetError):
            if self._starts[max(bisect_right(self._starts, target) - 1, 0)] == target:
                return Callee(self._function(target), None)
        return None

    @cached_property
    def _names(self) -> dict[int, bytes]:
        """Of a symbol by each address that a call of it can name; of several the first."""
        return {
            target: name
            for name, targets in sorted(self._targets.items(), reverse=True)
            for target in targets
        }

    @cached_property
    def _exported(self) -> dict[bytes, int]:
        return {name: address for address, names in self._exports.items() for name in names}

    def _read_symbols(self) -> None:
        data = {name: section.data for name, section in self._sections.items()}
        symbols = [*_SYMBOL.iter_unpack(data.get(".dynsym", b""))]
        names = data.get(".dynstr", b"")
        # Pointers that the loader fills in: of driver tables, callbacks, virtual methods.
        self._pointers = set(self._relative_pointers(data.get(".relr.dyn", b"")))
        slots: dict[int, int] = {}
        for name in (".rela.dyn", ".rela.plt"):
            for place, kind, symbol, addend in _RELA.iter_unpack(data.get(name, b"")):
                if kind == x86_64.RELATIVE:
                    self._pointers.add(addend)
                elif kind == x86_64.ABSOLUTE:
                    self._pointers.add(symbols[symbol][4] + addend)
                elif kind in (x86_64.GLOB_DAT, x86_64.JUMP_SLOT):
                    slots[place] = symbol
        ways: dict[int, set[int]] = {}
        for place, symbol in slots.items():
            ways.setdefault(symbol, set()).add(place)
        for name in _STUB_SECTIONS:
            for stub, slot in self._stubs(name):
                if slot in slots:
                    ways[slots[slot]].add(stub)
        # What a call of a symbol can name: its slot, the stubs that jump through that, itself.
        self._targets: dict[bytes, set[int]] = {}
        self._exports: dict[int, list[bytes]] = {}
        for index, (name_at, info, _, defined_in, address, _) in enumerate(symbols):
            targets = ways.get(index, set())
            if info & 15 != _FUNCTION and not targets:
                continue
            symbol_name = names[name_at : names.index(b"\0", name_at)]
            if defined_in:
                targets = targets | {address}
                self._exports.setdefault(address, []).append(symbol_name)
            self._targets.setdefault(symbol_name, set()).update(targets)

    def _stubs(self, table: str) -> Iterator[tuple[int, int]]:
        """Each stub of a procedure linkage table, and the slot that it jumps through."""
        section = self._sections.get(table)
        if section is None:
            return
        # Some linkers leave the size of an entry out.
        size = section.entry_size or x86_64.STUB_SIZE
        for at, slot in x86_64.jumps_through_slots(section.data):
            yield section.address + at - at % size, section.address + slot

    def _relative_pointers(self, bitmaps: bytes) -> Iterator[int]:
        """What lies, unrelocated, at the places that ``.relr.dyn`` (generic ABI) lists."""
        places, base = [], 0
        for (entry,) in _U64.iter_unpack(bitmaps):
            if entry & 1 == 0:
                places.append(entry)
                base = entry + 8
            else:
                places += [base + 8 * bit for bit in range(63) if entry >> (bit + 1) & 1]
                base += 8 * 63
        for section in self._sections.values():
            for place in places:
                if place in section:
                    yield _U64.unpack_from(section.data, place - section.address)[0]

    def _ways_to(self, function: int) -> set[int]:
        """What a call of a function of this file can name, the PLT included."""
        exported = (self._targets[name] for name in self._exports.get(function, ()))
        return {function}.union(*exported)

    def _users(self, targets: Iterable[int], loads: bool = True) -> set[int]:
        """The functions that call, or jump to, any of the targets.

        loads: also those that load the address of one from its slot. Code without a PLT may
        call it from a register; but it may also be handed to another function.
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
        """The function that a part belongs to.

        A fragment is never called and nothing points to it; the function it was split from
        jumps into it, and goes on there with the frame that it has.
        """
        if part in self._pointers or part in self._exports:
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
        return _References(self._text, x86_64.LOADS_OF_ADDRESSES)

    def _proven(self, sites: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Site and part of each reference that is one, not bytes that look so."""
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
        """The sites of what looks like a call of, or a jump to, [low, high)."""
        return [*self._calls.to(low, high), *self._short_jumps(low, high)]

    def _short_jumps(self, low: int, high: int) -> Iterator[int]:
        """What looks like a jump to [low, high) with a displacement of one byte."""
        for section in self._text:
            if low in section:
                first, last = low - section.address, high - section.address
                for site in x86_64.short_jumps(section.data, first, last):
                    yield section.address + site

    def _decodes(self, start: int, end: int) -> bool:
        """Whether the bytes are whole instructions; of one more, the prefixes may be there."""
        section = self._section(start)
        at = section.address
        return x86_64.instructions().fullmatch(section.data, start - at, end - at) is not None

    def _unwind(self, part: int) -> tuple[int, bool]:
        """The first address behind a part, and whether a frame is there when it is entered."""
        entry = self._unwind_entries[bisect_left(self._starts, part)]
        found = _unwind_entry(self._sections, part, entry)
        if found is not None:
            end, rule = found
            return end, not _is_later(rule)
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


def function_starts(elf: ElfFile) -> list[int]:
    """Where functions, and fragments of functions, begin: sorted, as the file counts.

    TargetError where the file does not tell.
    """
    try:
        return _unwind_table(elf, elf.loaded_sections())[0]
    except (struct.error, IndexError) as error:
        raise _unknown(elf, f"its tables are broken ({error})") from error


class UnwindTable:
    """The code of a file for which it says how a caller's frame is found; maybe none."""

    def __init__(self, elf: ElfFile) -> None:
        sections = elf.loaded_sections()
        # Of many files at once the rest would be too much to keep.
        self._frames = {name: one for name, one in sections.items() if name == ".eh_frame"}
        try:
            self._starts, self._entries = _unwind_table(elf, sections)
        except (TargetError, struct.error, IndexError):
            self._starts, self._entries = [], []

    def start(self, address: int) -> int | None:
        """Where the function, or fragment of one, begins that an address is in."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        start = self._starts[index]
        found = _unwind_entry(self._frames, start, self._entries[index])
        return start if found is not None and address < found[0] else None


def begin_instructions(elf: ElfFile, addresses: Iterable[int]) -> bool:
    """Whether each of these addresses is that of an instruction, by decoding up to it."""
    sections = elf.loaded_sections()
    starts = _unwind_table(elf, sections)[0]
    for address in addresses:
        code = next((s for s in sections.values() if s.executable and address in s), None)
        start = starts[max(bisect_right(starts, address) - 1, 0)]
        if code is None or start not in code:
            return False
        at = code.address
        found = x86_64.instructions().fullmatch(code.data, start - at, address - at)
        if found is None or found[1]:
            return False
    return True


def _unwind_table(elf: ElfFile, sections: Mapping[str, Section]) -> tuple[list[int], list[int]]:
    """The starts, and for each of them where its unwind entry is."""
    header = sections.get(".eh_frame_hdr")
    # Linux Standard Base Core, 10.6.2: version 1, an offset and an unsigned count of four
    # bytes each, and pairs of signed offsets of four bytes from the header's start.
    if header is None or header.data[:4] != b"\x01\x1b\x03\x3b":
        raise _unknown(elf, "it has no table of its functions (.eh_frame_hdr)")
    (count,) = _U32.unpack_from(header.data, 8)
    offsets = struct.unpack_from(f"<{2 * count}i", header.data, 12)
    starts = [header.address + offset for offset in offsets[::2]]
    if not starts or starts != sorted(starts):
        raise _unknown(elf, "the table of its functions is empty or not sorted")
    return starts, [header.address + offset for offset in offsets[1::2]]


def _unwind_entry(sections: Mapping[str, Section], part: int, entry: int) -> tuple[int, int] | None:
    """The first address behind a part, and its first rule; None where they are not known."""
    frames = sections.get(".eh_frame")
    if frames is not None and entry in frames:
        data, at = frames.data, entry - frames.address
        try:
            to_common, start, size = _UNWIND_ENTRY.unpack_from(data, at + 4)
            # That the usual encoding gives the part's own start proves it.
            if entry + 8 + start == part and data[at + 4 - to_common + 9] == ord("z"):
                return part + size, data[at + 17 + data[at + 16]]
        except (struct.error, IndexError):
            pass
    return None


class _References:
    """What looks like a reference relative to the program counter, sorted by target."""

    def __init__(self, text: Iterable[Section], forms: Iterable[tuple[re.Pattern[bytes], int]]):
        # One number of target and site sorts several times faster than a pair.
        self._sorted: list[int] = []
        for section in text:
            data, displacement = section.data, x86_64.I32.unpack_from
            for pattern, size in forms:
                behind = section.address + size + x86_64.I32.size
                self._sorted += [
                    (behind + at + displacement(data, at + size)[0] << _SITE_BITS)
                    + section.address
                    + at
                    for at in map(re.Match.start, pattern.finditer(data))
                ]
        self._sorted.sort()

    def within(self, low: int, high: int) -> list[tuple[int, int]]:
        """Site and target of each that stands in [low, high), sorted."""
        pairs = ((one & (1 << _SITE_BITS) - 1, one >> _SITE_BITS) for one in self._sorted)
        return sorted((site, target) for site, target in pairs if low <= site < high)

    def to(self, low: int, high: int) -> list[int]:
        """The sites that refer to an address in [low, high)."""
        first = bisect_left(self._sorted, low << _SITE_BITS)
        last = bisect_left(self._sorted, high << _SITE_BITS)
        return [reference & (1 << _SITE_BITS) - 1 for reference in self._sorted[first:last]]


def _is_later(instruction: int) -> bool:
    """Whether a call frame instruction is for code behind the first instruction, or padding."""
    return instruction >> 6 == 1 or instruction in (0, 2, 3, 4)  # DW_CFA_advance_loc*, nop


def _unknown(elf: ElfFile, why: str) -> TargetError:
    return TargetError(
        f"static functions of {os.path.basename(elf.name)} cannot be found: {why}",
        f"install debug info for {os.path.basename(elf.name)}",
    )


def _load(build_id: str) -> dict[str, list[int]]:
    """The answers kept for a build; none where the cache is not ours alone, or broken."""
    try:
        with private.cache_folder("functions") as folder:
            kept = json.loads(private.read(folder, f"{build_id}.json", CACHE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict):
        return {}
    answers: object = kept.pop("answers", None)
    if kept != {"format": CACHE_FORMAT, "build_id": build_id} or not isinstance(answers, dict):
        return {}
    for answer in answers.values():
        if not isinstance(answer, list) or any(type(address) is not int for address in answer):
            return {}
    return answers


def _save(build_id: str, answers: dict[str, list[int]]) -> None:
    """Best effort: without a cache the work is done again, that is all."""
    kept = {"format": CACHE_FORMAT, "build_id": build_id, "answers": answers}
    with suppress(OSError), private.cache_folder("functions") as folder:
        private.write(folder, f"{build_id}.json", json.dumps(kept).encode())


# ELF-64 Object File Format.
_RELA = struct.Struct("<QIIq")  # place, type, symbol, addend
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, visibility, section, value, size
_FUNCTION = 2
# LSB Core, 10.6.1.2: the distance to the common entry, start and size, as GCC encodes them.
_UNWIND_ENTRY = struct.Struct("<IiI")
_STUB_SECTIONS = (".plt", ".plt.sec", ".plt.got")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SITE_BITS = 48
