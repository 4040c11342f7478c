"""What the person in front of GDB sees, past GDB's own words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import gdb
from virtrace.analysis.spans import CallBuilder
from virtrace.report import text
from virtrace.report.highlight import style_for
from virtrace.trace.format import Event, Record


@contextlib.contextmanager
def terminal_without_gdb() -> Iterator[TextIO]:
    """The terminal, to us alone: what GDB says of stops and threads goes nowhere meanwhile.

    No setting of GDB 10 to 18 keeps all of it back, so its standard output is turned away.
    """
    gdb.flush()
    terminal = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        with open(terminal, "w", errors="backslashreplace", closefd=False) as stream:
            yield stream
    finally:
        gdb.flush()
        os.dup2(terminal, 1)
        os.close(terminal)


class TerminalView:
    """Banner, each call's tree as it ends, summary. command: what virtrace runs itself."""

    def __init__(self, stream: TextIO, output: Path, command: str | None) -> None:
        self._stream: TextIO | None = stream
        self._style = style_for(stream)
        self._builder = CallBuilder()
        self._output = str(output)
        self._command = command

    def banner(self, header: Record) -> None:
        self._print(text.banner(header, self._style, output=self._output, command=self._command))

    def event(self, event: Event) -> None:
        call = self._builder.feed(event)
        if call is not None:
            self._print(text.call_tree(call, self._style))

    def summary(self, footer: Record) -> None:
        for call in self._builder.finish():
            self._print(text.call_tree(call, self._style))
        self._print(
            text.summary(footer, self._style, tally=self._builder.tally, output=self._output)
        )

    def _print(self, lines: Iterable[str]) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write("".join(f"{line}\n" for line in lines))
            self._stream.flush()
        except OSError:
            # The terminal is gone, or its reader is; the trace is not.
            self._stream = None
