"""Calling conventions: locations of arguments, results and return addresses, by processor."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Operand(NamedTuple):
    """Where an argument of a static probe is.

    register: which holds it, or the address to count from. offset: from that address, in bytes;
    None where the register itself holds the value. size: in bytes.
    """

    register: str
    offset: int | None
    size: int
    signed: bool


def _no_operand(_: str) -> Operand | None:
    return None


@dataclass(frozen=True)
class Abi:
    """A calling convention for integer and pointer arguments, by GDB's register names.

    A machine whose convention is not known has no argument registers and no result register.

    return_address_on_stack: it lies at the stack pointer at a function's entry, one word below
    the arguments that found no register.
    reads_result: instructions that read an `int` result; one of them right behind a call shows
    that the function returns one.
    dwarf_registers: in the order of DWARF's numbers.
    word: size of a register, in bytes.
    breakpoint: the instruction that GDB writes.
    user_registers: in the order in which Linux gives a tracer all of them, a word each.
    operand: reads the assembler's text of a static probe's argument; None for an unknown form.
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
    operand: Callable[[str], Operand | None] = _no_operand

    @property
    def is_known(self) -> bool:
        """Whether its calls and its instructions are known."""
        return bool(self.argument_registers)

    def sp_after_return(self, sp_at_entry: int) -> int:
        return sp_at_entry + self.word


class Elf(Protocol):
    """A file that names its machine, as pyelftools and `ElfFile` do."""

    @property
    def machine(self) -> str: ...


def convention_of_file(elf: Elf) -> Abi:
    """The convention of a file's code."""
    return convention_of_machine(elf.machine)


def convention_of_machine(machine: str) -> Abi:
    """The convention of a machine; one without registers where it is not known."""
    # It is made of this module's classes.
    from virtrace.binary import x86_64

    return x86_64.ABI if machine == x86_64.ABI.machine else Abi(machine)
