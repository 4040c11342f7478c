"""What is particular to x86-64: its calling convention, relocations and instructions.

Facts of the System V Application Binary Interface, AMD64 Architecture Processor Supplement
(calls: 3.2, DWARF register numbers: 3.6.2, relocations: 4.4.1), and of the Intel 64 manual,
volume 2, appendix A (opcodes).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from virtrace.binary.abi import Abi, Operand

_OPERAND = re.compile(
    r"(?P<size>-?[1248])@(?:(?P<offset>-?\d*)\(%(?P<base>r\w+)\)|%(?P<register>r\w+))"
)


def _operand(text: str) -> Operand | None:
    found = _OPERAND.fullmatch(text)
    name = found and (found["base"] or found["register"])
    # GDB itself handles an operand that is relative to the instruction.
    if found is None or name not in ABI.user_registers or name == ABI.program_counter:
        return None
    size = int(found["size"])
    offset = int(found["offset"] or 0) if found["base"] else None
    return Operand(name, offset, abs(size), size < 0)


ABI = Abi(
    machine="x86_64",
    argument_registers=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    result_register="rax",
    return_address_on_stack=True,
    # test %eax,%eax; mov %eax,%REGISTER; cmp $BYTE,%eax
    reads_result=re.compile(rb"\x85\xc0|\x41?\x89[\xc0-\xc7]|\x83\xf8", re.S),
    dwarf_registers=(
        *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
        *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    ),
    stack_pointer="rsp",
    program_counter="rip",
    breakpoint=b"\xcc",
    # struct user_regs_struct of <sys/user.h>, up to the stack pointer.
    user_registers=(
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
        *("rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp"),
    ),
    operand=_operand,
)

# Arguments of a system call (AMD64 ABI, A.2.1).
SYSTEM_CALL_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")

ABSOLUTE, GLOB_DAT, JUMP_SLOT, RELATIVE = 1, 6, 7, 8  # R_X86_64_...
STUB_SIZE = 16  # in bytes, of an entry of the procedure linkage table
I32 = struct.Struct("<i")

# The instruction of a static probe that was made for the uprobes of Linux 6.18.
NOP5 = b"\x0f\x1f\x44\x00\x00"
# A form: a pattern of the opcode before a displacement of four bytes, and the opcode's size.
CALL, _MOV, _PUSH = 0xE8, 0x8B, b"\xff\x35"
_AT_PC = rb"[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]"  # the ModRM bytes of disp32(%rip)
CALLS = (
    (re.compile(rb"[\xe8\xe9](?=.{4})", re.DOTALL), 1),  # call, jmp
    # jcc; call, jmp and push through a slot; mov from a slot into a register
    (
        re.compile(
            rb"(?:\x0f[\x80-\x8f]|\xff[\x15\x25\x35]|\x8b" + _AT_PC + rb")(?=.{4})", re.DOTALL
        ),
        2,
    ),
)
LOADS_OF_ADDRESSES = ((re.compile(rb"\x8d" + _AT_PC + rb"(?=.{4})", re.DOTALL), 2),)  # lea

# endbr64 and a prefix that marks the jump as protected may come first.
_STUB = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25(.{4})", re.DOTALL)


# push of a register, nop, call, jmp, jcc: what the kernel does itself at a uprobe, without a step
# of the thread (can_emulate of arch/x86/kernel/uprobes.c).
EMULATED = re.compile(
    rb"\x41?[\x50-\x57]|\x90|[\xe8\xe9\xeb]|[\x70-\x7f]|\x0f[\x80-\x8f]", re.DOTALL
)
# endbr64; cmp $BYTE,OFFSET(%REGISTER), which change no register and no memory.
_CHANGES_FLAGS = re.compile(rb"(?:\xf3\x0f\x1e\xfa|\x48\x83[\xb8-\xbb\xbd-\xbf].{5})*", re.DOTALL)
_PREFIXES = rb"[\x26\x2e\x36\x3e\x64-\x67\xf0\xf2\xf3]*"
_JUMP_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3"
_RETURNS, _SHORT = b"\xc3\xc2", (0xEB, *range(0x70, 0x80), *range(0xE0, 0xE4))
_DIRECT_JUMP = re.compile(rb"[\xe0-\xe3\xe9\xeb\x70-\x7f]|\x0f[\x80-\x8f]", re.DOTALL)
# jmp *REGISTER, jmp *MEMORY
_INDIRECT_JUMP = re.compile(rb"[\x40-\x4f]?\xff[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]", re.DOTALL)
# add REGISTER,REGISTER; jmp *REGISTER
_THROUGH_TABLE = re.compile(
    rb"[\x48-\x4f]\x01[\xc0-\xff]\x3e?[\x41-\x4f]?\xff[\xe0-\xe7]\Z", re.DOTALL
)
_NEAR_JUMP = re.compile(rb"(?:\xe9|\x0f[\x80-\x8f])(?=(.{4}))", re.DOTALL)


def cheap_entry(code: bytes) -> int:
    """Offset in a function at which a uprobe costs little, and all is as at its entry.

    0 if instructions change more than flags before the first that the kernel emulates, or if the
    function may jump back to there.
    """
    passed = _CHANGES_FLAGS.match(code)
    at = passed.end() if passed else 0
    near = (
        jump.start()
        for jump in _NEAR_JUMP.finditer(code)
        if 0 < jump.end() + I32.unpack(jump[1])[0] + 4 <= at
    )
    jumps_back = any(begins(code, site) for site in (*near, *short_jumps(code, 1, at + 1)))
    return at if EMULATED.match(code, at) and not jumps_back else 0


def is_load(code: bytes, at: int) -> bool:
    """Whether a match of CALLS reads the address in the slot instead of jumping there."""
    return code[at] == _MOV or code[at : at + 2] == _PUSH


def short_jumps(code: bytes, low: int, high: int) -> Iterator[int]:
    """Yield the offsets of apparent jumps into [low, high) with a displacement of one byte."""
    reach = 130  # in both directions, including the jump itself
    for match in re.compile(rb"[\x70-\x7f\xeb](?=(.))", re.DOTALL).finditer(
        code, max(low - reach, 0), high + reach
    ):
        displacement = match[1][0] - (match[1][0] >> 7 << 8)
        if low <= match.start() + 2 + displacement < high:
            yield match.start()


def jumps_through_slots(code: bytes) -> Iterator[tuple[int, int]]:
    """Yield apparent indirect jumps and their slots, as offsets from the start of the code."""
    for match in re.compile(rb"\xff\x25(?=.{4})", re.DOTALL).finditer(code):
        (displacement,) = I32.unpack_from(code, match.end())
        yield match.start(), match.end() + 4 + displacement


def called(code: bytes) -> int | None:
    """Target of a direct call at the end of the code, relative to that end; None if no call."""
    if len(code) < 5 or code[-5] != CALL:
        return None
    return int(I32.unpack_from(code, len(code) - 4)[0])


def called_slot(code: bytes) -> int | None:
    """Slot of an indirect call at the end of the code, relative to that end; None if no call."""
    if len(code) < 6 or code[-6:-4] != b"\xff\x15":
        return None
    return int(I32.unpack_from(code, len(code) - 4)[0])


def stub_slot(code: bytes) -> int | None:
    """Slot through which the code's first instruction jumps, relative to its start, or None."""
    jump = _STUB.match(code)
    return None if jump is None else jump.end() + int(I32.unpack(jump[1])[0])


@cache
def instructions() -> re.Pattern[bytes]:
    """Match any number of whole 64-bit instructions; group 1 is prefixes of one more.

    No instruction is a prefix of another one, so there is at most one way to match.
    """
    return re.compile(_instruction() + b"*(" + _PREFIXES + rb"[\x40-\x4f]?)", re.DOTALL)


@cache
def _one_instruction() -> re.Pattern[bytes]:
    return re.compile(_instruction(), re.DOTALL)


class Jump(NamedTuple):
    """Where code may go on. at, target: offsets in it. target: None if it is not known."""

    at: int
    target: int | None


def ends(code: bytes) -> tuple[list[int], list[Jump]]:
    """Find where the code of a function can be left: its `ret` instructions, and its jumps.

    Jumps through a table that is relative to a register, as compilers make it of `switch`, stay
    inside of a function and are left out.

    Raises: ValueError if it has an instruction that is not understood.
    """
    returns, jumps = [], []
    at = 0
    one = _one_instruction()
    while at < len(code):
        found = one.match(code, at)
        if found is None or found.end() > len(code):
            raise ValueError(f"the instruction at {at:#x} is not known")
        body = found[0].lstrip(_JUMP_PREFIXES)
        if body[0] in _RETURNS:
            returns.append(at)
        elif _DIRECT_JUMP.match(body):
            size = 1 if body[0] in _SHORT else I32.size
            displacement = int.from_bytes(body[-size:], "little", signed=True)
            jumps.append(Jump(at, found.end() + displacement))
        elif _INDIRECT_JUMP.match(body) and not _THROUGH_TABLE.search(code, 0, found.end()):
            jumps.append(Jump(at, None))
        at = found.end()
    return returns, jumps


def _instruction() -> bytes:
    """A pattern of one instruction."""
    # Columns of the one-byte opcodes 00 to 3F: eight arithmetic operations.
    arithmetic = range(0, 0x40, 8)
    # Two-byte opcodes that VEX and EVEX have too; all others in that map have no ModRM byte.
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
        with_operand + _modrm(),
        with_operand_imm8 + _modrm() + b".",
        rb"\x8f" + _modrm(0),
        # test; not, neg, mul, div
        rb"\xf6" + _either(_modrm(0, 1) + b".", _modrm(*range(2, 8))),
        rb"\xf7" + _modrm(*range(2, 8)),
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
    # An immediate of the operand's size follows, at most four bytes.
    sized = _either(
        _one_of([n + 5 for n in arithmetic], [0x68, 0xA9]),
        rb"[\x69\x81\xc7]" + _modrm(),
        rb"\xf7" + _modrm(0, 1),
    )
    # The only instruction whose immediate can have eight bytes.
    move = rb"[\xb8-\xbf]"
    not_66 = rb"[\x26\x2e\x36\x3e\x64\x65\x67\xf0\xf2\xf3]*"
    prefixes = _PREFIXES
    rex_w = rb"[\x48-\x4f]"
    no_rex_w = rb"[\x40-\x47]?"
    return _either(
        prefixes + rb"[\x40-\x4f]?" + plain,
        prefixes + rex_w + _either(sized + b".{4}", move + b".{8}"),
        not_66 + no_rex_w + _either(sized, move) + b".{4}",
        not_66 + rb"\x66" + prefixes + no_rex_w + _either(sized, move) + b"..",
    )


def begins(code: bytes, at: int) -> bool:
    """Whether an instruction begins at ``at``. Decodes the function up to and including it."""
    before = instructions().fullmatch(code, 0, at)
    if before is None or before[1]:
        return False
    behind = instructions().match(code, at)
    return behind is not None and behind.start(1) > at


def _modrm(*registers: int) -> bytes:
    """ModRM, SIB and displacement; the reg field is one of ``registers``, if any are given."""

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
