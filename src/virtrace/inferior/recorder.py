"""The process that writes a trace, and shows it. Does not need gdb.

JSON, the file and the terminal take as long as GDB takes for its stops: in GDB they would share
Python's lock with these. And what was handed over is written, whatever becomes of GDB.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import pickle
import select
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from virtrace.binary.source import Sources
from virtrace.engine.answers import Answers
from virtrace.engine.tracer import RawEvent
from virtrace.errors import IncompleteError, TraceError, VirtraceError
from virtrace.guard import apart
from virtrace.recipe.selection import Limits
from virtrace.trace.format import Event, Record
from virtrace.trace.rotation import RotatingWriter
from virtrace.trace.writer import Writer

# Before each item.
_LENGTH = struct.Struct("<Q")
_F_SETPIPE_SZ = 1031  # <linux/fcntl.h>; in fcntl since Python 3.10
# Of the pipe; the most that Linux gives to anybody.
_ROOM = 1 << 20
# How long a thread may be kept standing because the pipe is full: somebody stopped the recorder.
_PATIENCE_SECONDS = 1.0
# Events come in bursts, and to be woken by each would keep the thread that writes it standing.
_GATHER_SECONDS = 0.01
_TURN_SECONDS = 0.1


class View(Protocol):
    """What the person at the terminal sees; must not raise."""

    terminal: int

    def banner(self, header: Record) -> None: ...
    def event(self, event: Event) -> None: ...
    def switched_off(self, record: Record) -> None: ...
    def summary(self, footer: Record) -> None: ...
    def close(self) -> None: ...


class Recorder:
    """In GDB: hands over what was met, in its order."""

    def __init__(self, recording: Recording) -> None:
        """Begin the process. OSError where there can be none."""
        self.failure: Exception | None = None
        # Whether it wants a footer, with `rotated` as its reason, wherever a file may end.
        self.rotates = recording.rotates
        self._patience = _PATIENCE_SECONDS
        self._rest = b""
        items, descriptor = os.pipe()
        self._items = open(descriptor, "wb", buffering=0)  # noqa: SIM115
        self._told, tell = os.pipe()
        try:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _ROOM)
            os.set_blocking(descriptor, False)
            kept = (items, tell, *recording.descriptors())
            apart.begin("virtrace-writer", kept, partial(recording.run, items, tell))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(items)
            os.close(tell)

    def listen(self, end: Callable[[str], None]) -> None:
        """end: called with the footer's reason, on a thread of its own, where it has to end."""
        self._listener = threading.Thread(target=self._listen, args=(end,), daemon=True)
        self._listener.start()

    def put(self, item: RawEvent | Record) -> None:
        """An event; or a header, a footer, or what else stands between the events.

        TraceError where nothing takes it: not before the pipe was full for some time.
        """
        # Of an event its parts, which takes half the time.
        parts = item if isinstance(item, dict) else tuple(vars(item).values())
        data = pickle.dumps(parts, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(self._rest + _LENGTH.pack(len(data)) + data)
        until = time.monotonic() + self._patience
        while rest:
            try:
                written = self._items.write(rest)
            except BrokenPipeError as error:
                raise _ended() from error
            if written is not None:
                rest = rest[written:]
            elif time.monotonic() > until:
                self._patience = 0.0
                self._rest = bytes(rest)
                raise TraceError(
                    "the trace is not written: its process does not go on",
                    "look at the process virtrace-writer; what was written until then is whole",
                )
            else:
                select.select([], [self._items], [], _TURN_SECONDS)
        self._rest = b""

    def be_patient(self) -> None:
        """The traced process has been let go."""
        self._patience = math.inf

    def finish(self) -> None:
        """Until all is written, and shown. ``failure`` says then whether it went well."""
        self._items.close()
        while self._listener.is_alive():
            # In short turns, so that Ctrl-C gets through.
            self._listener.join(_TURN_SECONDS)

    def close(self) -> None:
        self._items.close()
        os.close(self._told)

    def _listen(self, end: Callable[[str], None]) -> None:
        is_finished = False
        with open(self._told, "rb", closefd=False) as told:
            for line in told:
                message = json.loads(line)
                if "failure" in message:
                    what, remedy, where = message["failure"]
                    self.failure = self.failure or IncompleteError(what, remedy)
                    self.failure.__cause__ = Exception(where)
                is_finished = is_finished or "finished" in message
                if "end" in message:
                    end(message["end"])
        if not is_finished:
            self.failure = self.failure or _ended()
            end("error")


class Recording:
    """In the process of its own.

    declared: of the functions whose lines are traced, by their span: their name, and the line of
    the declaration.
    """

    def __init__(
        self,
        answers: Answers,
        sources: Sources,
        declared: Mapping[str, tuple[str, int]],
        limits: Limits,
        writer: Writer,
        view: View,
    ) -> None:
        self._answers = answers
        self._sources = sources
        self._declared = declared
        self._limits = limits
        self._writer = writer
        self._view = view
        self._chunks: SimpleQueue[bytes] = SimpleQueue()
        self._events = 0
        self._dropped = 0
        self._is_finished = False

    @property
    def rotates(self) -> bool:
        return isinstance(self._writer, RotatingWriter)

    def descriptors(self) -> tuple[int, ...]:
        return self._writer.descriptor, self._view.terminal

    def run(self, items: int, tell: int) -> None:
        """Until the footer; without one, until GDB has ended."""
        # It must not take a processor from GDB, which wakes it while a thread stands still.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._tell = tell
        reader = threading.Thread(target=self._read, args=(items,), daemon=True)
        reader.start()
        rest = b""
        while not self._is_finished and (chunk := self._chunks.get()):
            rest += chunk
            taken: list[RawEvent | Record] = []
            at = 0
            while len(rest) >= at + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(rest, at)
                begin = at + _LENGTH.size
                if len(rest) < begin + length:
                    break
                at = begin + length
                item = pickle.loads(rest[begin:at])
                taken.append(item if isinstance(item, dict) else RawEvent(*item))
            rest = rest[at:]
            self._take(taken)
        self._view.close()
        self._say({"finished": True})

    def _read(self, items: int) -> None:
        """However slow a disk is: a full pipe would keep the traced process standing."""
        while chunk := os.read(items, _ROOM):
            self._chunks.put(chunk)
            if len(chunk) < _ROOM // 2:
                time.sleep(_GATHER_SECONDS)
        self._chunks.put(b"")

    def _take(self, items: Iterable[RawEvent | Record]) -> None:
        batch: list[RawEvent | Record] = []
        for item in items:
            if isinstance(item, RawEvent) or item["type"] == "switched-off":
                batch.append(item)
                continue
            if batch:
                self._guarded(partial(self._drain, batch))
                batch = []
            own = self._begin if item["type"] == "header" else self._end_file
            self._guarded(partial(own, item))
        if batch:
            self._guarded(partial(self._drain, batch))

    def _begin(self, header: Record) -> None:
        self._view.banner(header)
        self._writer.begin(header)

    def _drain(self, items: Sequence[RawEvent | Record]) -> None:
        events = sum(isinstance(item, RawEvent) for item in items)
        try:
            placed = [
                item
                for item in items
                if not isinstance(item, RawEvent) or self._answers.place(item)
            ]
            events = sum(isinstance(item, RawEvent) for item in placed)
            written = self._write(placed)
        except TraceError:
            # As much as there is room for.
            for item in placed:
                try:
                    self._write([item])
                    events -= isinstance(item, RawEvent)
                except TraceError:
                    continue
            self._dropped += events
            raise
        except Exception:
            self._dropped += events
            raise
        if self._events >= self._limits.events or self._writer.size >= self._limits.bytes:
            self._say({"end": "limit"})
        for one in written:
            if isinstance(one, Event):
                self._view.event(one)
            else:
                self._view.switched_off(one)

    def _write(self, items: Sequence[RawEvent | Record]) -> list[Event | Record]:
        """All of them, or TraceError and none."""
        written: list[Event | Record] = []
        seq = self._events
        for item in items:
            if isinstance(item, RawEvent):
                self._add_source(item)
                written.append(Event(seq=seq, **vars(item)))
                seq += 1
            else:
                written.append(item)
        self._writer.write(one.to_record() if isinstance(one, Event) else one for one in written)
        self._events = seq
        return written

    def _add_source(self, event: RawEvent) -> None:
        if event.type == "line":
            file, line = event.values["file"], event.values["line"]
            text = self._sources.text(file, line, *self._declared[event.name])
            if text is not None:
                event.values["text"] = text

    def _end_file(self, footer: Record) -> None:
        footer |= {"events": self._events, "dropped": self._dropped}
        if footer["reason"] != "rotated":
            self._finish(footer)
        elif self._writer.is_full:
            self._writer.rotate(footer)

    def _finish(self, footer: Record) -> None:
        self._is_finished = True
        try:
            self._writer.finish(footer)
            self._writer.check_there()
        finally:
            self._view.summary(footer)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            told = incomplete(error)
            self._say({"failure": [told.what, told.remedy, traceback.format_exc()], "end": "error"})

    def _say(self, message: Record) -> None:
        # GDB may have ended.
        with suppress(BrokenPipeError):
            os.write(self._tell, json.dumps(message).encode() + b"\n")


def incomplete(failure: Exception) -> IncompleteError:
    """What ended a trace, for the person who reads it."""
    if isinstance(failure, VirtraceError):
        return IncompleteError(failure.what, failure.remedy)
    return IncompleteError(
        f"an error of its own ended the trace: {type(failure).__name__}: {failure}",
        "report it, with what VIRTRACE_DEBUG=1 prints; what was traced until then is whole",
    )


def _ended() -> TraceError:
    return TraceError(
        "the process that writes the trace was ended",
        "record again; every whole line of the trace counts",
    )
