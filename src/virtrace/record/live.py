"""Shows a trace on the terminal while it is recorded."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point
from virtrace.analysis.waiting import waiting
from virtrace.errors import TraceError, typed
from virtrace.printing import complain, line
from virtrace.record.failures import tell_failed
from virtrace.record.header import needed_but_missing
from virtrace.record.job import Job
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.trace.format import Event, Footer, Header, SwitchedOff
from virtrace.trace.roles import DISK_SIZES
from virtrace.trace.writer import TraceWriter

# Calls that are shown at once, and then each second: more than a person reads. Drawing a call takes
# as much processor time as recording it.
_BURST, _PER_SECOND = 20, 2
# How many calls may wait to be shown; a terminal that falls further behind misses some.
_WAITING = 1000


class TerminalView:
    """Shows a banner, each call's tree when it ends, and a summary.

    A thread of its own writes. Otherwise, a terminal that takes no output (Ctrl-S, a pager that
    nobody scrolls) would hold the engine and, under GDB, the daemon.
    """

    def __init__(self, terminal: int, trace: TraceWriter, job: Job) -> None:
        self.terminal = terminal
        with open(terminal, "w", closefd=False) as stream:
            self._style = style = style_for(stream)
        self._printed = partial(line, controls=style.color, unicode=style.unicode)
        self._builder = CallBuilder()
        self._trace = trace
        self._recipe = job.recipe
        self._command = job.command_line
        self._failures = job.failures
        # Probes that the recipe needs, and that were not found.
        self._missing: Sequence[str] = ()
        self._is_explained = False
        # Calls that had not ended when the trace did.
        self._cut_off: list[Call] = []
        self._not_shown = 0
        # How many calls may be shown now, and when that was computed.
        self._allowed, self._computed_at = float(_BURST), time.monotonic()
        self._failure: OSError | None = None
        self._switched_off: list[SwitchedOff] = []
        self._waiting: queue.SimpleQueue[Callable[[], Iterable[str]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def banner(self, header: Header) -> None:
        # Only now: this is the process that writes, and it holds signals back.
        self._writer = threading.Thread(target=self._write_all, daemon=True)
        self._writer.start()
        self._is_explained = any(probe["role"] == DISK_SIZES for probe in header["probes"])
        self._pid = header["target"]["pid"]
        self._engine_name = header["tool"]["engine"]["name"]
        output = str(self._trace.path)
        self._missing = needed_but_missing(self._recipe, header)
        self._waiting.put(
            lambda: text.banner(
                header, self._style, output=output, command=self._command, missing=self._missing
            )
        )

    def event(self, event: Event) -> None:
        call = self._builder.feed(event)
        if call is not None:
            if call.root.unfinished:
                self._cut_off.append(call)
            if call.failed and self._failures is not None:
                tell_failed(call, self._failures)
            self._show(partial(text.call_tree, call, self._style))
        self._show_apart()

    def switched_off(self, record: SwitchedOff) -> None:
        self._switched_off.append(record)
        self._waiting.put(lambda: text.switched_off([record], self._style))

    def summary(self, footer: Footer) -> None:
        for call in self._builder.finish():
            self._show(partial(text.call_tree, call, self._style))
        nodes = [*self._cut_off, *self._show_apart()]
        found = waiting(nodes, footer.get("t_ns", 0), self._switched_off)
        self._waiting.put(lambda: text.still_waiting(found, self._style))
        if self._not_shown:
            missed = f"{self._not_shown:,} more are not shown, because they came too fast"
            self._waiting.put(lambda: [missed, ""])
        # The last file, where there are several.
        output = str(self._trace.path)
        next_step = f"virtrace explain {typed(output)}" if self._is_explained else None
        tally = self._builder.tally
        if not tally.calls and not tally.apart:
            self._waiting.put(lambda: text.nothing_called(self._style))
            next_step = f"virtrace snapshot -p {self._pid}"
        self._waiting.put(
            lambda: text.summary(
                footer,
                self._style,
                engine_name=self._engine_name,
                tally=tally,
                output=output,
                next_step=next_step,
                missing=self._missing,
            )
        )

    def close(self) -> None:
        """Wait until everything is shown, however long a reader takes: the daemon is free."""
        self._waiting.put(None)
        while self._writer is not None and self._writer.is_alive():
            # In short turns, so that Ctrl-C gets through.
            self._writer.join(0.1)
        # A reader such as head has seen enough.
        if self._failure is not None and self._failure.errno != errno.EPIPE:
            complain(
                TraceError(
                    "this trace was not shown while it was recorded: standard output cannot be "
                    f"written: {self._failure.strerror}",
                    f"virtrace show {typed(self._trace.path)}",
                )
            )

    def _show_apart(self) -> list[Point | Exchange]:
        nodes = self._builder.pop_outside_calls()
        for node in nodes:
            self._show(partial(text.apart, node, self._style))
        return nodes

    def _show(self, lines: Callable[[], Iterable[str]]) -> None:
        now = time.monotonic()
        earned = (now - self._computed_at) * _PER_SECOND
        self._allowed, self._computed_at = min(self._allowed + earned, _BURST), now
        if self._allowed >= 1 and self._waiting.qsize() < _WAITING:
            self._allowed -= 1
            self._waiting.put(lines)
        else:
            self._not_shown += 1

    def _write_all(self) -> None:
        for lines in iter(self._waiting.get, None):
            data = "".join(f"{self._printed(each)}\n" for each in lines()).encode()
            try:
                while data:
                    data = data[os.write(self.terminal, data) :]
            except OSError as error:
                # The terminal is gone, or its reader is; the trace is not.
                self._failure = error
                return
