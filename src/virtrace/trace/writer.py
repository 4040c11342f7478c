"""Write a trace: whole lines, appended and flushed, to a file that is surely ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from virtrace.errors import TraceError
from virtrace.trace.format import Record


class Writer:
    """A new file, readable by its owner only: a trace can hold whatever QMP carried."""

    def __init__(self, path: Path) -> None:
        """TraceError where the file exists or cannot be made; symbolic links are not followed."""
        self.path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise TraceError(
                f"{path} exists already", "name another file for the trace, or remove this one"
            ) from error
        except OSError as error:
            raise TraceError(
                f"cannot write the trace {path}: {error.strerror}",
                "name another file for the trace",
            ) from error

    def write(self, records: Iterable[Record]) -> None:
        """All of the records, or none of them and TraceError where the disk does not take them."""
        encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        data = "".join(f"{encode(record)}\n" for record in records).encode()
        whole = os.lseek(self._file, 0, os.SEEK_CUR)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            # Half a line in the middle would make the rest unreadable.
            os.ftruncate(self._file, whole)
            os.lseek(self._file, whole, os.SEEK_SET)
            raise TraceError(
                f"cannot write the trace {self.path}: {error.strerror}",
                "make room, or name a file on another disk; what was written until then is whole",
            ) from error

    def close(self) -> None:
        os.close(self._file)

    def discard(self) -> None:
        """Nothing was traced: leave no file behind."""
        self.close()
        self.path.unlink()
