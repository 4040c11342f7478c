"""The files that virtrace comes with: beside its modules, or with them in one zip archive."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

PACKAGE = Path(__file__).parent
# Reads files, and members of an archive by the path that they would have below it.
_READ = globals()["__loader__"].get_data
_ARCHIVE = PACKAGE.parent
IS_ONE_FILE = not PACKAGE.is_dir()


def text(file: Path) -> str:
    """Return the contents of a file. Raises: OSError."""
    data: bytes = _READ(str(file))
    return data.decode()


def has(file: Path) -> bool:
    return str(file.relative_to(_ARCHIVE)) in _members() if IS_ONE_FILE else file.is_file()


def matching(folder: Path, pattern: str) -> Sequence[Path]:
    """Return the files below a folder that match the pattern, as in ``Path.glob``, sorted."""
    if not IS_ONE_FILE:
        return sorted(file for file in folder.glob(pattern) if file.is_file())
    wanted = str(folder.relative_to(_ARCHIVE) / pattern)
    return [_ARCHIVE / name for name in _members() if PurePosixPath(name).match(wanted)]


@functools.cache
def _members() -> Collection[str]:
    # Only an archive needs it.
    from zipfile import ZipFile

    with ZipFile(_ARCHIVE) as archive:
        return dict.fromkeys(sorted(archive.namelist()))
