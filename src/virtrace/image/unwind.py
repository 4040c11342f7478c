"""Backtraces without GDB and without debug info, from call frame information (x86-64).

Only what is known of a thread is used: its registers, the stack that belongs to them, and the
files of the program. Where that is not enough the backtrace ends, with the reason.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from virtrace.binary import unwind
from virtrace.binary.unwind import Row, Rule
from virtrace.binary.x86_64 import ABI
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import Memory, MemoryCopy
from virtrace.image.model import Image, Module, Registers, Thread

# How the position of a frame is known.
BY_REGISTERS = "registers"  # the innermost frame
BY_UNWINDING = "call frame information"
# An inference, not a proof: exactly one word of the stack is a return address behind a direct call
# of the frame's function.
BY_ITS_CALL = "its call"

_MOST_FRAMES = 1024
# Bytes of stacks that are searched for calls, of all threads.
_MOST_SEARCHED = 64 << 20
_MASK = (1 << 64) - 1
_WORD = struct.Struct("<Q")

# By DWARF's numbers: the registers, and those that a function keeps for its caller (AMD64 ABI,
# 3.2.1).
_NAMES = (*ABI.dwarf_registers, ABI.program_counter)
_SP, _PC = _NAMES.index(ABI.stack_pointer), len(ABI.dwarf_registers)
_KEPT = tuple(map(_NAMES.index, ("rbx", "rbp", "r12", "r13", "r14", "r15")))
_NOT_SAVED = "no function further in saved it"


@dataclass(frozen=True)
class Frame:
    """A function that has not returned yet.

    pc: address of its next instruction.
    cfa: its canonical frame address, which is the stack pointer before the call of it; None where
        it is not known.
    module: the file with its code; None where the code is in no file.
    function: first address of its code in the program, or of the fragment that the compiler split
        from it; None where the file does not say.
    registers: its registers at pc.
    known_by: how its position is known. Frames beyond an inferred one are inferred, too.
    """

    pc: int
    cfa: int | None
    module: Module | None
    function: int | None
    registers: Registers
    known_by: str


@dataclass(frozen=True)
class StackTrace:
    """The frames of a thread, innermost first.

    ended: why there are no more frames; None if the last one is the thread's first function.
    """

    frames: tuple[Frame, ...]
    ended: str | None


class Unwinder:
    """Makes the backtraces of an image's threads."""

    def __init__(self, image: Image) -> None:
        self._image = image
        # Why the file of a module is not believed; "" where it is.
        self._doubts: dict[Module, str] = {}
        self._may_search = _MOST_SEARCHED

    def backtrace(self, thread: Thread) -> StackTrace:
        """The frames of a thread, as far as they are known."""
        walk = _Walk(self, thread)
        ended = None
        try:
            walk.run()
        except Unavailable as error:
            ended = str(error)
        except TargetError as error:
            ended = error.what
        return StackTrace(tuple(walk.frames), ended)

    def module_at(self, address: int) -> Module | None:
        return self._image.program.module_at(address)

    def require_mapped(self, module: Module) -> None:
        """Raises: Unavailable if a file is not known to be the one that is mapped."""
        if module not in self._doubts:
            at, content = module.elf.fingerprint
            try:
                is_same = self._image.memory.read(module.base + at, len(content)) == content
                why = "" if is_same else "the program has another one in memory"
            except Unavailable as error:
                why = str(error)
            self._doubts[module] = why
        if self._doubts[module]:
            raise Unavailable(
                f"{module.path} is not proven to be the file that was mapped: "
                f"{self._doubts[module]}"
            )

    def require_searchable(self, stack: MemoryCopy) -> None:
        """Raises: Unavailable if a stack is not whole, or if all stacks are too large to search."""
        self._may_search -= len(stack.data)
        if stack.is_cut or self._may_search < 0:
            raise Unavailable("the stack is too large to be searched for its call")

    def word(self, address: int) -> int:
        return _word(self._image.memory, address)


class _Walk:
    """The way from a thread's innermost frame to its first.

    frames: those that are known so far, the last one maybe in part.
    """

    def __init__(self, unwinder: Unwinder, thread: Thread) -> None:
        self.frames: list[Frame] = []
        self._unwinder = unwinder
        self._stack = thread.stack
        known = thread.registers.known
        self._registers = {
            number: known[name] for number, name in enumerate(_NAMES) if name in known
        }
        self._missing = thread.registers.missing
        self._known_by = BY_REGISTERS
        self._is_behind_call = False

    def run(self) -> None:
        """Raises: Unavailable or TargetError if something is not known that is needed."""
        while len(self.frames) < _MOST_FRAMES:
            pc = self._register(_PC)
            self.frames.append(Frame(pc, None, None, None, self._named(), self._known_by))
            module = self._module(pc)
            row = self._row(module, pc)
            function = module.base + row.start
            self.frames[-1] = replace(self.frames[-1], module=module, function=function)
            cfa = self._cfa(row, function)
            self.frames[-1] = replace(
                self.frames[-1], cfa=cfa, registers=self._named(), known_by=self._known_by
            )
            returns = row.registers.get(row.return_register)
            if returns is None:
                raise Unavailable(f"{module.name} does not describe where {function:#x} returns to")
            if returns.kind == unwind.UNDEFINED:
                return
            self._leave(row, cfa)
            if self._registers.get(_PC) == 0:
                return
        raise Unavailable(f"there are more than {_MOST_FRAMES} frames")

    def _named(self) -> Registers:
        known = {
            _NAMES[number]: value
            for number, value in self._registers.items()
            if number < len(_NAMES)
        }
        return Registers(known, self._missing)

    def _register(self, number: int) -> int:
        if number not in self._registers:
            raise Unavailable(f"{_name(number)} is not known: {self._missing}")
        return self._registers[number]

    def _looked_up(self, pc: int) -> int:
        """The address by which a frame's code is found."""
        # A return address may lie behind the function, where the call is its last instruction.
        return pc - 1 if self._is_behind_call else pc

    def _module(self, pc: int) -> Module:
        module = self._unwinder.module_at(self._looked_up(pc))
        if module is None:
            raise Unavailable(f"the code at {pc:#x} is in no file")
        self._unwinder.require_mapped(module)
        if module.elf.machine != ABI.machine:
            raise Unavailable(f"frames of {module.elf.machine} are not understood, only of x86_64")
        return module

    def _row(self, module: Module, pc: int) -> Row:
        row = module.elf.unwind_row(self._looked_up(pc) - module.base)
        if row is None:
            raise Unavailable(f"{module.name} has no call frame information for {pc:#x}")
        return row

    def _cfa(self, row: Row, function: int) -> int:
        rule = row.cfa
        if rule.kind != unwind.REGISTER:
            cfa = self._computed(rule.expression)
        elif rule.register in self._registers:
            cfa = self._registers[rule.register] + rule.offset & _MASK
        else:
            cfa = self._cfa_by_call(row, function)
            self._registers[rule.register] = cfa - rule.offset & _MASK
            self._known_by = BY_ITS_CALL
        # A signal handler may have a stack of its own.
        if cfa <= self._register(_SP) and not row.is_signal_frame:
            raise Unavailable(f"the frame at {cfa:#x} does not lie further out")
        return cfa

    def _cfa_by_call(self, row: Row, function: int) -> int:
        """The CFA of a frame whose function changes its stack pointer as it runs."""
        register = _name(row.cfa.register)
        returns = row.registers.get(row.return_register)
        if returns is None or returns.kind != unwind.OFFSET:
            raise Unavailable(f"{register} is not known: {self._missing}")
        self._unwinder.require_searchable(self._stack)
        places = self._calls_of(function)
        if len(places) != 1:
            raise Unavailable(
                f"{register} is not known: {self._missing}; and the stack has {len(places)} "
                f"return addresses behind calls of {function:#x}"
            )
        return places[0] - returns.offset

    def _calls_of(self, function: int) -> list[int]:
        """Return the stack slots that may have a return address of a direct call of a function."""
        places: dict[Module, dict[int, list[int]]] = {}
        for place, word in self._stack.words(self._register(_SP)):
            module = self._unwinder.module_at(word)
            if module is not None:
                # Without it a call could be missed, and another one taken for the only one.
                self._unwinder.require_mapped(module)
                addresses = places.setdefault(module, {})
                addresses.setdefault(word - module.base, []).append(place)
        return [
            place
            for module, addresses in places.items()
            for address, (called, slot) in module.elf.calls_before([*addresses]).items()
            if self._leads_to(function, module.base, called, slot)
            for place in addresses[address]
        ]

    def _leads_to(self, function: int, base: int, called: int | None, slot: int | None) -> bool:
        if called is not None and base + called == function:
            return True
        with suppress(Unavailable):
            return slot is not None and self._unwinder.word(base + slot) == function
        return False

    def _leave(self, row: Row, cfa: int) -> None:
        """Make the registers those of the caller."""
        # Only of a signal frame are all registers those of the function that it interrupted.
        kept = {number: self._registers[number] for number in _KEPT if number in self._registers}
        caller = {**kept, _SP: cfa}
        for number, rule in row.registers.items():
            # The return address may have a number of its own.
            target = _PC if number == row.return_register else number
            try:
                caller[target] = self._caller_value(number, rule, cfa)
            except Unavailable:
                if target == _PC:
                    raise
                caller.pop(target, None)
        self._registers = caller
        self._missing = _NOT_SAVED
        self._is_behind_call = not row.is_signal_frame
        if self._known_by == BY_REGISTERS:
            self._known_by = BY_UNWINDING

    def _caller_value(self, number: int, rule: Rule, cfa: int) -> int:
        """The value of a register in the caller."""
        if rule.kind == unwind.UNDEFINED:
            raise Unavailable(f"{_name(number)} is not kept")
        if rule.kind == unwind.SAME:
            return self._register(number)
        if rule.kind == unwind.REGISTER:
            return self._register(rule.register)
        if rule.kind == unwind.VALUE_OFFSET:
            return cfa + rule.offset & _MASK
        if rule.kind == unwind.OFFSET:
            return _word(self._stack, cfa + rule.offset & _MASK)
        value = self._computed(rule.expression, cfa)
        return _word(self._stack, value) if rule.kind == unwind.EXPRESSION else value

    def _computed(self, expression: bytes, *stack: int) -> int:
        """The result of a DWARF expression (DWARF 4, 2.5.1); its registers must be known."""
        values = [*stack]
        reader = unwind.Reader(expression, 0)
        try:
            while not reader.is_at_end:
                opcode = reader.byte()
                if opcode in _CONSTANTS:
                    values.append(_CONSTANTS[opcode](reader))
                elif opcode in _TWO_OPERANDS:
                    second, first = values.pop(), values.pop()
                    values.append(_TWO_OPERANDS[opcode](first, second))
                elif 0x30 <= opcode <= 0x4F:  # DW_OP_lit0 to 31
                    values.append(opcode - 0x30)
                elif 0x70 <= opcode <= 0x8F:  # DW_OP_breg0 to 31
                    values.append(self._register(opcode - 0x70) + reader.signed())
                elif opcode == 0x06:  # DW_OP_deref
                    values.append(_word(self._stack, values.pop() & _MASK))
                elif opcode == 0x23:  # DW_OP_plus_uconst
                    values.append(values.pop() + reader.unsigned())
                elif opcode == 0x12:  # DW_OP_dup
                    values.append(values[-1])
                else:
                    raise Unavailable(f"an expression has operation {opcode:#x}, not known here")
                values[-1] &= _MASK
            return values[-1]
        except (IndexError, ValueError, struct.error) as error:
            raise Unavailable("an expression of its call frame information is damaged") from error


def _word(memory: Memory, address: int) -> int:
    return int(_WORD.unpack(memory.read(address, _WORD.size))[0])


def _name(number: int) -> str:
    return _NAMES[number] if number < len(_NAMES) else f"register {number}"


def _compared(compare: Callable[[int, int], bool], first: int, second: int) -> int:
    """Compare two words as signed numbers."""
    first, second = ((value ^ 1 << 63) - (1 << 63) for value in (first, second))
    return int(compare(first, second))


# DWARF 4, 7.7.1: DW_OP_const1u to const8s, constu, consts.
_CONSTANTS: Mapping[int, Callable[[unwind.Reader], int]] = {
    **{
        opcode: partial(unwind.Reader.number, form=struct.Struct("<" + letter))
        for opcode, letter in zip(range(0x08, 0x10), "BbHhIiQq")
    },
    0x10: unwind.Reader.unsigned,
    0x11: unwind.Reader.signed,
}
# DW_OP_and, minus, or, plus, shl, shr, xor, and eq to ne.
_TWO_OPERANDS: Mapping[int, Callable[[int, int], int]] = {
    0x1A: operator.and_,
    0x1C: operator.sub,
    0x21: operator.or_,
    0x22: operator.add,
    0x24: lambda value, bits: value << bits if bits < 64 else 0,
    0x25: lambda value, bits: value >> bits,
    0x27: operator.xor,
    **{
        opcode: partial(_compared, compare)
        for opcode, compare in zip(
            range(0x29, 0x2F),
            (operator.eq, operator.ge, operator.gt, operator.le, operator.lt, operator.ne),
        )
    },
}
