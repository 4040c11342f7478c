"""The text of source lines, if the source of the build is on this host."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from virtrace.files import read_regular

MAX_BYTES = 16 << 20

_SOURCE = re.compile(r".+\.[ch]")
_UPWARD = re.compile(r"(?:\.{1,2}/)+")


def source_name(path: str) -> str:
    """A path of debug info, relative to the build's source: ``src/qemu/qemu_driver.c``."""
    return _UPWARD.sub("", path, count=1) if _UPWARD.match(path) else path


class Sources:
    """Source files on this host.

    folders: of the program's source, searched in this order
    files: other files, by the name that debug info gives them
    """

    def __init__(self, folders: Sequence[Path], files: Mapping[str, Path]) -> None:
        self._folders = folders
        self._files = files
        self._lines = cache(self._find)

    def text(self, file: str, line: int, function: str, declared: int) -> str | None:
        """The line without its indentation and end; None if the source is not here.

        A file of another version is not taken: it does not declare the function at that line.

        declared: line of the function's declaration, from debug info
        """
        lines = self._lines(file, function, declared)
        return lines[line - 1].strip() if 0 < line <= len(lines) else None

    def _find(self, file: str, function: str, declared: int) -> list[str]:
        for place in self._places(file):
            try:
                lines = read_regular(place, MAX_BYTES).decode("utf-8", "replace").split("\n")
            except OSError:
                continue
            if 0 < declared <= len(lines) and function in lines[declared - 1]:
                return lines
        return []

    def _places(self, file: str) -> Iterator[Path]:
        # A stranger's symbol pack can name any file.
        if not _SOURCE.fullmatch(file) or ".." in file.split("/"):
            return
        if file in self._files:
            yield self._files[file]
        for folder in self._folders:
            yield folder / file.lstrip("/")
        if file.startswith("/"):
            yield Path(file)
