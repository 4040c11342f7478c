"""The process that writes a trace and shows it. Does not need gdb.

JSON, the file and the terminal take as long as GDB takes for its stops, and in GDB they would share
Python's lock with them. What was handed over is written even if GDB dies.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol, Union

from virtrace import detached
from virtrace.engine.output import Output, View
from virtrace.engine.tracer import RawEvent
from virtrace.errors import IncompleteError, TraceError, incomplete
from virtrace.trace.format import Footer, Header, Record, SwitchedOff

# Before each message.
_LENGTH = struct.Struct("<Q")
_F_SETPIPE_SZ = 1031  # <linux/fcntl.h>; in fcntl since Python 3.10
# Bytes in the pipe; the most that Linux grants to any user.
_ROOM = 1 << 20
# How long a thread may be held because the pipe is full: somebody stopped the writing process.
_PATIENCE_SECONDS = 1.0
# Events come in bursts; waking up for each would hold the thread that wrote it.
_GATHER_SECONDS = 0.01
_TURN_SECONDS = 0.1


@dataclass(frozen=True)
class Begin:
    """The trace begins."""

    header: Header


@dataclass(frozen=True)
class MayRotate:
    """A file of the trace may end here, with this footer."""

    footer: Footer


@dataclass(frozen=True)
class End:
    """The trace ends."""

    footer: Footer


# What goes to the writing process; a `switched-off` record goes as it is.
Message = Union[RawEvent, SwitchedOff, Begin, MayRotate, End]


class Terminal(View, Protocol):
    """A view that keeps a descriptor open."""

    terminal: int

    def close(self) -> None: ...


class Recorder:
    """GDB's end of the pipe to the writing process."""

    def __init__(self, process: WritingProcess) -> None:
        """Start the process.

        Raises: OSError if it cannot be started
        """
        self.failure: Exception | None = None
        self.rotates = process.rotates
        self._patience = _PATIENCE_SECONDS
        self._rest = b""
        items, descriptor = os.pipe()
        self._items = open(descriptor, "wb", buffering=0)  # noqa: SIM115
        self._told, tell = os.pipe()
        try:
            fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _ROOM)
            os.set_blocking(descriptor, False)
            kept = (items, tell, *process.descriptors)
            detached.spawn("virtrace-writer", kept, partial(process.run, items, tell))
        except BaseException:
            self.close()
            raise
        finally:
            os.close(items)
            os.close(tell)

    def listen(self, end: Callable[[str], None]) -> None:
        """Call ``end`` with the footer's reason, on another thread, if the trace has to end."""
        self._listener = threading.Thread(target=self._listen, args=(end,), daemon=True)
        self._listener.start()

    def begin(self, header: Header) -> None:
        self._put(Begin(header))

    def take(self, items: Sequence[RawEvent | SwitchedOff]) -> None:
        for item in items:
            self._put(item)

    def rotate(self, footer: Footer) -> None:
        self._put(MayRotate(footer))

    def finish(self, footer: Footer) -> None:
        self._put(End(footer))

    def _put(self, message: Message) -> None:
        """Write the message into the pipe.

        Raises: TraceError if nothing takes it, once the pipe has been full for some time
        """
        # The parts of an event alone take half the time to pickle.
        parts = tuple(vars(message).values()) if isinstance(message, RawEvent) else message
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
                    "the trace is not written: the process that writes it does not continue",
                    "look at the process virtrace-writer; everything written before is complete",
                )
            else:
                select.select([], [self._items], [], _TURN_SECONDS)
        self._rest = b""

    def wait_indefinitely(self) -> None:
        """Wait for a full pipe without a bound: the traced process has been let go."""
        self._patience = math.inf

    def join(self) -> None:
        """Wait until everything is written and shown; ``failure`` says how that went."""
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


class WritingProcess:
    """The work of the writing process; made in GDB, run after the fork."""

    def __init__(self, output: Output, view: Terminal, descriptors: Iterable[int] = ()) -> None:
        """descriptors: what stays open besides those of output and view."""
        self.rotates = output.rotates
        self.descriptors = (output.descriptor, view.terminal, *descriptors)
        self._output = output
        self._view = view
        self._chunks: SimpleQueue[bytes] = SimpleQueue()
        self._is_finished = False

    def run(self, items: int, tell: int) -> None:
        """Write until the footer; without one, until GDB has ended."""
        # It must not take a processor from GDB, which wakes it while a thread is stopped.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._tell = tell
        self._output.listen(lambda reason: self._say({"end": reason}))
        reader = threading.Thread(target=self._read, args=(items,), daemon=True)
        reader.start()
        rest = b""
        while not self._is_finished and (chunk := self._chunks.get()):
            rest += chunk
            taken: list[Message] = []
            at = 0
            while len(rest) >= at + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(rest, at)
                begin = at + _LENGTH.size
                if len(rest) < begin + length:
                    break
                at = begin + length
                message = pickle.loads(rest[begin:at])
                taken.append(RawEvent(*message) if isinstance(message, tuple) else message)
            rest = rest[at:]
            self._take(taken)
        self._view.close()
        self._say({"finished": True})

    def _read(self, items: int) -> None:
        """Empty the pipe, however slow the disk is: a full pipe would hold the traced process."""
        while chunk := os.read(items, _ROOM):
            self._chunks.put(chunk)
            if len(chunk) < _ROOM // 2:
                time.sleep(_GATHER_SECONDS)
        self._chunks.put(b"")

    def _take(self, messages: Iterable[Message]) -> None:
        batch: list[RawEvent | SwitchedOff] = []
        for message in messages:
            if not isinstance(message, (Begin, MayRotate, End)):
                batch.append(message)
                continue
            if batch:
                self._guarded(partial(self._output.take, batch))
                batch = []
            self._guarded(partial(self._handle, message))
        if batch:
            self._guarded(partial(self._output.take, batch))

    def _handle(self, message: Begin | MayRotate | End) -> None:
        if isinstance(message, Begin):
            self._output.begin(message.header)
        elif isinstance(message, MayRotate):
            self._output.rotate(message.footer)
        else:
            self._is_finished = True
            self._output.finish(message.footer)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            shown = incomplete(error)
            self._say(
                {"failure": [shown.what, shown.remedy, traceback.format_exc()], "end": "error"}
            )

    def _say(self, message: Record) -> None:
        # GDB may have ended.
        with suppress(BrokenPipeError):
            os.write(self._tell, json.dumps(message).encode() + b"\n")


def _ended() -> TraceError:
    return TraceError(
        "the process that writes the trace was ended",
        "record again; every complete line of the trace counts",
    )
