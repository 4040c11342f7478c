"""Read a trace file, a whole one or one that was cut short, or the trace in a bundle."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

from virtrace.errors import IncompleteError, TraceError
from virtrace.files import open_input
from virtrace.trace.format import (
    Event,
    FailureRecord,
    Footer,
    Header,
    HostRecord,
    Record,
    SwitchedOff,
)
from virtrace.trace.json_text import RepeatedTexts
from virtrace.trace.lines import plain_lines, unreadable, way_to_read
from virtrace.trace.parsing import completing, event_of, header_of, parse, parse_with_text
from virtrace.trace.schema import ShapeError, check

EVENT_TYPES = ("enter", "exit", "point", "line", "lost")

# Of files that can be far larger than they look: how many events can be of calls that are open at a
# time.
_MOST_OPEN = 200_000
_OFTEN = 1024


class HostSaid(NamedTuple):
    """What the host said about the disks, and as calls failed."""

    disks: list[HostRecord]
    failures: list[FailureRecord]


NOTHING_SAID = HostSaid([], [])


# Most lines have no such record, and are not parsed for it.
_SAID_BY_HOST = re.compile(rb'"type"\s*:\s*"(?:host|failure)"')


class ReadableTrace(Protocol):
    """A trace, in memory or streamed. When streamed, all but the header is valid after iteration.

    footer: None if the run was cut short.
    problems: what is missing, in words; empty if the trace is complete.
    host: what the host said about the disks.
    failures: what it said as calls failed.
    switched_off: probes that were switched off.
    last_ns: time of the latest event, ns.
    count: number of events.
    length: bytes of the lines that were read for them so far; 0 of a trace in memory.
    most_open: limit of events in open calls, for files that can be far larger than they look; None
    for a plain file.
    """

    def __iter__(self) -> Iterator[Event]: ...
    def said_by_host(self) -> HostSaid:
        """Return `host` and `failures`, also before the events were read."""

    @property
    def header(self) -> Header: ...
    @property
    def footer(self) -> Footer | None: ...
    @property
    def problems(self) -> list[str]: ...
    @property
    def host(self) -> list[HostRecord]: ...
    @property
    def failures(self) -> list[FailureRecord]: ...
    @property
    def switched_off(self) -> list[SwitchedOff]: ...
    @property
    def last_ns(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def most_open(self) -> int | None: ...


@dataclass(frozen=True)
class Trace:
    """A whole trace in memory. See ReadableTrace."""

    header: Header
    events: list[Event] = field(default_factory=list)
    footer: Footer | None = None
    problems: list[str] = field(default_factory=list)
    host: list[HostRecord] = field(default_factory=list)
    switched_off: list[SwitchedOff] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)

    most_open = None
    length = 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def said_by_host(self) -> HostSaid:
        return HostSaid(self.host, self.failures)

    @property
    def last_ns(self) -> int:
        return max((event.t_ns for event in self.events), default=0)

    @property
    def count(self) -> int:
        return len(self.events)


class TraceStream:
    """A trace that is read from its file on each iteration. See ReadableTrace."""

    def __init__(self, path: str | Path, file: BinaryIO | None = None) -> None:
        """Open a trace, or the trace in a bundle.

        path: name in errors.
        file: the file, if it is open already.

        Raises: TraceError if it is not a trace or bundle, or of a newer version.
        """
        self.path = path
        self.footer: Footer | None = None
        self.problems: list[str] = []
        self.host: list[HostRecord] = []
        self.failures: list[FailureRecord] = []
        self.switched_off: list[SwitchedOff] = []
        self.last_ns = 0
        self.count = 0
        self.length = 0
        # Called now and then while events are read, and with True at their end.
        self.told: Callable[[bool], None] = lambda _: None
        self._file = open_input(path) if file is None else file
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_by = way_to_read(self._file, path)
            self.header, self._version = header_of(next(self._lines(), (0, None))[1], path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TraceStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def most_open(self) -> int | None:
        return None if self._read_by is plain_lines else _MOST_OPEN

    @property
    def size(self) -> int:
        """Size of the file, bytes."""
        return self._size

    @property
    def position(self) -> int:
        """Bytes of it that were read in this pass, in blocks."""
        return os.lseek(self._file.fileno(), 0, os.SEEK_CUR)

    def __iter__(self) -> Iterator[Event]:
        """Yield the events.

        A file that was cut short is read up to its last whole line. Unknown types of records are
        skipped. Unknown keys are kept in header and footer, and left out of events.

        Raises: TraceError if the file is damaged inside.
        """
        self.footer = None
        self.problems, self.host, self.failures, self.switched_off = [], [], [], []
        self.last_ns = self.count = self.length = 0
        lines = self._lines()
        next(lines)
        roles = {probe["name"]: probe["role"] for probe in self.header["probes"]}
        with_text = partial(parse_with_text, texts=RepeatedTexts())
        parsed = parse if self._version == 1 else with_text
        complete = completing(self.header, self._version)
        for number, line in lines:
            try:
                record = parsed(line)
                if self.footer is not None:
                    raise ShapeError("there is more after the footer")
                kind = record.get("type")
                if kind in EVENT_TYPES:
                    event = event_of(record, roles)
                    if kind == "point":
                        event = complete(event, record)
                    self.count += 1
                    self.length += len(line)
                    if not self.count % _OFTEN:
                        self.told(False)
                    if event.t_ns > self.last_ns:
                        self.last_ns = event.t_ns
                    yield event
                else:
                    self._take(record)
            except ShapeError as broken:
                # A line without its end is the last one: its writer died over it.
                if line.endswith(b"\n"):
                    unpacked = "" if self.most_open is None else " of it, unpacked"
                    raise TraceError(
                        f"{self.path}:{number}: not a record of a trace: {broken}",
                        "take a fresh copy of the file, or keep the lines before it: "
                        f"head -n {number - 1}{unpacked}",
                    ) from broken
                cut = f"line {number} is cut short: the run ended while it was written"
                self.problems.append(cut)
        self.told(True)
        self.problems += _missing(self.count, self.header, self.footer)

    def said_by_host(self) -> HostSaid:
        found = HostSaid([], [])
        for _, line in self._lines():
            if _SAID_BY_HOST.search(line):
                with suppress(ShapeError):
                    record = parse(line)
                    if record.get("type") == "host":
                        check(record, HostRecord)
                        found.disks.append(cast("HostRecord", record))
                    elif record.get("type") == "failure":
                        check(record, FailureRecord)
                        found.failures.append(cast("FailureRecord", record))
        return found

    def _take(self, record: Record) -> None:
        kind = record.get("type")
        if kind == "footer":
            check(record, Footer)
            self.footer = cast("Footer", record)
        elif kind == "host":
            check(record, HostRecord)
            self.host.append(cast("HostRecord", record))
        elif kind == "failure":
            check(record, FailureRecord)
            self.failures.append(cast("FailureRecord", record))
        elif kind == "switched-off":
            check(record, SwitchedOff)
            self.switched_off.append(cast("SwitchedOff", record))
        elif kind == "header":
            raise ShapeError("a second header: two traces in one file")
        elif not isinstance(kind, str):
            raise ShapeError("it has no type")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield number, from 1, and text of each line that is not blank."""
        try:
            self._file.seek(0)
            for number, line in enumerate(self._read_by(self._file, self.path), 1):
                if not line.isspace():
                    yield number, line
        except OSError as error:
            raise unreadable(self.path, error) from error


def read_trace(path: str | Path) -> Trace:
    """Read a whole trace. Raises: TraceError, as TraceStream does.

    >>> trace = read_trace("tests/data/sample-blockinfo.jsonl")
    >>> len(trace.events), trace.footer["reason"], trace.problems
    (80, 'done', [])
    """
    with TraceStream(path) as stream:
        events = list(stream)
        return Trace(
            stream.header,
            events,
            stream.footer,
            stream.problems,
            stream.host,
            stream.switched_off,
            stream.failures,
        )


def require_whole(trace: ReadableTrace, path: str | Path) -> None:
    """Raise IncompleteError if something is missing from a trace that was read."""
    if trace.problems:
        # What was printed of it comes first, also where both go into one file.
        sys.stdout.flush()
        raise IncompleteError(
            f"{path}: {'; '.join(trace.problems)}",
            "what was read is reliable; record again for the rest",
        )


def _missing(events: int, header: Header, footer: Footer | None) -> list[str]:
    problems = []
    if "part" in header and (cut := header["part"]["open"]):
        listed = ", ".join(map(str, cut))
        problems.append(f"begun in an earlier file and open at the start: calls {listed}")
    if footer is None:
        return [*problems, "no footer: the run was cut short, or is still running"]
    if footer["events"] != events:
        problems.append(f"{events} of the {footer['events']} events are in the file")
    if footer["dropped"]:
        problems.append(f"{footer['dropped']} events were dropped while it was recorded")
    return problems
