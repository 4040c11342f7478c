"""The frames of a stopped thread, by GDB's own unwinder.

If a file does not say how a caller's frame is found, GDB guesses; here, the backtrace ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress

import gdb

from virtrace.binary.pack import Pack
from virtrace.errors import TargetError, Unavailable
from virtrace.image.process import Process, read_status
from virtrace.plan.capture import PendingBacktrace
from virtrace.plan.model import Plan
from virtrace.trace.format import Json, unavailable

MAX_FRAMES = 64
# What `info symbol` says: the name, how far behind it, and the section. Of a number none.
_SYMBOL = re.compile(r"(?P<name>\S+)(?: \+ (?P<offset>\d+))? in section ")


class Backtraces:
    """Backtraces of the threads of a stopped process, from its unwind tables."""

    def __init__(self, process: Process, plan: Plan, packs: Mapping[str, Pack]) -> None:
        """All that needs no stopped process is read here. packs: by name of the module."""
        self._modules = process.modules
        # What no symbol names, by the first address.
        self._names: dict[int, str] = {}
        for module in process.modules:
            # The tables are read now, while the process still runs.
            with suppress(TargetError):
                module.elf.function_around(0)
        offsets = [
            (name, body.entry, function)
            for name, pack in packs.items()
            for function, known in pack.functions.items()
            for body in known.bodies
        ]
        for probe in plan.probes:
            if probe.offset is not None and probe.kind == "span":
                offsets.append((probe.module, probe.offset, probe.function))
        for name, offset, function in offsets:
            loaded = process.module(name)
            if loaded is not None:
                self._names[loaded.base + offset] = function

    def of(self, wanted: PendingBacktrace) -> Json:
        """Return the frames, innermost first; if the walk ends early, the reason comes last.

        All threads must be stopped. Raises Unavailable: nothing is known about the stack.
        """
        if wanted.reread() != wanted.tid:
            raise Unavailable(f"thread {wanted.tid} had gone on before it could be stopped")
        selected = gdb.selected_thread()
        try:
            _thread(wanted.tid).switch()
            return [*self._frames(gdb.newest_frame())]
        except gdb.error as error:
            raise Unavailable(f"GDB cannot tell: {error}") from error
        finally:
            if selected is not None and selected.is_valid():
                selected.switch()

    def _frames(self, frame: gdb.Frame) -> Iterator[Json]:
        # A call can be the last instruction of its function: where it returns to is the next one.
        into = 0
        shown = 0
        while True:
            # The others are no frames of their own: GDB makes them of debug info.
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                if shown == MAX_FRAMES:
                    yield unavailable(f"only the innermost {MAX_FRAMES} frames are recorded")
                    return
                shown += 1
                name, is_known = self._place(frame.pc(), frame.pc() - into)
                yield name
                if not is_known:
                    yield unavailable("there is no unwind table for the code of this frame")
                    return
                into = int(frame.type() != gdb.SIGTRAMP_FRAME)
            try:
                older = frame.older()
            except gdb.error as error:
                yield unavailable(f"GDB cannot unwind this frame: {error}")
                return
            if older is None:
                reason = frame.unwind_stop_reason()
                if reason != gdb.FRAME_UNWIND_OUTERMOST and frame.name() != "main":
                    why = gdb.frame_stop_reason_string(reason)
                    yield unavailable(f"GDB cannot unwind this frame: {why}")
                return
            frame = older

    def _place(self, pc: int, call: int) -> tuple[str, bool]:
        """A frame in words, and whether what called it can be trusted. call: in its function."""
        module = next((one for one in self._modules if one.contains(call)), None)
        if module is None:
            return f"{pc:#x} (in no file)", False
        start = None
        # GDB has no tables of others' files.
        with suppress(TargetError):
            if module.elf.is_trusted:
                start = module.elf.function_around(call - module.base)
        if start is None:
            return f"{module.name}+{pc - module.base:#x}", False
        start += module.base
        symbol = _SYMBOL.match(gdb.execute(f"info symbol {call:#x}", to_string=True))
        begin = call - int(symbol["offset"] or 0) if symbol else 0
        # A symbol without a size names whatever follows it.
        name = symbol["name"] if symbol and begin >= start else self._names.get(start)
        if name is None:
            return f"{module.name}+{pc - module.base:#x}", True
        return f"{name}+{pc - max(begin, start):#x} ({module.name})", True


def _thread(tid: int) -> gdb.InferiorThread:
    """Return the thread by the id in the process's own namespace, which may be a container's."""
    for thread in gdb.selected_inferior().threads():
        status = read_status(thread.ptid[1])
        # Linux before 4.1 does not say.
        if status is not None and status.get("NSpid", status["Pid"]).split()[-1] == str(tid):
            return thread
    raise Unavailable(f"thread {tid} is no longer there")
