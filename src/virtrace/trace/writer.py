"""Writes a trace: complete lines, appended to a file that only its owner can read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from virtrace.errors import TraceError
from virtrace.files import create_private, open_own
from virtrace.trace.compression import Packer, is_packed, last_part
from virtrace.trace.format import Footer, Header
from virtrace.trace.json_text import to_line

_LONGEST_FOOTER = 1 << 20
_FOOTER = b'{"type":"footer"'


def default_path(recipe: str, pid: int) -> Path:
    """Return a new name in the current folder, for a trace that the user did not name."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return Path(f"virtrace-{recipe}-{pid}-{now}.jsonl")


class TraceWriter(Protocol):
    """A trace that is being written, to one file or to several.

    path: the file that is written to now
    size: bytes written so far, to all files
    descriptor: the open file
    rotates: whether it may go on in a new file

    Raises: TraceError from each method if the disk does not take the records
    """

    rotates: bool

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def descriptor(self) -> int: ...

    def begin(self, header: Header) -> None: ...

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write all of the records, or none of them."""

    def may_rotate(self, footer: Footer) -> None:
        """Go on in a new file if this one is full.

        footer: the last record of this file; written once there are more events
        """

    def finish(self, footer: Footer) -> None: ...
    def check_there(self) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


class Writer:
    """A trace in one new file, readable by its owner only: a trace can hold anything that QMP did.

    The file is compressed if its name ends in `.gz` or `.zst`. Everything written so far can be
    read, whatever happens to the writer.
    """

    rotates = False

    def __init__(self, path: Path) -> None:
        """Raises: TraceError if the file exists or cannot be created; follows no symbolic links."""
        self.path = path
        self._packer = Packer(path.name) if is_packed(path.name) else None
        self._file = create_private(path, "the trace")
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    @property
    def descriptor(self) -> int:
        return self._file

    def may_rotate(self, footer: Footer) -> None:
        """Do nothing: there is one file."""

    def begin(self, header: Header) -> None:
        """Write the first record."""
        self.write([header])

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write all of the records, or none of them."""
        self._write(_encoded(records))

    def finish(self, footer: Footer) -> None:
        """Write the last record, so that others can be inserted before it."""
        self._write(b"", last=True)
        self._write(_encoded([footer]), last=True)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        try:
            if self._packer is not None:
                data = self._packer.end(data) if last else self._packer.pack(data)
            while data:
                data = data[os.write(self._file, data) :]
            self._size = os.lseek(self._file, 0, os.SEEK_CUR)
        except OSError as error:
            # An incomplete line would make the rest unreadable.
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            if self._packer is not None:
                self._packer.undo()
            raise TraceError(
                f"cannot write the trace {self.path}: {error.strerror}",
                "free some space, or name a file on another disk; everything written before is "
                "complete",
            ) from error

    def check_there(self) -> None:
        """Raises: TraceError if somebody removed the file."""
        if os.fstat(self._file).st_nlink == 0:
            raise TraceError(
                f"the trace {self.path} was removed while it was being written",
                "record again, to a folder that is not removed",
            )

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Remove the file: nothing was traced."""
        self.close()
        self.path.unlink()


def insert_before_footer(
    path: Path, made: Callable[[BinaryIO], Iterable[Mapping[str, Any]]]
) -> None:
    """Add records other than events to a trace that has ended and that nobody writes to.

    made: makes the records; is given the trace, which is opened once

    Raises: TraceError if the file is not ours, has no footer, or the disk is full; the trace is
        unchanged then
    """
    try:
        with open_own(path, "the trace") as file:
            with open(file.fileno(), "rb", closefd=False) as reader:
                records = made(reader)
            file.seek(0)
            packer = Packer(path.name) if is_packed(path.name) else None
            start, footer = _last_part(path, file)
            if not footer.startswith(_FOOTER):
                raise TraceError(
                    f"the trace {path} has no footer", "nothing can be added to it; record again"
                )
            data = _encoded(records)
            if packer is not None:
                data, footer = packer.end(data), packer.end(footer)
            data += footer
            try:
                file.seek(start)
                while data:
                    data = data[file.write(data) or 0 :]
            except OSError:
                file.truncate(start)
                file.seek(start)
                file.write(footer)
                raise
    except OSError as error:
        raise TraceError(
            f"cannot add to the trace {path}: {error.strerror}",
            "free some space; the trace is complete",
        ) from error


def read_footer(path: Path) -> Footer | None:
    """Return the footer of a trace of ours; None if it has none.

    Raises: TraceError if the file is not ours, or cannot be read
    """
    try:
        with open_own(path, "the trace") as file:
            _, line = _last_part(path, file)
    except OSError as error:
        raise TraceError(
            f"the trace {path} cannot be read: {error.strerror}", "check the disk"
        ) from error
    if not line.startswith(_FOOTER):
        return None
    footer: Footer = json.loads(line)
    return footer


def _last_part(path: Path, file: FileIO) -> tuple[int, bytes]:
    """Return the offset of the footer, if it has one, and its line."""
    return last_part(file) if is_packed(path.name) else _last_line(file)


def _last_line(file: FileIO) -> tuple[int, bytes]:
    """Return the offset of the last line, and the line."""
    size = file.seek(0, os.SEEK_END)
    begin = file.seek(max(0, size - _LONGEST_FOOTER))
    tail = file.read()
    start = tail.rfind(b"\n", 0, -1) + 1
    return begin + start, tail[start:]


def _encoded(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(map(to_line, records))
