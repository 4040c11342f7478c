"""Text of source lines, where the source is on this host and is that of the build."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

MAX_BYTES = 16 << 20

_UPWARD = re.compile(r"(?:\.{1,2}/)+")


def source_name(path: str) -> str:
    """A path of debug info without where the build folder was: ``src/qemu/qemu_driver.c``."""
    return _UPWARD.sub("", path, count=1) if _UPWARD.match(path) else path


class Sources:
    """folders: of libvirt's source, in each of which a file is looked for by its name."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lines = cache(self._read)

    def text(self, file: str, line: int, function: str, declared: int) -> str | None:
        """The line without its indentation and end.

        declared: the line of the function's declaration by debug info. None where there is no
        such file, or it is another version: the function is not declared there.
        """
        lines = self._lines(file)
        if not (0 < declared <= len(lines) and function in lines[declared - 1]):
            return None
        return lines[line - 1].strip() if 0 < line <= len(lines) else None

    def _read(self, file: str) -> list[str]:
        places = [folder / file.lstrip("/") for folder in self._folders]
        if file.startswith("/"):
            places.append(Path(file))
        for place in places:
            try:
                if place.is_file() and os.path.getsize(place) <= MAX_BYTES:
                    return place.read_text(encoding="utf-8", errors="replace").split("\n")
            except OSError:
                continue
        return []
