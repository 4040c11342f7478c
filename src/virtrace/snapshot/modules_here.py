"""The target's files on this host, to name the place of a crash that only a log has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from virtrace.binary.reader import Binary, Files
from virtrace.errors import TargetError
from virtrace.image.memory import PAGE
from virtrace.snapshot.logs import Mapping
from virtrace.targets.target import Target

_FOLDERS = ("usr/lib", "usr/lib64", "lib64", "usr/lib/*-linux-gnu")
_PROGRAMS = ("usr/sbin", "usr/bin")
# Each is opened.
_MOST_FILES = 200


class Place(NamedTuple):
    """A place in a file. offset: in the file, bytes. function: None where no name is known."""

    offset: int
    function: str | None
    inside: int


class ModulesHere:
    """The files; a process without rights reads them.

    names: of the files.
    """

    def __init__(self, target: Target, root: Path) -> None:
        """Open them. root: the folder that contains the files."""
        found = {file.name: file for file in _files(target, root)}
        self.names = [*found][:_MOST_FILES]
        self._files = Files([(found[name], name) for name in self.names])
        for number in range(min(len(self.names), 1)):
            try:
                self._files.ask(number, "facts")
            except TargetError:
                # The others are as good as before.
                continue

    def place(self, mapping: Mapping, ip: int) -> Place | None:
        """Return where an instruction is; None where the file here is certainly another one.

        A log has no build-id: what is known is that the code is as large as that of the file here.
        """
        if mapping.module not in self.names:
            return None
        binary = Binary(self._files, self.names.index(mapping.module))
        try:
            for segment in binary.segments:
                start = segment.offset // PAGE * PAGE
                end = -(-(segment.offset + segment.size) // PAGE) * PAGE
                offset = ip - mapping.start + start
                is_it = segment.executable and end - start == mapping.size
                if is_it and mapping.offset in (None, offset) and start <= offset < end:
                    address = offset - segment.offset + segment.address
                    return Place(offset, *_function(binary, address))
        except TargetError:
            pass
        return None


def _function(binary: Binary, address: int) -> tuple[str | None, int]:
    for start, end, name in binary.exported_functions():
        if start <= address < end:
            return name, address - start
    return None, 0


def _files(target: Target, root: Path) -> Iterator[Path]:
    """The real files: a log names those, and no links to them."""
    for folder in _FOLDERS:
        for place in root.glob(folder):
            yield from _real(place.glob(f"{target.prefix}*.so*"))
            yield from _real(place.glob(f"{target.prefix}/**/{target.prefix}*.so"))
    for folder in _PROGRAMS:
        yield from _real(root / folder / name for name in target.daemons)


def _real(files: Iterator[Path]) -> Iterator[Path]:
    return (file for file in files if file.is_file() and not file.is_symlink())
