"""Static functions of a stripped file, found by what they call.

Bounds come from the unwind table, imports from the relocations, calls from the code itself.
Bytes that only look like a call are told from one by decoding the function up to them.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property

from virtrace.binary.elf import ElfFile, Section
from virtrace.errors import TargetError

CACHE_FORMAT = 1


class Functions:
    """Functions of one file without symbols, by their first address as the file counts.

    Answers for a file with a build-id are kept in the user's cache; the code is read for
    the first one that is not there. Everything here raises TargetError where the file cannot
    be read that way (another processor, no unwind table) or an answer would be a guess.
    """

    def __init__(self, elf: ElfFile) -> None:
        if elf.machine != "x86_64":
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
            self._read_parts()
            self._read_symbols()
        except (struct.error, IndexError, ValueError) as error:
            raise _unknown(elf, f"its tables are broken ({error})") from error
        self._calls = _References(self._text, _CALLS)

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

    def _read_parts(self) -> None:
        header = self._sections.get(".eh_frame_hdr")
        # Linux Standard Base Core, 10.6.2: version 1, an offset and an unsigned count of four
        # bytes each, and pairs of signed offsets of four bytes from the header's start.
        if header is None or header.data[:4] != b"\x01\x1b\x03\x3b":
            raise _unknown(self._elf, "it has no table of its functions (.eh_frame_hdr)")
        (count,) = _U32.unpack_from(header.data, 8)
        offsets = struct.unpack_from(f"<{2 * count}i", header.data, 12)
        self._starts = [header.address + offset for offset in offsets[::2]]
        self._unwind_entries = [header.address + offset for offset in offsets[1::2]]
        if not self._starts or self._starts != sorted(self._starts):
            raise _unknown(self._elf, "the table of its functions is empty or not sorted")

    def _read_symbols(self) -> None:
        data = {name: section.data for name, section in self._sections.items()}
        symbols = [*_SYMBOL.iter_unpack(data.get(".dynsym", b""))]
        names = data.get(".dynstr", b"")
        # Pointers that the loader fills in: of driver tables, callbacks, virtual methods.
        self._pointers = set(self._relative_pointers(data.get(".relr.dyn", b"")))
        slots: dict[int, int] = {}
        for name in (".rela.dyn", ".rela.plt"):
            for place, kind, symbol, addend in _RELA.iter_unpack(data.get(name, b"")):
                if kind == _RELATIVE:
                    self._pointers.add(addend)
                elif kind == _ABSOLUTE:
                    self._pointers.add(symbols[symbol][4] + addend)
                elif kind in (_GLOB_DAT, _JUMP_SLOT):
                    slots[place] = symbol
        ways: dict[int, set[int]] = {}
        for place, symbol in slots.items():
            ways.setdefault(symbol, set()).add(place)
        for name in _STUB_SECTIONS:
            for stub, slot in _stubs(self._sections.get(name)):
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
        at = site - section.address
        return section.data[at] == _MOV or section.data[at : at + 2] == _PUSH

    def _function(self, part: int) -> int:
        """The function that a part belongs to.

        A fragment is never called and nothing points to it; the function it was split from
        jumps into it, and goes on there with the frame that it has.
        """
        if part in self._pointers or part in self._exports:
            return part
        to_start = [*self._proven(self._calls_to(part, part + 1))]
        if any(self._byte(site) == _CALL for site, _ in to_start):
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
        return _References(self._text, _LOADS_OF_ADDRESSES)

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
                first = max(low - section.address - _SHORT_REACH, 0)
                last = high - section.address + _SHORT_REACH
                for match in _SHORT_JUMP.finditer(section.data, first, last):
                    site = section.address + match.start()
                    (displacement,) = _I8.unpack(match[1])
                    if low <= site + 2 + displacement < high:
                        yield site

    def _decodes(self, start: int, end: int) -> bool:
        """Whether the bytes are whole instructions; of one more, the prefixes may be there."""
        section = self._section(start)
        at = section.address
        return _instructions().fullmatch(section.data, start - at, end - at) is not None

    def _unwind(self, part: int) -> tuple[int, bool]:
        """The first address behind a part, and whether a frame is there when it is entered."""
        entry = self._unwind_entries[bisect_left(self._starts, part)]
        frames = self._sections.get(".eh_frame")
        if frames is not None and entry in frames:
            data, at = frames.data, entry - frames.address
            try:
                to_common, start, size = _UNWIND_ENTRY.unpack_from(data, at + 4)
                # That the usual encoding gives the part's own start proves it.
                if entry + 8 + start == part and data[at + 4 - to_common + 9] == ord("z"):
                    rule = data[at + 17 + data[at + 16]]
                    return part + size, not _is_later(rule)
            except (struct.error, IndexError):
                pass
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


class _References:
    """What looks like a reference relative to the program counter, sorted by target."""

    def __init__(self, text: Iterable[Section], forms: Iterable[tuple[re.Pattern[bytes], int]]):
        # One number of target and site sorts several times faster than a pair.
        self._sorted: list[int] = []
        for section in text:
            data, displacement = section.data, _I32.unpack_from
            for pattern, size in forms:
                behind = section.address + size + _I32.size
                self._sorted += [
                    (behind + at + displacement(data, at + size)[0] << _SITE_BITS)
                    + section.address
                    + at
                    for at in map(re.Match.start, pattern.finditer(data))
                ]
        self._sorted.sort()

    def to(self, low: int, high: int) -> list[int]:
        """The sites that refer to an address in [low, high)."""
        first = bisect_left(self._sorted, low << _SITE_BITS)
        last = bisect_left(self._sorted, high << _SITE_BITS)
        return [reference & (1 << _SITE_BITS) - 1 for reference in self._sorted[first:last]]


def _stubs(section: Section | None) -> Iterator[tuple[int, int]]:
    """Each stub of a procedure linkage table, and the slot that it jumps through."""
    if section is None:
        return
    # Some linkers leave the size of an entry out.
    size = section.entry_size or 16
    for match in _JUMP_THROUGH_SLOT.finditer(section.data):
        (displacement,) = _I32.unpack_from(section.data, match.end())
        at = match.start()
        yield section.address + at - at % size, section.address + match.end() + 4 + displacement


def _is_later(instruction: int) -> bool:
    """Whether a call frame instruction is for code behind the first instruction, or padding."""
    return instruction >> 6 == 1 or instruction in (0, 2, 3, 4)  # DW_CFA_advance_loc*, nop


def _unknown(elf: ElfFile, why: str) -> TargetError:
    return TargetError(
        f"static functions of {elf.path.name} cannot be found: {why}",
        f"install debug info for {elf.path.name}",
    )


def _load(build_id: str) -> dict[str, list[int]]:
    """The answers kept for a build; none where the cache is not ours alone, or broken."""
    try:
        with _cache_folder() as folder:
            # Not to be kept waiting by a FIFO of that name.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(f"{build_id}.json", flags, dir_fd=folder), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    return {}
                kept = json.load(file)
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
    kept = json.dumps({"format": CACHE_FORMAT, "build_id": build_id, "answers": answers})
    unfinished = f".{build_id}.{os.urandom(8).hex()}"
    with suppress(OSError), _cache_folder() as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(unfinished, flags, 0o600, dir_fd=folder), "w") as file:
                file.write(kept)
            os.replace(unfinished, f"{build_id}.json", src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            os.unlink(unfinished, dir_fd=folder)


@contextmanager
def _cache_folder() -> Iterator[int]:
    """The folder, opened and made if need be; OSError where it is not ours alone."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    path = os.path.join(
        base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "virtrace", "functions"
    )
    os.makedirs(path, mode=0o700, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{path} is not the user's alone")
        yield folder
    finally:
        os.close(folder)


# ELF-64 Object File Format, and the AMD64 supplement's types of relocations.
_RELA = struct.Struct("<QIIq")  # place, type, symbol, addend
_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, visibility, section, value, size
_ABSOLUTE, _GLOB_DAT, _JUMP_SLOT, _RELATIVE = 1, 6, 7, 8
_FUNCTION = 2
# LSB Core, 10.6.1.2: the distance to the common entry, start and size, as GCC encodes them.
_UNWIND_ENTRY = struct.Struct("<IiI")
_STUB_SECTIONS = (".plt", ".plt.sec", ".plt.got")
_I8, _I32 = struct.Struct("<b"), struct.Struct("<i")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SITE_BITS = 48

# Instructions by the Intel 64 manual, volume 2, appendix A. A form: the opcode in front of a
# displacement of four bytes, and the opcode's size.
_CALL, _MOV, _PUSH = 0xE8, 0x8B, b"\xff\x35"
_AT_PC = rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]"  # the ModRM bytes of disp32(%rip)
_CALLS = (
    (re.compile(rb"[\xe8\xe9](?=.{4})", re.DOTALL), 1),  # call, jmp
    # jcc; call, jmp through a slot, push of one; mov of one into a register
    (
        re.compile(
            rb"(?:\x0f[\x80-\x8f]|\xff[\x15\x25\x35]|\x8b" + _AT_PC + rb")(?=.{4})", re.DOTALL
        ),
        2,
    ),
)
_LOADS_OF_ADDRESSES = ((re.compile(rb"\x8d" + _AT_PC + rb"(?=.{4})", re.DOTALL), 2),)  # lea
_SHORT_JUMP = re.compile(rb"[\x70-\x7f\xeb](?=(.))", re.DOTALL)
_SHORT_REACH = 130  # bytes, either way and with the jump itself
_JUMP_THROUGH_SLOT = re.compile(rb"\xff\x25(?=.{4})", re.DOTALL)


@cache
def _instructions() -> re.Pattern[bytes]:
    """Any number of whole instructions of 64-bit mode, then maybe the prefixes of one more.

    No instruction is the beginning of another, so that there is one way to match at most.
    """
    # Columns of the one-byte opcodes 00 to 3F: eight arithmetic operations.
    arithmetic = range(0, 0x40, 8)
    # Two-byte opcodes that VEX and EVEX have too: the others in that map have no ModRM byte.
    map1 = _one_of(
        range(0x00, 0x04), [0x0D], range(0x10, 0x30), range(0x40, 0x70), range(0x74, 0x77),
        range(0x78, 0x80), range(0x90, 0xA0), [0xA3, 0xA5, 0xAB], range(0xAD, 0xBA),
        range(0xBB, 0xC2), [0xC3, 0xC7], range(0xD0, 0x100),
    )  # fmt: skip
    map1_imm8 = _one_of(range(0x70, 0x74), [0xA4, 0xAC, 0xBA, 0xC2], range(0xC4, 0xC7))
    vex, evex = (
        {
            number: first + _one_of(n for n in range(256) if n & bits == number)
            for number in (1, 2, 3, 5, 6)
        }
        for first, bits in ((rb"\xc4", 0x1F), (rb"\x62", 0x0F))
    )
    modes = _either(rb"\x0f", rb"\xc5.", vex[1] + b".", evex[1] + b"..")
    with_operand = _either(
        _one_of(
            [n + column for n in arithmetic for column in range(4)],
            [0x63], range(0x84, 0x8F), range(0xD0, 0xD4), range(0xD8, 0xE0), [0xFE, 0xFF],
        ),
        modes + map1,
        rb"\x0f\x38.",
        vex[2] + b"..",
        *(evex[number] + b"..." for number in (2, 5, 6)),
    )  # fmt: skip
    with_operand_imm8 = _either(
        _one_of([0x6B, 0x80, 0x83, 0xC0, 0xC1, 0xC6]),
        modes + map1_imm8,
        rb"\x0f\x3a.",
        vex[3] + b"..",
        evex[3] + b"...",
    )
    plain = _either(
        with_operand + _operand(),
        with_operand_imm8 + _operand() + b".",
        rb"\x8f" + _operand(0),
        # test, or not, neg, mul, div
        rb"\xf6" + _either(_operand(0, 1) + b".", _operand(*range(2, 8))),
        rb"\xf7" + _operand(*range(2, 8)),
        _one_of(
            range(0x50, 0x60), range(0x6C, 0x70), range(0x90, 0x9A), range(0x9B, 0xA0),
            range(0xA4, 0xA8), range(0xAA, 0xB0),
            [0xC3, 0xC9, 0xCB, 0xCC, 0xCF, 0xD7, 0xF1, 0xF4, 0xF5],
            range(0xEC, 0xF0), range(0xF8, 0xFE),
        ),
        _one_of(
            [n + 4 for n in arithmetic], [0x6A, 0xA8, 0xCD, 0xEB],
            range(0x70, 0x80), range(0xB0, 0xB8), range(0xE0, 0xE8),
        ) + b".",
        rb"[\xc2\xca]..",
        rb"\xc8...",
        rb"[\xe8\xe9].{4}",
        rb"[\xa0-\xa3].{8}",
        rb"\x0f" + _either(
            rb"[\x80-\x8f].{4}",
            _one_of(
                range(0x05, 0x0A), [0x0B, 0x77], range(0x30, 0x38), range(0xA0, 0xA3),
                range(0xA8, 0xAB), range(0xC8, 0xD0),
            ),
        ),
        rb"(?:\xc5|%s).\x77" % vex[1],  # vzeroupper
    )  # fmt: skip
    # An immediate of the operand's size follows, of four bytes at most.
    sized = _either(
        _one_of([n + 5 for n in arithmetic], [0x68, 0xA9]),
        rb"[\x69\x81\xc7]" + _operand(),
        rb"\xf7" + _operand(0, 1),
    )
    # The only immediate that can have eight.
    move = rb"[\xb8-\xbf]"
    not_66 = rb"[\x26\x2e\x36\x3e\x64\x65\x67\xf0\xf2\xf3]*"
    prefixes = rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3]*"
    rex_w = rb"[\x48-\x4f]"
    no_rex_w = rb"[\x40-\x47]?"
    instruction = _either(
        prefixes + rb"[\x40-\x4f]?" + plain,
        prefixes + rex_w + _either(sized + b".{4}", move + b".{8}"),
        not_66 + no_rex_w + _either(sized, move) + b".{4}",
        not_66 + rb"\x66" + prefixes + no_rex_w + _either(sized, move) + b"..",
    )
    return re.compile(instruction + b"*" + prefixes + rb"[\x40-\x4f]?", re.DOTALL)


def _operand(*registers: int) -> bytes:
    """ModRM, with one of these in its reg field if any are given, SIB and displacement."""

    def modrm(mod: int, *rms: int) -> bytes:
        return _one_of(mod << 6 | reg << 3 | rm for rm in rms for reg in registers or range(8))

    return _either(
        modrm(3, *range(8)),
        modrm(0, 0, 1, 2, 3, 6, 7),
        modrm(0, 5) + b".{4}",
        modrm(0, 4) + _either(_NO_BASE + b".{4}", b"(?!%s)." % _NO_BASE),
        modrm(1, 0, 1, 2, 3, 5, 6, 7) + b".",
        modrm(1, 4) + b"..",
        modrm(2, 0, 1, 2, 3, 5, 6, 7) + b".{4}",
        modrm(2, 4) + b".{5}",
    )


def _one_of(*bytes_: Iterable[int]) -> bytes:
    return b"[%s]" % b"".join(rb"\x%02x" % byte for part in bytes_ for byte in part)


def _either(*alternatives: bytes) -> bytes:
    return b"(?:%s)" % b"|".join(alternatives)


_NO_BASE = _one_of(range(5, 256, 8))
