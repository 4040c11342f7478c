"""Where calls keep arguments, results and return addresses, as one processor has it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Abi:
    """A calling convention for integer and pointer arguments, by GDB's register names.

    A machine whose convention is not known has no argument registers and no result register:
    then only what GDB itself can tell is read.
    return_address_on_stack: at a function's entry it lies at the stack pointer, and the
    arguments that found no register begin one word above it.
    reads_result: instructions that read an `int` result: one right behind a call shows that it
    returns one. dwarf_registers: by DWARF's numbers. word: bytes of a register.
    breakpoint: the instruction that GDB writes. user_registers: in the order in which Linux gives
    a tracer all of them at once, each a word.
    """

    machine: str
    argument_registers: tuple[str, ...] = ()
    result_register: str | None = None
    return_address_on_stack: bool = False
    reads_result: re.Pattern[bytes] | None = None
    dwarf_registers: tuple[str, ...] = ()
    # GDB's names for them on every machine.
    stack_pointer: str = "sp"
    program_counter: str = "pc"
    word: int = 8
    breakpoint: bytes | None = None
    user_registers: tuple[str, ...] = ()

    def stack_argument(self, index: int, sp: int) -> int:
        """Address, at entry, of argument ``index``, which found no register."""
        return sp + self.word * (1 + index - len(self.argument_registers))

    def sp_after_return(self, sp_at_entry: int) -> int:
        return sp_at_entry + self.word
