"""Registers and memory of a process that this one traces, against what /proc says of it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtrace.binary.abi import Abi, Operand
from virtrace.binary.x86_64 import ABI
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import PAGE
from virtrace.inferior.kernel import Kernel

TRACE_ME = 0
on_x86_64 = pytest.mark.skipif(os.uname().machine != ABI.machine, reason="of x86_64 only")


@pytest.fixture
def stopped() -> Iterator[int]:
    """A child that stands still in a system call, traced by this process."""
    libc = ctypes.CDLL(None)
    pid = os.fork()
    if pid == 0:
        libc.ptrace(TRACE_ME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(1)
    os.waitpid(pid, 0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def kernel(stopped: int) -> Iterator[Kernel]:
    kernel = Kernel(stopped, ABI)
    yield kernel
    kernel.close()


@on_x86_64
def test_registers_are_those_of_the_system_call(stopped: int, kernel: Kernel) -> None:
    registers = kernel.registers(stopped)
    # The call's number, six arguments, stack pointer and program counter.
    words = Path(f"/proc/{stopped}/syscall").read_text().split()
    names = ("rdi", "rsi", "rdx", "r10", "r8", "r9", "rsp", "rip")
    assert {name: registers[name] for name in names} == {
        name: int(word, 16) for name, word in zip(names, words[1:])
    }
    assert registers["orig_rax"] == int(words[0])
    assert (registers["rdi"], registers["rsi"]) == (stopped, signal.SIGSTOP)


def test_no_registers_of_who_is_not_traced_or_of_another_machine(stopped: int) -> None:
    for abi, tid in (ABI, os.getpid()), (Abi("another"), stopped):
        kernel = Kernel(stopped, abi)
        assert kernel.registers(tid) == {}
        kernel.close()


def test_memory_is_read_whole_or_not_at_all(stopped: int, kernel: Kernel) -> None:
    maps = Path(f"/proc/{stopped}/maps").read_text().splitlines()
    end = next(int(line.split()[0].split("-")[1], 16) for line in maps if line.endswith("[stack]"))
    with open(f"/proc/{stopped}/mem", "rb") as memory:
        memory.seek(end - 3 * PAGE)
        assert kernel.memory.read(end - 3 * PAGE, 3 * PAGE) == memory.read(3 * PAGE)
    assert len(kernel.memory.read(end - 8, 8)) == 8
    for address, size in (end - 8, 16), (0, 1), (-8, 8), ((1 << 64) - 4, 8), (1 << 63, 8):
        with pytest.raises(Unavailable, match="cannot read memory at"):
            kernel.memory.read(address, size)


def test_memory_of_nobody() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(TargetError, match="cannot be opened"):
        Kernel(pid, ABI)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8@%rbx", Operand("rbx", None, 8, False)),
        ("-4@%rdi", Operand("rdi", None, 4, True)),
        ("8@8(%rax)", Operand("rax", 8, 8, False)),
        ("8@-88(%rbp)", Operand("rbp", -88, 8, False)),
        ("1@(%r14)", Operand("r14", 0, 1, False)),
        # GDB has to tell these.
        ("4@%eax", None),
        ("4@$7", None),
        ("8@8(%rax,%rcx,8)", None),
        ("8@symbol(%rip)", None),
        ("8@16(%rip)", None),
    ],
)
def test_operands_of_static_probes(text: str, found: Operand | None) -> None:
    assert ABI.operand(text) == found
