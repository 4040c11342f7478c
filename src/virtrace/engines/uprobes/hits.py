"""From records of the programs to the threads that a tracer understands.

Records may come from a stranger's file, so everything in them is checked. What was not recorded is
unavailable.
"""

from __future__ import annotations

import errno
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.layout import (
    BLOCK_HEADER,
    BLOCKS,
    BYTES,
    CONTENT,
    HIT,
    HIT_HEADER,
    LOST,
    NOT_REACHED,
    PARAMETER,
    PARAMETER_IS_TEXT,
    PARAMETER_TEXT,
    PARAMETER_TYPE,
    PARAMETER_VALUE,
    PARAMETERS,
    PARAMETERS_OF_PART,
    PARAMETERS_SIZE,
    PARAMETERS_TEXTS,
    PART_HEADER,
    TEXT,
    VALUES,
    WORD,
    Layout,
)
from virtrace.engines.uprobes.program import Program
from virtrace.errors import TraceError, Unavailable
from virtrace.image.memory import Recorded
from virtrace.plan.model import AnySite, StaticProbeSite

# Parts of one event: more than any program makes of its texts and arrays.
_MOST_PARTS = 1 << 14
_MOST_THREADS = 1 << 16
_ARRAY = PARAMETERS_OF_PART * PARAMETER
_U32, _U64, _S64 = map(struct.Struct, ("<I", "<Q", "<q"))


class DamagedRecordError(TraceError):
    """A record that no program of the plan writes."""

    def __init__(self, why: str) -> None:
        super().__init__(f"a record is damaged: {why}", "import the complete output, unchanged")


class _Part(NamedTuple):
    """kind: TEXT, BYTES, PARAMETERS or BLOCKS. number: as in the record. status: a size, or -errno.

    content: of a text, without its NUL. is_cut: the text goes on behind it.
    """

    kind: int
    number: int
    address: int
    status: int
    content: bytes
    is_cut: bool


class RecordMemory(Recorded):
    """The memory that one event recorded."""

    def __init__(self, data: bytes, layout: Layout, parts: Sequence[_Part]) -> None:
        self._records = [(data, layout)]
        self._parts: list[_Part] = []
        # Texts of typed parameters, by address: the text, or why it is not known.
        self._texts: dict[int, bytes | str] = {}
        for part in parts:
            if part.kind == BLOCKS:
                if part.number >= len(layout.parts):
                    raise DamagedRecordError("it has a part that its program does not write")
                own = layout.parts[part.number]
                if len(part.content) != own.size - CONTENT:
                    raise DamagedRecordError("a part of it has the wrong size")
                self._records.append((bytes(CONTENT) + part.content, own))
            else:
                self._parts.append(part)
                if part.kind == PARAMETERS:
                    self._texts.update(_texts_of(part))

    def read(self, address: int, size: int) -> bytes:
        data, layout = self._records[0]
        for at, length in layout.blocks:
            start, status = BLOCK_HEADER.unpack_from(data, at)
            if start <= address and address + size <= start + length and status == 0:
                at += BLOCK_HEADER.size + address - start
                return data[at : at + size]
        found = b""
        while len(found) < size:
            piece = self._from(address + len(found))
            found += piece[: size - len(found)]
        return found

    def _from(self, address: int) -> bytes:
        """Return what one block or array has from an address on. Raises: Unavailable."""
        index = bisect_right(self._starts, address) - 1
        for start, piece in (*self._pieces[index : index + 1], *self._pieces):
            if start <= address < start + len(piece):
                return piece[address - start :]
        for start, length, status in self._failed:
            if start <= address < start + length:
                raise _unread(address, _why(status))
        raise _unread(address, "no program recorded it")

    @cached_property
    def _pieces(self) -> list[tuple[int, bytes]]:
        """All that was read, by address."""
        pieces = [
            (start, data[at + BLOCK_HEADER.size :][:length])
            for data, at, length, start, status in self._blocks()
            if status == 0
        ]
        for part in self._parts:
            if part.kind in (BYTES, PARAMETERS) and part.status > 0:
                pieces.append((part.address, part.content[: part.status]))
        return sorted(pieces)

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _ in self._pieces]

    @property
    def _failed(self) -> Iterator[tuple[int, int, int]]:
        """What could not be read: address, size, and status."""
        for _, _, length, start, status in self._blocks():
            if status not in (0, NOT_REACHED):
                yield start, length, status
        for part in self._parts:
            if part.kind in (BYTES, PARAMETERS) and part.status < 0:
                yield part.address, 1, part.status

    def _blocks(self) -> Iterator[tuple[bytes, int, int, int, int]]:
        """Of each block: its record, its offset and size, its address and status."""
        for data, layout in self._records:
            for at, length in layout.blocks:
                yield (data, at, length, *BLOCK_HEADER.unpack_from(data, at))

    def word(self, offset: int) -> int:
        """Return a word of the record itself."""
        return int.from_bytes(self._records[0][0][offset : offset + WORD], "little")

    def bytes_from(self, address: int) -> tuple[bytes, bool]:
        """Return all that was recorded from an address on, and whether there is more of it."""
        found, is_cut = b"", True
        for part in self._parts:
            if part.kind == BYTES and part.address == address + len(found):
                found += part.content
                is_cut = part.status >= 0
        return found, is_cut

    def piece_from(self, address: int) -> tuple[bytes, bool]:
        """Return what blocks have in one piece from an address on; there may be more."""
        found = b""
        with suppress(Unavailable):
            while True:
                found += self._from(address + len(found))
        return found, True

    def string(self, address: int) -> bytes:
        for data, layout in self._records:
            for number, (at, room) in enumerate(layout.texts):
                start, size = BLOCK_HEADER.unpack_from(data, at)
                if size == NOT_REACHED or start != address:
                    continue
                if size < 0:
                    raise _unread(address, _why(size))
                at += BLOCK_HEADER.size
                if size < room:
                    return data[at : at + size - 1]
                return _joined([data[at : at + room - 1]], self._parts_of(number), address)
        known = self._texts.get(address, "no program recorded it")
        if isinstance(known, bytes):
            return known
        raise _unread(address, known)

    def _parts_of(self, number: int) -> Sequence[_Part]:
        return [part for part in self._parts if part.kind == TEXT and part.number == number]


def _texts_of(part: _Part) -> Iterator[tuple[int, bytes | str]]:
    """The texts of an array's parameters, by their addresses."""
    for number in range(max(part.status, 0) // PARAMETER):
        at = number * PARAMETER
        (kind,) = _U32.unpack_from(part.content, at + PARAMETER_TYPE)
        if kind != PARAMETER_IS_TEXT:
            continue
        (address,) = _U64.unpack_from(part.content, at + PARAMETER_VALUE)
        at = PARAMETERS_TEXTS - CONTENT + number * (WORD + PARAMETER_TEXT)
        (size,) = _S64.unpack_from(part.content, at)
        if size <= 0:
            yield address, _why(size)
        elif size >= PARAMETER_TEXT:
            yield address, f"it is longer than {PARAMETER_TEXT - 1} bytes"
        else:
            yield address, part.content[at + WORD :][: size - 1]


def _joined(pieces: list[bytes], parts: Sequence[_Part], address: int) -> bytes:
    """Return the text of several pieces."""
    for part in parts:
        if part.status < 0:
            raise _unread(address, _why(part.status))
        pieces.append(part.content)
        if not part.is_cut:
            return b"".join(pieces)
    raise Unavailable(f"longer than the {sum(map(len, pieces))} bytes of a text that are recorded")


def _why(status: int) -> str:
    if status == LOST:
        return "the kernel's buffer was full"
    name = errno.errorcode.get(-status, str(-status))
    return "the page was not in memory" if name == "EFAULT" else f"the kernel said {name}"


def _unread(address: int, why: str) -> Unavailable:
    return Unavailable(f"cannot read memory at {address:#x}: {why}")


class Hit(NamedTuple):
    """An event as its program recorded it.

    program: its number. tid: as in a trace; own_tid: as the process itself counts.
    nth: among the events of its thread, from 1. t_ns: CLOCK_BOOTTIME. values: registers, or
    arguments of a static probe, None where unknown.
    """

    program: int
    tid: int
    own_tid: int
    nth: int
    t_ns: int
    sp: int
    ip: int
    values: Sequence[int | None]
    memory: RecordMemory


class HitThread:
    """The thread of an event, as the tracer sees it (tracer.Stop).

    stack: the number of its stack. t_ns: since the start of the trace. at_ret: it is about to
    return, at a `ret` instruction.
    """

    def __init__(
        self,
        hit: Hit,
        layout: Layout,
        site: AnySite,
        t_ns: int,
        stack: int | None = None,
        *,
        at_ret: bool = False,
    ) -> None:
        self.memory = hit.memory
        self.tid = hit.tid
        self.stack = hit.tid if stack is None else stack
        self.sp = ABI.sp_after_return(hit.sp) if at_ret else hit.sp
        self.t_ns = t_ns
        self._hit = hit
        self._layout = layout
        self._site = site
        self._at_ret = at_ret

    def argument_registers(self) -> dict[str, int]:
        return {name: self.register(name) for name in ABI.argument_registers}

    def register(self, name: str) -> int:
        try:
            value = self._hit.values[self._layout.values.index(name)]
        except ValueError:
            value = None
        if value is None:
            raise Unavailable(f"{name} is not recorded")
        return value

    def probe_argument(self, index: int) -> int:
        assert isinstance(self._site, StaticProbeSite)
        values = self._hit.values
        value = values[index] if index < len(values) else None
        if value is None:
            raise Unavailable("the static probe has no such argument, or it could not be read")
        return value

    def return_address(self) -> int:
        return int.from_bytes(self.memory.read(self.sp, WORD), "little")

    def result(self) -> int:
        assert ABI.result_register is not None
        return self.register(ABI.result_register)

    def result_is_used(self) -> bool:
        assert ABI.reads_result is not None
        hit = self._hit
        returns_to = hit.ip
        if self._at_ret:
            returns_to = int.from_bytes(self.memory.read(hit.sp, WORD), "little")
        return bool(ABI.reads_result.match(self.memory.read(returns_to, 3)))


@dataclass
class _Unfinished:
    """A record whose parts have not all come yet."""

    data: bytes
    header: tuple[int, ...]
    missing: int
    parts: list[_Part] = field(default_factory=list)


class Hits:
    """Takes records in the ring's order, and hands over whole events.

    own_tids: threads are told by the ids that the process itself has for them.
    event: called for each. lost: called for a gap in the events of a thread, with its tid, how many
    are missing, and the time of the next one.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        event: Callable[[Hit], None],
        lost: Callable[[int, int, int], None],
        *,
        own_tids: bool,
    ) -> None:
        self._own_tids = own_tids
        self._layouts = [program.layout for program in programs]
        self._values = [struct.Struct(f"<{len(layout.values)}Q") for layout in self._layouts]
        self._event = event
        self._lost = lost
        self._unfinished: dict[int, _Unfinished] = {}
        self._nth: dict[int, int] = {}

    def take(self, data: bytes) -> None:
        """Take one record. Raises: DamagedRecordError."""
        if not data or data[0] not in (HIT, TEXT, BYTES, PARAMETERS, BLOCKS):
            raise DamagedRecordError("it is of no known kind")
        if data[0] == HIT:
            self._take_hit(data)
        else:
            self._take_part(data)

    def _take_hit(self, data: bytes) -> None:
        if len(data) < VALUES:
            raise DamagedRecordError("it is too short")
        header = HIT_HEADER.unpack_from(data)
        _, program, tid, _, _, parts, *_ = header
        if program >= len(self._layouts) or len(data) != self._layouts[program].size:
            raise DamagedRecordError("its program writes no such record")
        if parts > _MOST_PARTS or len(self._unfinished) > _MOST_THREADS:
            raise DamagedRecordError("it has more parts or threads than any trace")
        if tid in self._unfinished:
            raise DamagedRecordError("parts of the one before are missing")
        if parts:
            self._unfinished[tid] = _Unfinished(data, header, parts)
        else:
            self._finish(data, header, ())

    def _take_part(self, data: bytes) -> None:
        if len(data) < CONTENT:
            raise DamagedRecordError("it is too short")
        kind, shift, number, tid, _, address, status = PART_HEADER.unpack_from(data)
        unfinished = self._unfinished.get(tid)
        if unfinished is None:
            raise DamagedRecordError("it continues no other")
        size = PARAMETERS_SIZE if kind == PARAMETERS else CONTENT + max(status, 0)
        if (kind != BLOCKS and len(data) != size) or (kind == PARAMETERS and status > _ARRAY):
            raise DamagedRecordError("it has another size than it says")
        content = data[CONTENT:-1] if kind == TEXT and status > 0 else data[CONTENT:]
        is_cut = kind == TEXT and status == 1 << shift
        unfinished.parts.append(_Part(kind, number, address, status, content, is_cut))
        unfinished.missing -= 1
        if not unfinished.missing:
            del self._unfinished[tid]
            self._finish(unfinished.data, unfinished.header, unfinished.parts)

    def _finish(self, data: bytes, header: tuple[int, ...], parts: Sequence[_Part]) -> None:
        _, program, tid, nth, t_ns, _, own_tid, known, sp, ip = header
        layout = self._layouts[program]
        values: Sequence[int | None] = self._values[program].unpack_from(data, VALUES)
        if known != (1 << len(values)) - 1:
            values = [value if known >> index & 1 else None for index, value in enumerate(values)]
        gap = nth - self._nth.pop(tid, 0) - 1
        self._nth[tid] = nth
        if len(self._nth) > _MOST_THREADS:
            # The thread that was silent for the longest time; the kernel forgets such ones, too.
            del self._nth[next(iter(self._nth))]
        shown = own_tid if self._own_tids else tid
        if gap > 0:
            self._lost(shown, gap, t_ns)
        memory = RecordMemory(data, layout, parts)
        self._event(Hit(program, shown, own_tid, nth, t_ns, sp, ip, values, memory))
