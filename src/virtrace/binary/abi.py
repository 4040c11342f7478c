"""What is particular to a processor: where calls keep arguments, results and return addresses."""

from __future__ import annotations

import re
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
    # Instructions that read an `int` result: one right behind a call shows that it returns one.
    reads_result: re.Pattern[bytes]
    word: int = 8

    def stack_argument(self, index: int, sp: int) -> int:
        """Address, at entry, of argument ``index``, which found no register."""
        return sp + self.word * (1 + index - len(self.argument_registers))

    def sp_after_return(self, sp_at_entry: int) -> int:
        return sp_at_entry + self.word


# System V Application Binary Interface, AMD64 Architecture Processor Supplement, 3.2.
X86_64 = Abi(
    "x86_64",
    ("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    "rax",
    "rsp",
    # test %eax,%eax; mov %eax,%REGISTER; cmp $BYTE,%eax
    re.compile(rb"\x85\xc0|\x41?\x89[\xc0-\xc7]|\x83\xf8", re.S),
)

ABIS = {abi.machine: abi for abi in (X86_64,)}
