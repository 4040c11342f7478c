"""Read a trace file, a whole one or one that was cut short, or the trace in a bundle."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

from virtrace.errors import IncompleteError, TraceError, typed
from virtrace.files import open_input
from virtrace.trace import bundle_reader
from virtrace.trace.compression import GZIP, ZSTD, Inflated
from virtrace.trace.format import (
    FORMAT,
    MAX_DEPTH,
    VERSION,
    Event,
    EventRecord,
    Footer,
    Header,
    HostRecord,
    Json,
    Record,
    SwitchedOff,
    is_deeper,
    unavailable,
)
from virtrace.trace.json_text import (
    BLANK,
    JSON_KEY,
    LONG_NUMBER,
    OUTLINE,
    bounded_integer,
    parsed,
    parts_of_line,
    texts_of,
)
from virtrace.trace.schema import ShapeError, check
from virtrace.trace.upgrade import HeaderOfVersion1, UpgradedEvents, upgraded_header

EVENT_TYPES = ("enter", "exit", "point", "line", "lost")

# The longest line: libvirt takes replies of QEMU up to 10 MiB, and version 1 has a reply as text
# and as JSON. A long one has to be looked at for how much it holds. Of files that can be far larger
# than they are: how many events can be of calls that are open at a time.
_LONGEST_LINE = 24 << 20
_LONG_LINE = 1 << 20
_MOST_VALUES = 500_000
_MOST_OPEN = 200_000
_BUFFER = 1 << 16
_OFTEN = 1024
_REWRITTEN = unavailable("another program wrote the line anew, and may have changed its text")
_TOO_DEEP = f"it has more than {MAX_DEPTH} levels of objects and arrays"


class ReadableTrace(Protocol):
    """A trace, in memory or streamed. When streamed, all but the header is valid after iteration.

    footer: None if the run was cut short.
    problems: what is missing, in words; empty if the trace is complete.
    host: what the host said about the disks.
    switched_off: probes that were switched off.
    last_ns: time of the latest event, ns.
    count: number of events.
    most_open: limit of events in open calls, for files that can be far larger than they look; None
    for a plain file.
    """

    def __iter__(self) -> Iterator[Event]: ...
    def host_records(self) -> list[HostRecord]:
        """Return `host`, also before the events were read."""

    @property
    def header(self) -> Header: ...
    @property
    def footer(self) -> Footer | None: ...
    @property
    def problems(self) -> list[str]: ...
    @property
    def host(self) -> list[HostRecord]: ...
    @property
    def switched_off(self) -> list[SwitchedOff]: ...
    @property
    def last_ns(self) -> int: ...
    @property
    def count(self) -> int: ...
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

    most_open = None

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def host_records(self) -> list[HostRecord]:
        return self.host

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
        self.switched_off: list[SwitchedOff] = []
        self.last_ns = 0
        self.count = 0
        # Bytes of the lines so far, unpacked.
        self.length = 0
        # Called now and then while events are read, and with True at their end.
        self.told: Callable[[bool], None] = lambda _: None
        self._file = open_input(path) if file is None else file
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._read_by = _way_to_read(self._file, path)
            self.header, self._version = _header(next(self._lines(), (0, None))[1], path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TraceStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def most_open(self) -> int | None:
        return None if self._read_by is _plain_lines else _MOST_OPEN

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
        self.problems, self.host, self.switched_off = [], [], []
        self.last_ns = self.count = self.length = 0
        lines = self._lines()
        next(lines)
        roles = {probe["name"]: probe["role"] for probe in self.header["probes"]}
        parse = _parse if self._version == 1 else _parse_with_text
        complete = _completing(self.header, self._version)
        for number, line in lines:
            try:
                record = parse(line)
                if self.footer is not None:
                    raise ShapeError("there is more after the footer")
                kind = record.get("type")
                if kind in EVENT_TYPES:
                    event = _event(record, roles)
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

    def host_records(self) -> list[HostRecord]:
        found = []
        for _, line in self._lines():
            if b'"host"' in line:
                with suppress(ShapeError):
                    record = _parse(line)
                    if record.get("type") == "host":
                        check(record, HostRecord)
                        found.append(cast("HostRecord", record))
        return found

    def _take(self, record: Record) -> None:
        kind = record.get("type")
        if kind == "footer":
            check(record, Footer)
            self.footer = cast("Footer", record)
        elif kind == "host":
            check(record, HostRecord)
            self.host.append(cast("HostRecord", record))
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
            raise _unreadable(self.path, error) from error


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


def _way_to_read(file: BinaryIO, path: str | Path) -> _WayToRead:
    """Choose a reader by the content of a file, whatever its name."""
    try:
        beginning = file.read(len(ZSTD))
        file.seek(0)
    except OSError as error:
        raise _unreadable(path, error) from error
    if beginning == ZSTD:
        return _zstd_lines
    if not beginning.startswith(GZIP):
        return _plain_lines
    return _bundled_lines if bundle_reader.is_bundle(file, path) else _gzip_lines


def _plain_lines(file: BinaryIO, path: str | Path) -> Iterable[bytes]:
    # Whatever is no text at all may be one line of gigabytes: do not read it.
    first = file.read(1)
    file.seek(0)
    return _bounded_lines(file, path) if first == b"{" else ()


def _gzip_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    return _bounded_lines(BufferedReader(Inflated(file, GZIP, path), _BUFFER), path)


def _zstd_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    return _bounded_lines(BufferedReader(Inflated(file, ZSTD, path), _BUFFER), path)


def _bundled_lines(file: BinaryIO, path: str | Path) -> Iterator[bytes]:
    found = False
    for name, member in bundle_reader.BundleReader(file, path).members():
        if name == bundle_reader.TRACE:
            found = True
            yield from _bounded_lines(BufferedReader(member, _BUFFER), path)
    if not found:
        raise TraceError(
            f"{path} is a bundle without {bundle_reader.TRACE}",
            f"see what else is wrong with it: virtrace bundle verify {typed(path)}",
        )


_WayToRead = Callable[[BinaryIO, "str | Path"], Iterable[bytes]]


def _bounded_lines(stream: BinaryIO | BufferedReader, path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a stranger's file. Raises: TraceError if one is too large."""
    while line := stream.readline(_LONGEST_LINE):
        if len(line) > _LONG_LINE:
            too_much = None
            if len(line) == _LONGEST_LINE:
                too_much = f"{_LONGEST_LINE >> 20} MiB"
            elif sum(map(line.count, (b",", b"[", b"{"))) > _MOST_VALUES:
                too_much = f"{_MOST_VALUES:,} values"
            if too_much:
                raise TraceError(
                    f"{path} has a line of more than {too_much}, which no trace has",
                    "ask for a fresh copy of the trace",
                )
        yield line


def _unreadable(path: str | Path, error: OSError) -> TraceError:
    return TraceError(f"cannot read {path}: {error.strerror}", "check the disk that it is on")


def _parse(line: bytes) -> Record:
    # A number that is longer than any that C has would keep Python busy.
    outline = line.translate(OUTLINE)
    decode = _decode_bounded if LONG_NUMBER in outline else _decode
    try:
        # As json.loads does, which looks at each line for its encoding and for blanks first.
        text = line.strip(_BLANK).decode("utf-8", "surrogatepass")
        record, end = decode(text)
    except ValueError as error:
        raise ShapeError(str(error)) from error
    except RecursionError as error:
        raise ShapeError(_TOO_DEEP) from error
    if end != len(text):
        raise ShapeError("there is more after the JSON value")
    if not isinstance(record, dict):
        raise ShapeError("it is not a JSON object")
    # Most lines are too short for it, and are not counted through.
    is_suspect = len(line) > 2 * MAX_DEPTH and outline.count(b"{") > MAX_DEPTH
    if is_suspect and is_deeper(record, MAX_DEPTH):
        raise ShapeError(_TOO_DEEP)
    return record


class _JsonText(NamedTuple):
    """A text that its line has as it is, and what it says."""

    text: str
    document: Json


def _parse_with_text(line: bytes) -> Record:
    """Parse a line of version 2. `json` in it is a _JsonText, unless the line was written anew."""
    # Most lines have none, and are not taken apart.
    parts = parts_of_line(line) if JSON_KEY in line else None
    if parts is not None:
        try:
            record, text = _parse(parts[0]), parts[1].decode("utf-8", "surrogatepass")
            document = parsed(text)
            if document is not None:
                record["json"] = _JsonText(text, document)
                return record
        except ValueError:
            # `json` is a key of something else, as in a recipe.
            pass
    return _parse(line)


def _event(record: Record, roles: Mapping[str, str | None]) -> Event:
    try:
        event = Event.from_record(record, roles)
    except (KeyError, TypeError):
        # Says what is missing or wrong.
        check(record, EventRecord)
        raise
    kind, seq, t_ns, tid, name, span, parent, call, values, answers, _, _ = event
    # Compared here: check() would take as long as to read the line.
    if not (
        type(seq) is type(t_ns) is type(tid) is int
        and type(name) is str
        and type(values) is dict
        and (type(span) is int or (span is None and kind in ("point", "line")))
        and (parent is None or type(parent) is int)
        and (call is None or type(call) is int)
        and (answers is None or type(answers) is int)
    ):
        check(record, EventRecord)
        raise ShapeError("'span' is not an integer")
    return event


def _completing(header: Header, version: int) -> Callable[[Event, Record], Event]:
    """Return what adds to each point of a trace what is not in the values of its record."""
    if version == 1:
        upgraded = UpgradedEvents().upgraded
        return lambda event, _: upgraded(event)
    texts = texts_of(header["recipe"])

    def completed(event: Event, record: Record) -> Event:
        name = texts.get(event.name)
        if name is None:
            return event
        if "json" in record:
            text, document = _text_and_document(record)
        else:
            text = event.values.get(name)
            document = parsed(text)
        if document is None:
            return event
        return event.with_json({**event.values, name: text, "json": document}, event.answers)

    return completed


def _text_and_document(record: Record) -> tuple[Json, Json]:
    """Return the text of a point that its record has without quotes, and what it says."""
    found, end = record["json"], record.get("json_end", "")
    text, document = found if isinstance(found, _JsonText) else (_REWRITTEN, found)
    if type(document) is not dict:
        raise ShapeError("'json' is not an object")
    if type(end) is not str or end.strip(BLANK):
        raise ShapeError("'json_end' is not blank")
    return text + end if isinstance(text, str) else text, document


_BLANK = BLANK.encode()
_decode = json.JSONDecoder().raw_decode
_decode_bounded = json.JSONDecoder(parse_int=bounded_integer).raw_decode


def _header(line: bytes | None, path: str | Path) -> tuple[Header, int]:
    """Return the header in the newest version, and the version that the file has."""
    try:
        if line is None:
            raise ShapeError("it is empty or not JSON")
        record = _parse(line)
        if record.get("type") != "header" or record.get("format") != FORMAT:
            raise ShapeError("its first line is not the header of one")
        version = record.get("version")
        if type(version) is not int or version < 1:
            raise ShapeError("its header has no version")
    except ShapeError as broken:
        raise TraceError(
            f"{path} is not a virtrace trace, or was cut short in its first line: {broken}",
            "name the .jsonl file that the trace was written to",
        ) from broken
    if version > VERSION:
        raise TraceError(
            f"{path} is a trace of format version {version}; "
            f"this virtrace understands version {VERSION}",
            f"use the virtrace that wrote it, or a newer one ({_writer(record)})",
        )
    try:
        return read_header(record), version
    except ShapeError as broken:
        raise TraceError(
            f"{path}:1: not the header of a trace: {broken}", "take a fresh copy of the file"
        ) from broken


def read_header(record: Record) -> Header:
    """Check the header of a trace, which may be a stranger's, and return it in the newest version.

    Raises: ShapeError, which says what is wrong with it.
    """
    if is_deeper(record, MAX_DEPTH):
        raise ShapeError(_TOO_DEEP)
    if record.get("version") == 1:
        check(record, HeaderOfVersion1)
        return upgraded_header(cast("HeaderOfVersion1", record))
    check(record, Header)
    return cast("Header", record)


def _writer(header: Record) -> str:
    tool = header.get("tool")
    version = tool.get("virtrace") if isinstance(tool, dict) else None
    return f"written by virtrace {version}" if version else "its header does not say which"
