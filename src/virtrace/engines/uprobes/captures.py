"""Instructions that read all that a capture could ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from virtrace.binary.ctype import Code, Pointer, Struct
from virtrace.engines.uprobes.arrays import ArrayReads
from virtrace.engines.uprobes.assembler import FP, R1, R2, R7
from virtrace.engines.uprobes.layout import WORD
from virtrace.engines.uprobes.reads import (
    OWN_TID_SLOT,
    Aligned,
    InContext,
    Loaded,
    Plus,
    Reads,
    Value,
)
from virtrace.engines.uprobes.texts import TextReads
from virtrace.image.structs import largest
from virtrace.plan.capture import Capture, most_elements
from virtrace.plan.walk import Move, ToMember, ToTarget
from virtrace.recipe.path import COUNTED, Backtrace, Caller, Format, Records, Stack
from virtrace.targets.libvirt.forms import DOMAIN

# Of a stack, from the stack pointer on. The deepest that was met, of a write through qcow2, has
# 3 KiB.
_PIECE, _PIECES = 1 << 9, 13


class CaptureReads:
    """Writes the instructions for captures, into the program of one place."""

    def __init__(self, reads: Reads, rounds: int) -> None:
        """rounds: as of ``ArrayReads``."""
        self._reads = reads
        self._texts = TextReads(reads)
        self._arrays = ArrayReads(reads, rounds)

    def read(self, capture: Capture, arguments: Mapping[str, Value]) -> None:
        """Read all that a capture could ask for."""
        form = capture.path.form
        if isinstance(form, (Caller, Stack)) or any(
            name not in arguments for name in capture.arguments
        ):
            return
        if isinstance(form, COUNTED):
            self._counted(capture, arguments)
            return
        way = capture.ways[0]
        # What a member points to may be no text, where several layouts are possible.
        is_certain = not any(
            isinstance(move, ToMember) and move.struct.checks for move in way.moves
        )

        def finish(value: Value) -> None:
            ctype, number = way.ctype, value
            if isinstance(ctype, Code):
                return
            if isinstance(ctype, Pointer) and ctype.string:
                if way.in_memory:
                    number = self._reads.number(value, ctype.size)
                self._texts.read(number, is_certain=is_certain)
            elif way.in_memory:
                size = largest(ctype) if isinstance(ctype, Struct) else ctype.size
                number = self._reads.block(value, size)
            if isinstance(form, Format):
                self._texts.read(arguments[capture.arguments[1]], is_certain=True)
            elif isinstance(form, Backtrace):
                self._backtrace(number, in_memory=way.in_memory)

        self._follow(arguments[capture.arguments[0]], way.moves, finish)

    def stack(self) -> None:
        """Copy the stack that the thread is on: pieces that lie in one page each."""
        start = Aligned(InContext("rsp"), _PIECE)
        for piece in range(_PIECES):
            self._reads.block(Plus(start, piece * _PIECE), _PIECE)
        self._reads.layout.has_stack = True

    def _backtrace(self, thread: Value, *, in_memory: bool) -> None:
        """Note whose backtrace is wanted; copy the stack where that is the thread itself."""
        code, other = self._reads.code, self._reads.code.new_label("other")
        if isinstance(thread, Loaded) and in_memory:
            self._reads.layout.backtraces.append((thread.offset, thread.offset - 2 * WORD))
        else:
            at = self._reads.layout.room(WORD)
            self._reads.into(R1, thread)
            code.store(R7, at, R1)
            self._reads.layout.backtraces.append((at, None))
            thread = Loaded(at)
        self._reads.into(R1, thread)
        code.do(R1, "<<=", 32)
        code.do(R1, ">>=", 32)
        code.load(R2, FP, OWN_TID_SLOT)
        code.jump_if(R1, "!=", R2, other)
        self._texts.stack()
        code.label(other)

    def _counted(self, capture: Capture, arguments: Mapping[str, Value]) -> None:
        reads, (array, counting) = self._reads, capture.ways

        def elements(value: Value, count: Value) -> None:
            if isinstance(array.ctype, Struct):
                self._arrays.structs(value, count, array.ctype.size, most_elements(array.ctype))
                return
            if array.in_memory:
                value = reads.number(value, array.ctype.size)
            if isinstance(capture.path.form, Records):
                self._arrays.domain_records(value, count, self._name_of_domain)
            else:
                self._arrays.typed_parameters(value, count)

        def counted(value: Value) -> None:
            count = reads.number(value, counting.ctype.size) if counting.in_memory else value
            start = arguments[array.start]
            self._follow(start, array.moves, lambda value: elements(value, count))

        self._follow(arguments[counting.start], counting.moves, counted)

    def _name_of_domain(self, domain: Value) -> None:
        name = DOMAIN.member("name")
        assert name is not None
        self._follow(
            domain,
            [ToMember(DOMAIN, name)],
            lambda value: self._texts.read(self._reads.number(value, WORD), is_certain=False),
        )

    def _follow(self, value: Value, moves: Sequence[Move], finish: Callable[[Value], None]) -> None:
        """Read all on a way. finish: makes the code at its end, of the value or its address."""
        if not moves:
            finish(value)
            return
        move, rest = moves[0], moves[1:]
        if isinstance(move, ToTarget):
            pointer = self._reads.number(value, move.size) if move.size else value
            with self._reads.unless_zero(pointer):
                self._follow(pointer, rest, finish)
            return
        if move.struct.checks:
            self._reads.block(value, largest(move.struct))
        for offset in move.offsets:
            self._follow(Plus(value, offset), rest, finish)
