"""Tries, on a function of our own, what the kernel of this host can do.

Versions do not tell: distributions change their kernels, and what a container may do depends on
its settings.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from virtrace.engines.uprobes import kernel
from virtrace.engines.uprobes.assembler import FP, R0, R1, R2, Assembler, Symbol
from virtrace.engines.uprobes.kernel import KernelError, Place

# BPF_FUNC_map_lookup_elem of <linux/bpf.h>.
_MAP_LOOKUP = 1
# push %rbp; pop %rbp; ret - the kernel emulates a probed push.
_EMULATED = bytes.fromhex("555dc3")
# mov %rdi,%rax; ret - the kernel has to step over a probed mov.
_STEPPED = bytes.fromhex("4889f8c3")
_EMULATED_AT, _STEPPED_AT, _LINKED_AT = 0, 64, 128
_FUNCTIONS = {_EMULATED_AT: _EMULATED, _STEPPED_AT: _STEPPED, _LINKED_AT: _EMULATED}
_CALLS = 200
# <linux/prctl.h>, <linux/seccomp.h>, <linux/filter.h>: if it is the system call uretprobe (335 on
# x86-64), end the process; allow any other.
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_FILTER = b"".join(
    struct.pack("<HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),
        (0x15, 0, 1, 335),
        (0x06, 0, 0, 0x80000000),
        (0x06, 0, 0, 0x7FFF0000),
    )
)
_COUNTER = Symbol("counter", is_map=True)


@dataclass(frozen=True)
class Abilities:
    """What the kernel can do.

    sleepable: programs may wait for a page of the process. multi: uprobe_multi works for all
    threads of a process. emulated_ns, stepped_ns: what a hit costs at an instruction that the
    kernel emulates, and at any other, without the program.
    """

    sleepable: bool
    multi: bool
    emulated_ns: int
    stepped_ns: int


@cache
def abilities() -> Abilities:
    """Try it. Raises: KernelError if no probe works at all."""
    kernel.lift_memory_limit()
    with _Trial() as trial:
        sleepable = trial.loads(sleepable=True)
        multi = trial.multi_works(sleepable=sleepable)
        before = trial.cost(_EMULATED_AT), trial.cost(_STEPPED_AT)
        trial.attach(_EMULATED_AT, sleepable=sleepable, multi=multi)
        trial.attach(_STEPPED_AT, sleepable=sleepable, multi=multi)
        wanted = trial.hits() + 2 * _CALLS
        after = trial.cost(_EMULATED_AT), trial.cost(_STEPPED_AT)
        if trial.hits() < wanted:
            raise KernelError(0, "a probe of our own function was not met")
    return Abilities(sleepable, multi, after[0] - before[0], after[1] - before[1])


@cache
def returns_pass_seccomp() -> bool:
    """Whether a process with a seccomp filter survives a return probe.

    On Linux 6.11 to 6.13 a function that is probed so returns by a system call, which a filter
    can answer by ending the process.
    """
    with _Trial() as trial:
        ready, begin = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            _return_under_filter(trial, ready[1], begin[0])
        try:
            os.read(ready[0], 1)
            trial.attach(_EMULATED_AT, sleepable=False, multi=False, at_return=True, pid=child)
        finally:
            os.write(begin[1], b"x")
            _, status = os.waitpid(child, 0)
            for descriptor in (*ready, *begin):
                os.close(descriptor)
    return status == 0


def _return_under_filter(trial: _Trial, ready: int, begin: int) -> NoReturn:
    """Forbid the system call of return probes, call a function, and end."""
    status = 1
    try:
        program = ctypes.create_string_buffer(_FILTER)
        description = struct.pack("@HP", len(_FILTER) // 8, ctypes.addressof(program))
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        filtered = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, description, 0, 0)
        os.write(ready, b"x")
        os.read(begin, 1)
        trial.call(_EMULATED_AT)
        status = filtered
    finally:
        os._exit(status)


class _Trial:
    """Probes of our own functions, which count."""

    def __init__(self) -> None:
        self._counter = kernel.create_map(kernel.ARRAY, 4, 8, 1, "virtrace_trial")
        self._opened = [self._counter]
        self._functions = _functions()

    def __enter__(self) -> _Trial:
        self._path, self.call = self._functions.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        # The kernel waits for all processors before it lets a probe go; nobody waits for that.
        threading.Thread(target=_close, args=(self._opened[::-1],)).start()
        self._functions.__exit__(None, None, None)

    def loads(self, *, sleepable: bool) -> bool:
        try:
            self._load(sleepable=sleepable, multi=False)
        except KernelError:
            return False
        return True

    def attach(
        self,
        offset: int,
        *,
        sleepable: bool,
        multi: bool,
        at_return: bool = False,
        pid: int | None = None,
    ) -> None:
        """pid: None: of this process. Raises: KernelError."""
        program = self._load(sleepable=sleepable, multi=multi)
        attach = kernel.attach_multi if multi else kernel.attach
        place = Place(self._path, offset, at_return=at_return)
        self._opened.append(attach(program, place, os.getpid() if pid is None else pid))

    def multi_works(self, *, sleepable: bool) -> bool:
        """Whether all threads of a process meet a link of uprobe_multi.

        Linux 6.6 to 6.9 keeps one to a single thread (fixed by commit 46ba0e49b642).
        """
        before = self.hits()
        try:
            self.attach(_LINKED_AT, sleepable=sleepable, multi=True)
        except KernelError:
            return False
        thread = threading.Thread(target=self.call, args=(_LINKED_AT,))
        thread.start()
        thread.join()
        self.call(_LINKED_AT)
        return self.hits() == before + 2

    def cost(self, offset: int) -> int:
        """Return what a call takes, in ns: the fastest of several, as others interrupt."""
        spent = []
        for _ in range(_CALLS):
            before = time.perf_counter_ns()
            self.call(offset)
            spent.append(time.perf_counter_ns() - before)
        return min(spent)

    def hits(self) -> int:
        found = kernel.look_up(self._counter, struct.pack("<I", 0), 8)
        return int(struct.unpack("<Q", found)[0])

    def _load(self, *, sleepable: bool, multi: bool) -> int:
        code = _program(self._counter)
        program = kernel.load(code, "virtrace", sleepable=sleepable, multi=multi)
        self._opened.append(program)
        return program


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@contextmanager
def _functions() -> Iterator[tuple[str, Callable[[int], None]]]:
    """A file of machine code that is mapped here: its path, and what calls a function in it."""
    descriptor = os.memfd_create("virtrace-trial", os.MFD_CLOEXEC)
    try:
        for place, function in _FUNCTIONS.items():
            os.pwrite(descriptor, function, place)
        os.ftruncate(descriptor, mmap.PAGESIZE)
        code = mmap.mmap(
            descriptor, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC
        )
        address = _address(code)

        kind = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)
        functions = {offset: kind(address + offset) for offset in _FUNCTIONS}
        yield f"/proc/{os.getpid()}/fd/{descriptor}", lambda offset: functions[offset](0)
        code.close()
    finally:
        os.close(descriptor)


def _address(code: mmap.mmap) -> int:
    """Return where a mapping that may not be written is: ctypes takes only writable buffers."""
    view = ctypes.py_object(code)
    buffer = (ctypes.c_void_p * 16)()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer(view, buffer, 0)
    address = buffer[0]
    api.PyBuffer_Release(buffer)
    assert address is not None
    return int(address)


def _program(counter: int) -> bytes:
    code = Assembler()
    code.store(FP, -8, 0)
    code.load_symbol(R1, _COUNTER)
    code.do(R2, "=", FP)
    code.do(R2, "+=", -8)
    code.call(_MAP_LOOKUP)
    code.jump_if(R0, "==", 0, "out")
    code.do(R1, "=", 1)
    code.atomic_add(R0, 0, R1)
    code.label("out")
    code.do(R0, "=", 0)
    code.exit()
    return code.code().link({_COUNTER.name: counter})
