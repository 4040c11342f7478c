"""Writes a long recording to several files, each of which is a trace by itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from virtrace.errors import TraceError
from virtrace.trace.format import ROTATED, Footer, Header, Record
from virtrace.trace.writer import TraceWriter, Writer

_ENDING = re.compile(r"(\.jsonl)?(\.gz|\.zst)?$")
# A full file waits for a moment without an open call until it has grown by this factor.
_PATIENCE = 2


def new_writer(path: Path, rotation: tuple[int, int | None] | None) -> TraceWriter:
    """Create a trace.

    rotation: bytes after which a new file begins, and how many files to keep (None: all); None:
        one file

    Raises: TraceError if a file exists or cannot be created
    """
    return RotatingWriter(path, *rotation) if rotation else Writer(path)


def last_file(path: Path, rotation: tuple[int, int | None] | None) -> Path:
    """Return the file that a recording to ``path`` wrote last; arguments as of new_writer()."""
    return parts(path)[-1] if rotation else path


def parts(path: Path) -> list[Path]:
    """Return the existing files of a rotated recording to ``path``, in order."""
    start, end = _around_number(path)
    wanted = re.compile(re.escape(start) + "[0-9]{6,}" + re.escape(end))
    try:
        names = [name for name in os.listdir(path.parent) if wanted.fullmatch(name)]
    except OSError:
        # Who makes a file there says why it cannot.
        return []
    return [path.with_name(name) for name in sorted(names, key=lambda name: (len(name), name))]


class RotatingWriter:
    """A trace that goes on in a new file when one is full: between calls, if that is possible.

    Every file but the one that is written to has its footer, and begins and ends with what makes it
    a trace by itself: the header, what was switched off, the end of calls that are cut.
    """

    rotates = True

    def __init__(self, path: Path, rotate: int, keep: int | None) -> None:
        """Raises: TraceError if a file with any number exists, or the first cannot be created."""
        for taken in parts(path):
            raise TraceError(
                f"{taken} already exists", "name another file for the trace, or remove these"
            )
        self._start, self._end = _around_number(path)
        self._rotate_at, self._keep = rotate, keep
        self._number = 1
        self._writer = Writer(self._numbered(path))
        # The complete files, each with its identity: somebody else may put another in its place.
        self._ended: list[tuple[Path, tuple[int, ...]]] = []
        self._ended_size = 0
        self._is_stuck = False
        # The footer of this file, once the next one has to begin.
        self._due: Footer | None = None
        # Events in this file; events dropped before it began.
        self._events = 0
        self._dropped = 0
        # `seq` in the whole recording of the first event of this file.
        self._first = 0
        # The open spans: the number of the file each began in, and its event without values.
        self._open: dict[int, tuple[int, Record]] = {}
        self._last_ns = 0
        self._switched_off: list[Mapping[str, Any]] = []

    @property
    def path(self) -> Path:
        return self._writer.path

    @property
    def size(self) -> int:
        return self._ended_size + self._writer.size

    @property
    def descriptor(self) -> int:
        return self._writer.descriptor

    def begin(self, header: Header) -> None:
        self._header = header
        self._writer.begin(self._own_header())

    def finish(self, footer: Footer) -> None:
        dropped = footer["dropped"] - self._dropped
        self._writer.finish({**footer, "events": self._events, "dropped": dropped})

    def check_there(self) -> None:
        self._writer.check_there()

    def close(self) -> None:
        self._writer.close()

    def discard(self) -> None:
        self._writer.discard()

    def may_rotate(self, footer: Footer) -> None:
        full = self._rotate_at * (_PATIENCE if self._open else 1)
        if self._events and self._writer.size >= full and not self._is_stuck:
            self._due = self._due or footer

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Raises: TraceError, once, if the next file cannot be created: this one goes on."""
        if self._due is not None:
            footer, self._due = self._due, None
            self._begin_next(footer)
        own, seq = [], self._events
        for record in records:
            if "seq" in record:
                if seq == 0:
                    self._first = record["seq"]
                record = {**record, "seq": seq}
                if "answers" in record:
                    answers = record.pop("answers") - self._first
                    # Otherwise the request is in an earlier file.
                    if answers >= 0:
                        record["answers"] = answers
                seq += 1
            own.append(record)
        self._writer.write(own)
        self._events = seq
        for record in own:
            self._note(record)

    def _note(self, record: Mapping[str, Any]) -> None:
        kind = record["type"]
        if kind == "switched-off":
            self._switched_off.append(record)
            return
        self._last_ns = max(self._last_ns, record["t_ns"])
        if kind == "enter":
            self._open[record["span"]] = self._number, {**record, "values": {}}
        elif kind in ("exit", "lost"):
            self._open.pop(record["span"], None)

    def _begin_next(self, footer: Footer) -> None:
        still_open = dict(self._open)
        self._number += 1
        try:
            following = Writer(self._numbered(self.path))
            try:
                following.write([self._own_header(), *self._switched_off])
                self.write(self._cut())
                self.finish({**footer, "reason": "rotated"})
            except BaseException:
                following.discard()
                raise
        except TraceError:
            self._number -= 1
            self._is_stuck = True
            raise
        self._open = still_open
        self._events, self._dropped = 0, footer["dropped"]
        self._ended.append((self.path, _identity(os.fstat(self.descriptor))))
        self._ended_size = self.size
        self._writer.close()
        self._writer = following
        while self._keep is not None and len(self._ended) >= self._keep:
            _remove(*self._ended.pop(0))

    def _own_header(self) -> Header:
        calls = {record["call"] for _, record in self._open.values()} - {None}
        return {**self._header, "part": {"number": self._number, "open": sorted(calls)}}

    def _cut(self) -> Iterable[Record]:
        """Return the ends of the calls that began in this file and go on in the next one."""
        for number, record in reversed(self._open.values()):
            if number == self._number - 1:
                yield {
                    **record,
                    "type": "lost",
                    "t_ns": self._last_ns,
                    "values": {"why": ROTATED},
                }

    def _numbered(self, path: Path) -> Path:
        return path.with_name(f"{self._start}{self._number:06}{self._end}")


def _around_number(path: Path) -> tuple[str, str]:
    """Split a name where the number goes."""
    ending = _ENDING.search(path.name)
    assert ending is not None
    return f"{path.name[: ending.start()]}.", ending[0]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Identify a file; inode numbers are reused, so the time is part of it."""
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _remove(path: Path, identity: tuple[int, ...]) -> None:
    """Remove a file, unless it was replaced or modified."""
    try:
        if _identity(path.lstat()) == identity:
            path.unlink()
    except OSError:
        # Somebody else removed it, or denies us access.
        return
