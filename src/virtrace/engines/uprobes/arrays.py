"""Instructions that read arrays whose length only the process knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtrace.engines.uprobes.assembler import R0, R1, R2, R3, R4, R7, R9, Register
from virtrace.engines.uprobes.layout import (
    ADDRESS,
    CONTENT,
    FREE,
    LENGTH,
    PARAMETER,
    PARAMETER_IS_TEXT,
    PARAMETER_TEXT,
    PARAMETER_TYPE,
    PARAMETER_VALUE,
    PARAMETERS,
    PARAMETERS_OF_PART,
    PARAMETERS_SIZE,
    PARAMETERS_TEXTS,
    WORD,
)
from virtrace.engines.uprobes.reads import (
    READ_USER,
    READ_USER_STRING,
    Loaded,
    Plus,
    Reads,
    Value,
)
from virtrace.engines.uprobes.texts import TextReads

# Parts of one array of typed parameters.
_ARRAY_PARTS = 16


@dataclass(frozen=True)
class _Array:
    """Words in the probe's record: how many elements are left to read, and where."""

    left: Loaded
    at: Loaded


class ArrayReads:
    """Writes the instructions for arrays, into the program of one place."""

    def __init__(self, reads: Reads, rounds: int) -> None:
        """rounds: parts of all arrays of an array of records."""
        self._reads = reads
        self._texts = TextReads(reads)
        self._rounds = rounds

    def typed_parameters(self, address: Value, count: Value) -> None:
        """Read an array of virTypedParameter, with the texts in it."""
        array, done = self._array(), self._reads.code.new_label("typed")
        self._note(array, address, count)
        long = [Loaded(self._reads.layout.room(WORD)) for _ in range(2)]
        for text in long:
            self._reads.code.store(R7, text.offset, 0)
        with self._reads.repeated(_ARRAY_PARTS, done):
            self._reads.into(R1, array.left)
            self._reads.code.jump_if(R1, "==", 0, done)
            self._parameters(array, done, long)
        self._reads.code.label(done)
        for text in long:
            self._texts.read(text, is_certain=True)

    def structs(self, address: Value, count: Value, size: int, most: int) -> None:
        """Read an array of structs of one size, at most so many."""
        code, done = self._reads.code, self._reads.code.new_label("structs")
        for number in range(most):
            self._reads.into(R1, count)
            code.do(R1, "<<=", 32)
            code.do(R1, ">>=", 32)
            code.jump_if(R1, "<=", number, done)
            self._reads.block(Plus(address, number * size), size)
        code.label(done)

    def domain_records(
        self, address: Value, count: Value, read_name: Callable[[Value], None]
    ) -> None:
        """Read an array of virDomainStatsRecord through a pointer to it.

        read_name: reads what leads from a domain's address to its name
        """
        code, done = self._reads.code, self._reads.code.new_label("records")
        domains, parameters = self._array(), self._array()
        self._note(domains, self._reads.block(address, WORD), count)
        code.store(R7, parameters.left.offset, 0)
        # In each round the next parameters of a domain, with the next domain where it has no more.
        with self._reads.repeated(self._rounds, done):
            more = code.new_label("more")
            self._reads.into(R1, parameters.left)
            code.jump_if(R1, "!=", 0, more)
            self._reads.into(R1, domains.left)
            code.jump_if(R1, "==", 0, done)
            code.do(R1, "-=", 1)
            code.store(R7, domains.left.offset, R1)
            with self._reads.part(done):
                record = self._reads.block(self._reads.block(domains.at, WORD), 3 * WORD)
                read_name(record)
                array, number = (
                    Loaded(record.offset + offset, size, record.base)
                    for offset, size in ((WORD, WORD), (2 * WORD, 4))
                )
                self._note(parameters, array, number)
            self._reads.into(R1, domains.at)
            code.do(R1, "+=", WORD)
            code.store(R7, domains.at.offset, R1)
            code.label(more)
            self._parameters(parameters, done, [])
        code.label(done)

    def _array(self) -> _Array:
        return _Array(*(Loaded(self._reads.layout.room(WORD)) for _ in range(2)))

    def _note(self, array: _Array, address: Value, count: Value) -> None:
        """Note where an array is and how many elements it has: none where there is no array."""
        code, there = self._reads.code, self._reads.code.new_label("there")
        self._reads.into(R1, count)
        # A count is an int; one below 0 becomes larger than any that is read.
        code.do(R1, "<<=", 32)
        code.do(R1, ">>=", 32)
        self._reads.into(R2, address)
        code.jump_if(R2, "!=", 0, there)
        code.do(R1, "=", 0)
        code.label(there)
        code.store(R7, array.left.offset, R1)
        code.store(R7, array.at.offset, R2)

    def _parameters(self, array: _Array, done: str, long: Sequence[Loaded]) -> None:
        """Read the next parameters of an array; there may be none left.

        long: words of the probe's record, to note texts in that are longer than their room
        """
        code = self._reads.code
        few, read = code.new_label("few"), code.new_label("read")
        self._reads.reserve(PARAMETERS_SIZE)
        code.jump_if(R0, "==", 0, done)
        code.do(R9, "=", R0)
        self._reads.begin_part(R9, PARAMETERS, FREE)
        self._reads.into(R3, array.at)
        code.store(R9, ADDRESS, R3)
        self._reads.into(R2, array.left)
        code.jump_if(R2, "<=", PARAMETERS_OF_PART, few)
        code.do(R2, "=", PARAMETERS_OF_PART)
        code.label(few)
        self._reads.into(R1, array.left)
        code.do(R1, "-=", R2)
        code.store(R7, array.left.offset, R1)
        code.do(R2, "*=", PARAMETER)
        code.store(R9, LENGTH, R2)
        self._reads.into(R1, array.at)
        code.do(R1, "+=", R2)
        code.store(R7, array.at.offset, R1)
        self._reads.point(R1, R9, CONTENT)
        code.call(READ_USER)
        code.jump_if(R0, "==", 0, read)
        code.store(R9, LENGTH, R0)
        code.store(R7, array.left.offset, 0)
        code.label(read)
        for number in range(PARAMETERS_OF_PART):
            self._text_of_parameter(number, long)
        self._reads.submit_part(R9)

    def _text_of_parameter(self, number: int, long: Sequence[Loaded]) -> None:
        """Read the text of a parameter, if it is one: a text of size 0 otherwise.

        Without a jump: the verifier would follow both ways of each of them.
        """
        code, at = self._reads.code, CONTENT + number * PARAMETER
        text = PARAMETERS_TEXTS + number * (WORD + PARAMETER_TEXT)
        self._reads.point(R1, R9, text + WORD)
        code.load(R2, R9, at + PARAMETER_TYPE, 4)
        self._is_equal(R2, PARAMETER_IS_TEXT)
        code.do(R2, "*=", PARAMETER_TEXT)
        code.load(R3, R9, at + PARAMETER_VALUE)
        code.call(READ_USER_STRING)
        code.store(R9, text, R0)
        if not long:
            return
        # Where it is cut, its address goes to the first word, and what was there to the second.
        self._is_equal(R0, PARAMETER_TEXT)
        code.load(R1, R9, at + PARAMETER_VALUE)
        for word in long:
            code.load(R2, R7, word.offset)
            code.do(R3, "=", R2)
            code.do(R1, "-=", R2)
            code.do(R1, "*=", R0)
            code.do(R2, "+=", R1)
            code.store(R7, word.offset, R2)
            code.do(R1, "=", R3)

    def _is_equal(self, register: Register, number: int) -> None:
        """Make a register 1 if it is a number, 0 if it is another one of 32 bits.

        By no arithmetic shift: for one by 63, followed by a bitwise and, the verifier of Linux 6.18
        follows two ways, and it crashes where it has too many (maybe_fork_scalars).
        """
        code = self._reads.code
        # n * n - 1 is negative for 0 alone.
        code.do(register, "-=", number)
        code.do(R4, "=", register)
        code.do(register, "*=", R4)
        code.do(register, "-=", 1)
        code.do(register, ">>=", 63)
