"""Read a trace file, a whole one or one that was cut short, or the trace in a bundle."""

from __future__ import annotations

import io
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Union

from virtrace.errors import IncompleteError, TraceError
from virtrace.trace import archive
from virtrace.trace.format import FORMAT, VERSION, Event, Json, Record

EVENT_TYPES = ("enter", "exit", "point", "line", "lost")

# What version 1 says of a value: its JSON type or types, or the shape of an object.
# schema.json says the same for everybody else; a test holds the two together.
_Shape = Union[type, tuple[type, ...], "list[Any]", Mapping[str, Any]]
_ANY = "*"  # every key of an object that has no fixed ones
_TEXT_OR_NULL = (str, type(None))
_INT_OR_NULL = (int, type(None))

_HEADER: Mapping[str, _Shape] = {
    "started": str,
    "clock": {"source": str, "start_ns": int},
    "tool": {"virtrace": str, "gdb": str, "python": str},
    "target": {
        "pid": int,
        "exe": str,
        "libvirt_version": _TEXT_OR_NULL,
        "modules": [{"path": str, "build_id": _TEXT_OR_NULL, "base": str}],
    },
    "host": {"machine": str, "kernel": str, "system": _TEXT_OR_NULL},
    "recipe": dict,
    "probes": [
        {
            "name": str,
            "kind": str,
            "module": _TEXT_OR_NULL,
            "offset": _TEXT_OR_NULL,
            "level": str,
            "why": _TEXT_OR_NULL,
        }
    ],
}
_EVENT: Mapping[str, _Shape] = {
    "seq": int,
    "t_ns": int,
    "tid": int,
    "name": str,
    "span": _INT_OR_NULL,
    "parent": _INT_OR_NULL,
    "call": _INT_OR_NULL,
    "values": dict,
}
_SPAN_EVENT = {**_EVENT, "span": int}
_FOOTER: Mapping[str, _Shape] = {
    "reason": str,
    "events": int,
    "dropped": int,
    "hits": {_ANY: int},
    "detached": bool,
    "stopped_ns": {"total": int, "max": int},
}
_SWITCHED_OFF: Mapping[str, _Shape] = {"t_ns": int, "name": str, "kind": str, "why": str}


_HOST: Mapping[str, _Shape] = {
    "collected": str,
    "domain": str,
    "disk": str,
    "path": _TEXT_OR_NULL,
    "xml": (str, dict),
    "stat": dict,
    "file_system": (str, dict),
    "image_info": dict,
    "lvm": dict,
}

_LONGEST_NUMBER = 40
_LONG_NUMBER = b"0" * (_LONGEST_NUMBER + 1)
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True)
class Trace:
    """What a file holds, in its order.

    footer: None where the run was cut short. problems: what is missing, in words; empty
    where the trace is all that was recorded. host: what the host said of the disks.
    switched_off: probes that met nothing from then on, as they had cost too much.
    """

    header: Record
    events: list[Event] = field(default_factory=list)
    footer: Record | None = None
    problems: list[str] = field(default_factory=list)
    host: list[Record] = field(default_factory=list)
    switched_off: list[Record] = field(default_factory=list)


class _BrokenLine(Exception):
    """Not a record of a version 1 trace; the message says why."""


def read_trace(path: str | Path) -> Trace:
    """TraceError where ``path`` is no trace or bundle, is of a newer version, or is damaged inside.

    A file cut short is no error: it is read up to its last whole line. Types of records
    that this version does not know are left out, unknown keys of known ones are kept in
    header and footer and left out of events.
    """
    with _open(path) as stream:
        return read_lines(stream, path)


def read_bundle(path: str | Path) -> dict[str, bytes]:
    """All files of a bundle, by their names. TraceError where it is none."""
    with _open_file(path) as stream:
        return archive.read(stream, path)


def read_lines(stream: BinaryIO, path: str | Path) -> Trace:
    """The same, of an open file. path: how errors name it."""
    with stream:
        lines = _lines(stream, path)
        _, first = next(lines, (0, None))
        header = _header(first, path)
        events: list[Event] = []
        footer: Record | None = None
        problems: list[str] = []
        host: list[Record] = []
        switched_off: list[Record] = []
        for number, line in lines:
            try:
                record = _parse(line)
                if footer is not None:
                    raise _BrokenLine("there is more after the footer")
                kind = record.get("type")
                if kind in EVENT_TYPES:
                    _check(record, _EVENT if kind in ("point", "line") else _SPAN_EVENT)
                    events.append(Event.from_record(record))
                elif kind == "footer":
                    _check(record, _FOOTER)
                    footer = record
                elif kind == "host":
                    _check(record, _HOST)
                    host.append(record)
                elif kind == "switched-off":
                    _check(record, _SWITCHED_OFF)
                    switched_off.append(record)
                elif kind == "header":
                    raise _BrokenLine("a second header: two traces in one file")
                elif not isinstance(kind, str):
                    raise _BrokenLine("it has no type")
            except _BrokenLine as broken:
                # A line without its end is the last one: its writer died over it.
                if line.endswith(b"\n"):
                    raise TraceError(
                        f"{path}:{number}: not a record of a trace: {broken}",
                        f"take a fresh copy of the file, or keep what stands before: "
                        f"head -n {number - 1}",
                    ) from broken
                problems.append(f"line {number} is cut short: the run ended while it was written")
    problems += _missing(events, footer)
    return Trace(header, events, footer, problems, host, switched_off)


def require_whole(trace: Trace, path: str | Path) -> None:
    """IncompleteError where something is missing from the file; what it has was read."""
    if trace.problems:
        # What was printed of it comes first, also where both go into one file.
        sys.stdout.flush()
        raise IncompleteError(
            f"{path}: {'; '.join(trace.problems)}",
            "rely on what was read, it is whole; record again for the rest",
        )


def schema() -> Record:
    """The JSON Schema (2020-12) of one line of a trace."""
    text = Path(__file__).with_name("schema.json").read_text(encoding="utf-8")
    document: Record = json.loads(text)
    return document


def _missing(events: list[Event], footer: Record | None) -> list[str]:
    if footer is None:
        return ["no footer: the run was cut short, or is still going on"]
    problems = []
    if footer["events"] != len(events):
        problems.append(f"{len(events)} of the {footer['events']} events are in the file")
    if footer["dropped"]:
        problems.append(f"{footer['dropped']} events were dropped while it was recorded")
    return problems


def _open(path: str | Path) -> BinaryIO:
    """The lines of a trace, also of the one in a bundle."""
    stream = _open_file(path)
    try:
        is_bundle = stream.read(len(archive.MAGIC)) == archive.MAGIC
        stream.seek(0)
    except OSError as error:
        stream.close()
        raise _unreadable(path, error) from error
    if not is_bundle:
        return stream
    with stream:
        files = archive.read(stream, path)
    if archive.TRACE not in files:
        raise TraceError(
            f"{path} is a bundle without {archive.TRACE}",
            f"see what else is wrong with it: virtrace bundle verify {shlex.quote(str(path))}",
        )
    return io.BytesIO(files[archive.TRACE])


def _open_file(path: str | Path) -> BinaryIO:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = error.strerror if isinstance(error, OSError) else error
        raise TraceError(
            f"cannot open the trace {path}: {reason}",
            "check the name" if missing else "check that you may read it",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TraceError(
            f"{path} is not a regular file",
            "name the .jsonl file that the trace was written to, or a bundle",
        )
    return os.fdopen(descriptor, "rb")


def _lines(stream: BinaryIO, path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line); blank lines, which an editor may leave, are passed over."""
    try:
        # Whatever is no text at all may be one line of gigabytes: do not read it.
        if stream.read(1) != b"{":
            return
        stream.seek(0)
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: OSError) -> TraceError:
    return TraceError(f"cannot read {path}: {error.strerror}", "check the disk that it is on")


def _parse(line: bytes) -> Record:
    # A number that is longer than any that C has would keep Python busy.
    integer = _bounded if _LONG_NUMBER in line.translate(_DIGITS) else None
    try:
        record = json.loads(line, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise _BrokenLine(str(error)) from error
    if not isinstance(record, dict):
        raise _BrokenLine("it is not a JSON object")
    return record


def _bounded(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _header(line: bytes | None, path: str | Path) -> Record:
    try:
        if line is None:
            raise _BrokenLine("it is empty or is no JSON text")
        record = _parse(line)
        if record.get("type") != "header" or record.get("format") != FORMAT:
            raise _BrokenLine("its first line is not the header of one")
        version = record.get("version")
        if type(version) is not int or version < 1:
            raise _BrokenLine("its header has no version")
    except _BrokenLine as broken:
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
        _check(record, _HEADER)
    except _BrokenLine as broken:
        raise TraceError(
            f"{path}:1: not the header of a trace: {broken}", "take a fresh copy of the file"
        ) from broken
    return record


def _writer(header: Record) -> str:
    tool = header.get("tool")
    version = tool.get("virtrace") if isinstance(tool, dict) else None
    return f"written by virtrace {version}" if version else "its header does not say which"


def _check(value: Json, shape: _Shape, key: str = "") -> None:
    if isinstance(shape, (type, tuple)):
        kinds = shape if isinstance(shape, tuple) else (shape,)
        # Not isinstance: true is no integer in JSON.
        if type(value) not in kinds:
            expected = " or ".join(_JSON_NAMES[kind] for kind in kinds)
            raise _BrokenLine(f"{key!r} is not {expected}")
    elif isinstance(shape, list):
        _check(value, list, key)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{key}[{index}]")
    else:
        _check(value, dict, key)
        for name, inner in _members(value, shape):
            where = f"{key}.{name}" if key else name
            if name not in value:
                raise _BrokenLine(f"{where!r} is missing")
            _check(value[name], inner, where)


def _members(value: Record, shape: Mapping[str, _Shape]) -> Iterator[tuple[str, _Shape]]:
    if _ANY in shape:
        return ((name, shape[_ANY]) for name in value)
    return iter(shape.items())


_JSON_NAMES = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
    dict: "an object",
    list: "an array",
    type(None): "null",
}
