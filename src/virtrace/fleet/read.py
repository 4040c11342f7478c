"""Read many files, which strangers may have made, in children without rights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from virtrace.analysis.explain.registry import load_all_explainers
from virtrace.confined import Answer, Bounds, Child, Json, Tell
from virtrace.errors import UsageError, VirtraceError
from virtrace.files import open_input
from virtrace.fleet.facts import Facts, facts_of
from virtrace.trace.schema import ShapeError, check

# Files that a child is given at a time: to start one takes as long as to read some.
_AT_ONCE = 50
_SECONDS = 30
_MEMORY = 512 << 20
_MOST_FILES = 100_000


@dataclass(frozen=True)
class Read:
    """A file that was read. facts: None if that failed. why: it failed."""

    path: str
    facts: Facts | None
    why: str | None = None


def files_below(paths: Sequence[str]) -> list[str]:
    """Return the files that were named, and all in folders that were named, in order.

    Raises: UsageError: there is none, or there are too many.
    """
    found: dict[str, None] = {}
    for path in paths:
        if not os.path.isdir(path):
            found[path] = None
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    found[os.path.join(folder, name)] = None
            if len(found) > _MOST_FILES:
                raise UsageError(
                    f"{path} has more than {_MOST_FILES:,} files", "name the folder of the reports"
                )
    if not found:
        raise UsageError(
            f"there is no file in {', '.join(paths)}",
            "name files, or folders with files, of `virtrace record`, `snapshot`, `bundle` or "
            "`doctor --json`",
        )
    return list(found)


def read_all(paths: Sequence[str]) -> Iterator[Read]:
    """Read the files, one after the other. What fails is told with its reason."""
    # Before a child loses the right to open files.
    load_all_explainers()
    with suppress(ImportError):
        import zstandard  # noqa: F401
    for start in range(0, len(paths), _AT_ONCE):
        rest = list(paths[start : start + _AT_ONCE])
        while rest:
            child = _Reader(tuple(rest))
            for read in child.read():
                rest.pop(0)
                yield read


class _Reader:
    """A child that reads several files."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        bounds = Bounds(_MEMORY, _SECONDS * len(paths), _SECONDS)
        self._child = Child(f"{len(paths)} files", self._begin, bounds)

    def _begin(self) -> Answer:
        opened: list[BinaryIO | VirtraceError] = []
        for path in self._paths:
            try:
                opened.append(open_input(path, "the file"))
            except VirtraceError as error:
                opened.append(error)

        def answer(_: str, arguments: list[Json], __: Tell) -> Json:
            (number,) = arguments
            file = opened[number]
            if isinstance(file, VirtraceError):
                raise file
            with file:
                return facts_of(file, self._paths[number])

        return answer

    def read(self) -> Iterator[Read]:
        """Read one after the other, until one ends the child."""
        for number, path in enumerate(self._paths):
            try:
                facts: Facts = self._child.ask("", number)
                check(facts, Facts)
                yield Read(path, facts)
            except (VirtraceError, ShapeError) as error:
                died = self._child.has_ended
                yield Read(path, None, _why(error, path, died=died))
                if died:
                    return


def _why(error: Exception, path: str, *, died: bool) -> str:
    if died or not isinstance(error, VirtraceError):
        return f"it cannot be read within {_MEMORY >> 20} MiB of memory and {_SECONDS} s"
    return error.what.removeprefix(f"{path} ").removeprefix("is ")


def common_folder(paths: Iterable[str]) -> str:
    """Return what the paths begin with, up to a slash: hosts are told apart by the rest."""
    folders = [os.path.dirname(path) for path in paths]
    with suppress(ValueError):
        common = os.path.commonpath(folders) if len(folders) > 1 else ""
        return f"{common}/" if common and common != "/" else ""
    return ""
