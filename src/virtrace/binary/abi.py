"""What is particular to a processor: where calls keep arguments, results and return addresses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Abi:
    """A calling convention for integer and pointer arguments. word: bytes of a register.

    Names are GDB's register names. At a function's entry the return address lies at the
    stack pointer, and the arguments that found no register begin one word above it.
    """

    machine: str
    argument_registers: tuple[str, ...]
    result_register: str
    stack_pointer: str
    word: int = 8

    def stack_argument(self, index: int, sp: int) -> int:
        """Address, at entry, of argument ``index``, which found no register."""
        return sp + self.word * (1 + index - len(self.argument_registers))

    def sp_after_return(self, sp_at_entry: int) -> int:
        return sp_at_entry + self.word


# System V Application Binary Interface, AMD64 Architecture Processor Supplement, 3.2.
X86_64 = Abi("x86_64", ("rdi", "rsi", "rdx", "rcx", "r8", "r9"), "rax", "rsp")

ABIS = {abi.machine: abi for abi in (X86_64,)}
