"""Instructions that read texts, and the stack of a thread: what goes on in parts."""

from __future__ import annotations

from virtrace.engines.uprobes.assembler import FP, R0, R1, R2, R3, R6, R7, R8, R9, Register
from virtrace.engines.uprobes.layout import (
    ADDRESS,
    BYTES,
    CONTENT,
    FREE,
    LENGTH,
    LOST,
    TEXT,
    WORD,
)
from virtrace.engines.uprobes.reads import (
    COPY_FROM_USER,
    LENGTH_SLOT,
    PAGE,
    PT_REGS,
    READ_USER,
    READ_USER_STRING,
    SCRATCH_SLOT,
    Reads,
    Value,
)

# Bytes of a text that have their place in the record of the probe.
_BEGINNING = 256
# Sizes of the parts that follow a longer one, and how often the last may: more than libvirt
# takes of QEMU (QEMU_MONITOR_MAX_RESPONSE, 10 MiB).
_LONG = tuple(1 << shift for shift in range(10, 20))
_LONGEST, _LONGEST_PARTS = 1 << 20, 10
# What an address that may be no text's is read to.
_SHORT = (1 << 10, 1 << 12)
# Of a thread's own stack, for a backtrace.
_STACK_PARTS = 16


class TextReads:
    """Writes the instructions for texts, into the program of one place."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def read(self, address: Value, *, is_certain: bool) -> None:
        """Read the text at an address. is_certain: if there is one, it begins there."""
        layout, base, code = self._reads.into_layout, self._reads.base, self._reads.code
        number = len(layout.texts)
        at = layout.room(2 * WORD + _BEGINNING)
        layout.texts.append((at, _BEGINNING))
        done = code.new_label("text")
        self._reads.into(R8, address)
        code.jump_if(R8, "==", 0, done)
        code.store(base, at, R8)
        self._read_text(base, at + 2 * WORD, _BEGINNING)
        code.store(base, at + WORD, R0)
        if base is R7:
            code.jump_if(R0, "s<", _BEGINNING, done)
            code.do(R8, "+=", _BEGINNING - 1)
            for size in _LONG if is_certain else _SHORT:
                self._rest_of_text(number, size, done, at)
            if is_certain:
                with self._reads.repeated(_LONGEST_PARTS, done):
                    self._rest_of_text(number, _LONGEST, done, at)
        code.label(done)

    def _rest_of_text(self, number: int, size: int, done: str, at: int) -> None:
        """One more part, of the text at R8."""
        code = self._reads.code
        there = code.new_label("there")
        self._reads.reserve(CONTENT + size)
        code.jump_if(R0, "!=", 0, there)
        code.do(R1, "=", LOST)
        code.store(R7, at + WORD, R1)
        code.jump(done)
        code.label(there)
        code.do(R9, "=", R0)
        self._reads.begin_part(R9, TEXT, number, size)
        code.store(R9, ADDRESS, R8)
        self._read_text(R9, CONTENT, size)
        code.store(R9, LENGTH, R0)
        code.store(FP, LENGTH_SLOT, R0)
        # So large a text fills the ring soon.
        self._reads.submit_part(R9, wakes=size == _LONGEST)
        code.load(R0, FP, LENGTH_SLOT)
        code.jump_if(R0, "s<", size, done)
        code.do(R8, "+=", size - 1)

    def _read_text(self, base: Register, at: int, size: int) -> None:
        """Have R0 be the size of the text at R8 with its NUL, or -errno."""
        code = self._reads.code

        def read() -> None:
            self._reads.point(R1, base, at)
            code.do(R2, "=", size)
            code.do(R3, "=", R8)
            code.call(READ_USER_STRING)

        read()
        if self._reads.retries:
            done = code.new_label("read")
            code.jump_if(R0, "s>=", 0, done)
            # Bring its pages into memory, and read once more. One behind its end may be missing.
            for page in range(0, min(size, 4 * PAGE), PAGE):
                self._reads.frame_address(R1, SCRATCH_SLOT)
                code.do(R2, "=", 1)
                code.do(R3, "=", R8)
                code.do(R3, "+=", page)
                code.call(COPY_FROM_USER)
            read()
            code.label(done)

    def stack(self) -> None:
        """Copy the thread's stack, from its stack pointer on."""
        code = self._reads.code
        done, read = code.new_label("stack"), code.new_label("read")
        code.load(R8, R6, PT_REGS["rsp"])
        with self._reads.repeated(_STACK_PARTS, done):
            self._reads.reserve(CONTENT + PAGE)
            code.jump_if(R0, "==", 0, done)
            code.do(R9, "=", R0)
            self._reads.begin_part(R9, BYTES, FREE)
            code.store(R9, ADDRESS, R8)
            self._reads.point(R1, R9, CONTENT)
            code.do(R2, "=", PAGE)
            code.do(R3, "=", R8)
            code.call(READ_USER)
            code.store(FP, LENGTH_SLOT, R0)
            code.jump_if(R0, "!=", 0, read)
            code.do(R0, "=", PAGE)
            code.label(read)
            code.store(R9, LENGTH, R0)
            self._reads.submit_part(R9)
            code.load(R1, FP, LENGTH_SLOT)
            code.jump_if(R1, "!=", 0, done)
            code.do(R8, "+=", PAGE)
        code.label(done)
