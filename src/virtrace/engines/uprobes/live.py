"""Backtraces that an event asks for, taken while the daemon runs on, and stacks that it has.

Of a thread that sleeps they come from /proc, of the thread that hit the probe from the copy of its
stack that the program made. Whatever is not proven to belong together is unavailable.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import NamedTuple

from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.hits import DamagedRecordError, Hit, Hits
from virtrace.engines.uprobes.layout import HIT, HIT_HEADER, TID, WORD
from virtrace.engines.uprobes.processes import Processes
from virtrace.engines.uprobes.program import Program
from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import MemoryCopy
from virtrace.image.model import Registers, Thread
from virtrace.image.process import Process, read_status
from virtrace.plan.model import Plan
from virtrace.targets import target_of
from virtrace.trace.format import Json, unavailable

_WORD = struct.Struct("<Q")
_TID = struct.Struct("<I")
_TRAMPOLINE = re.compile(rb"^([0-9a-f]+)-[0-9a-f]+ .*\[uprobes\]$", re.M)
# Return addresses that are kept: far more than a daemon has frames of traced functions.
_MOST_FRAMES = 1 << 16


class Taken(NamedTuple):
    """The backtraces for one event, by the id of the thread, as the process counts.

    tid: of the event, also as the process counts. nth: its number among those of its thread.
    """

    tid: int
    nth: int
    backtraces: Mapping[int, Json]


class LiveBacktraces:
    """Takes the backtraces that a plan's captures ask for, in each process."""

    def __init__(self, processes: Processes, plan: Plan, programs: Sequence[Program]) -> None:
        """Raises: TargetError if a process cannot be read."""
        self._opened = ExitStack()
        # By the number of a program: of its process.
        self._of: dict[int, _OfProcess] = {}
        for process in {processes.main, *processes.others.values()}:
            own = [
                at
                for at, program in enumerate(programs)
                if processes.of(plan.sites[program.site]) is process
            ]
            layouts = [programs[at].layout for at in own]
            if any(layout.backtraces or layout.has_stack for layout in layouts):
                assert isinstance(process, Process)
                live = _OfProcess(process, plan, programs, own)
                self._opened.callback(live.close)
                self._of.update(dict.fromkeys(own, live))

    def close(self) -> None:
        self._opened.close()

    def stack_of(self, hit: Hit) -> Json:
        """Return the frames of the thread that hit the probe, from the copy of its stack."""
        return self._of[hit.program].stack_of(hit)

    def look(self, records: Sequence[memoryview]) -> Iterator[Taken]:
        """Take the backtraces that the events of these records ask for."""
        for live in {*self._of.values()}:
            yield from live.look(records)


class _OfProcess:
    """Those of one process."""

    def __init__(
        self, process: Process, plan: Plan, programs: Sequence[Program], own: Collection[int]
    ) -> None:
        """own: the numbers of its programs. Raises: TargetError if it cannot be read."""
        self._process = process
        self._programs = programs
        self._own = frozenset(own)
        self._wanting = {at for at in own if programs[at].layout.backtraces}
        self._opened = ExitStack()
        # Most recipes want none, and need not wait for these.
        from virtrace.image.live import LiveImage
        from virtrace.image.names import FrameNames
        from virtrace.image.unwind import Unwinder

        self._image = self._opened.enter_context(LiveImage(process))
        self._unwinder = Unwinder(self._image)
        known = {
            module.base + probe.offset: probe.function
            for probe in plan.probes
            if probe.kind == "span"
            and probe.offset is not None
            and (module := process.module(probe.module)) is not None
        }
        target = target_of(process)
        main = process.module(target.module)
        if main is not None:
            functions = target.knowledge.functions(process)
            known |= {main.base + address: name for address, name in functions.items()}
        self._names = FrameNames(process, known)
        # The tables are read now, not when a thread is to be looked at.
        for module in process.modules:
            with suppress(TargetError):
                module.elf.function_around(0)
        self._hits = Hits(programs, self._take, lambda *_: None, own_tids=False)
        self._unfinished: set[int] = set()
        self._taken: list[Taken] = []
        # Of traced functions that have not returned: the kernel puts its own in their place.
        self._return_addresses: dict[int, int] = {}

    def close(self) -> None:
        self._opened.close()

    def stack_of(self, hit: Hit) -> Json:
        """Return the frames of the thread that hit the probe, from the copy of its stack."""
        try:
            return [*self._frames(self._own_thread(hit, *hit.memory.piece_from(hit.sp)))]
        except Unavailable as why:
            return unavailable(str(why))

    def look(self, records: Sequence[memoryview]) -> Iterator[Taken]:
        """Take the backtraces that the events of these records ask for."""
        if not self._wanting:
            return
        for record in records:
            tid = _TID.unpack_from(record, TID)[0]
            if record[0] == HIT:
                program = HIT_HEADER.unpack_from(record)[1]
                if program not in self._own:
                    continue
                self._note_return_address(record)
                if program not in self._wanting:
                    continue
            elif tid not in self._unfinished:
                continue
            self._unfinished.add(tid)
            with suppress(DamagedRecordError):
                self._hits.take(bytes(record))
        taken, self._taken = self._taken, []
        yield from taken

    def _note_return_address(self, record: memoryview) -> None:
        program = HIT_HEADER.unpack_from(record)[1]
        at = self._programs[program].layout.return_address
        if at is not None:
            sp, status = struct.unpack_from("<Qq", record, at)
            if status == 0:
                # The last one comes to the end: those in front are the oldest.
                self._return_addresses.pop(sp, None)
                self._return_addresses[sp] = _WORD.unpack_from(record, at + 2 * WORD)[0]
        while len(self._return_addresses) > _MOST_FRAMES:
            del self._return_addresses[next(iter(self._return_addresses))]

    def _take(self, hit: Hit) -> None:
        self._unfinished.discard(hit.tid)
        found: dict[int, Json] = {}
        layout = self._programs[hit.program].layout
        for at, address_at in layout.backtraces:
            thread, address = hit.memory.word(at), None
            if address_at is not None:
                address, status = hit.memory.word(address_at), hit.memory.word(address_at + WORD)
                if status:
                    continue
            thread &= (1 << 32) - 1
            if thread and thread not in found:
                try:
                    found[thread] = [*self._backtrace(hit, thread, address)]
                except Unavailable as why:
                    found[thread] = unavailable(str(why))
        self._taken.append(Taken(hit.own_tid, hit.nth, found))

    def _backtrace(self, hit: Hit, wanted: int, address: int | None) -> Iterator[Json]:
        """Return the frames of a thread; what ends them before the outermost one comes last.

        address: where the process keeps the thread's id; None if it is not in memory
        """
        if wanted == hit.own_tid:
            thread = self._own_thread(hit, *hit.memory.bytes_from(hit.sp))
        else:
            thread = self._sleeping_thread(wanted)
            if address is not None:
                now = self._image.memory.read(address, 4)
                if int.from_bytes(now, "little") != wanted:
                    raise Unavailable(f"thread {wanted} had gone on before it could be looked at")
        yield from self._frames(thread)

    def _frames(self, thread: Thread) -> Iterator[Json]:
        stack = thread.stack
        restored = replace(stack, data=self._with_return_addresses(stack))
        backtrace = self._unwinder.backtrace(replace(thread, stack=restored))
        if not backtrace.frames or (not backtrace.frames[0].registers.known and backtrace.ended):
            raise Unavailable(backtrace.ended or "no frame is known")
        for number, frame in enumerate(backtrace.frames):
            yield self._names.describe(frame, is_innermost=number == 0)
        if backtrace.ended is not None:
            yield unavailable(backtrace.ended)

    def _own_thread(self, hit: Hit, data: bytes, is_cut: bool) -> Thread:
        """data, is_cut: a copy of its stack, and whether there is more of it."""
        layout = self._programs[hit.program].layout
        known = {
            name: value
            for name, value in zip(layout.values, hit.values)
            if name is not None and value is not None
        }
        known[ABI.program_counter], known[ABI.stack_pointer] = hit.ip, hit.sp
        registers = Registers(known, "the program did not record it")
        stack = MemoryCopy(hit.sp, data, is_cut)
        return Thread(hit.own_tid, None, None, registers, None, None, stack)

    def _sleeping_thread(self, wanted: int) -> Thread:
        """Raises: Unavailable if it does not sleep."""
        for tid in self._tids():
            status = read_status(tid)
            # Linux before 4.1 does not say.
            if status and int(status.get("NSpid", status["Pid"]).split()[-1]) == wanted:
                with suppress(FileNotFoundError, ProcessLookupError):
                    thread = self._image.thread(tid)
                    if not thread.registers.known:
                        raise Unavailable(f"thread {wanted}: {thread.registers.missing}")
                    return thread
        raise Unavailable(f"thread {wanted} is no longer there")

    def _tids(self) -> Sequence[int]:
        try:
            return [int(name) for name in os.listdir(f"/proc/{self._process.pid}/task")]
        except OSError:
            return []

    def _with_return_addresses(self, stack: MemoryCopy) -> bytes:
        """Return a stack with what the kernel's return probes have replaced."""
        with suppress(OSError), open(f"/proc/{self._process.pid}/maps", "rb") as maps:
            found = _TRAMPOLINE.search(maps.read())
            if found:
                return self._restored(stack, _WORD.pack(int(found[1], 16)))
        return stack.data

    def _restored(self, stack: MemoryCopy, trampoline: bytes) -> bytes:
        data = bytearray(stack.data)
        at = data.find(trampoline)
        while at >= 0:
            known = self._return_addresses.get(stack.start + at)
            if known is not None:
                data[at : at + WORD] = _WORD.pack(known)
            at = data.find(trampoline, at + WORD)
        return bytes(data)
