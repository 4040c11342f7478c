"""An initramfs with this host's Python and virtrace, each file under the path that it has here.

A machine that boots it needs no disk, and nothing is installed or mounted from elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import BinaryIO

from tests.support.paths import REPOSITORY

INTERPRETER = os.path.realpath(sys.executable)
SITE_PACKAGES = sysconfig.get_path("purelib")

_INIT = Path(__file__).with_name("initramfs_init.py")
# What a recording imports beyond Python's own library.
_DISTRIBUTIONS = ("PyYAML", "pyelftools")
# Parts of Python's own library that no recording imports.
_UNUSED = (
    *("config-", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test"),
    *("site-packages", "tkinter"),
)
_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)$", re.M)
_PLAIN, _EXECUTABLE = stat.S_IFREG | 0o644, stat.S_IFREG | 0o755


def write(output: Path, command: Sequence[str], files: Iterable[Path]) -> None:
    """Write the archive.

    command: what the machine runs, see initramfs_init.py
    files: what it needs besides Python and virtrace; all shared libraries but Python's
    """
    ours = [Path(INTERPRETER), *_python(), *_virtrace()]
    paths = dict.fromkeys([*ours, *_libraries(ours), *files])
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": f"{REPOSITORY / 'src'}:{SITE_PACKAGES}",
    }
    machine = json.dumps({"command": command, "environment": environment})
    with output.open("wb") as file:
        archive = Archive(file)
        archive.add("/init", f"#!{INTERPRETER} -IS\n".encode() + _INIT.read_bytes(), _EXECUTABLE)
        archive.add("/machine.json", machine.encode(), _PLAIN)
        for path in paths:
            mode = _EXECUTABLE if os.access(path, os.X_OK) else _PLAIN
            archive.add(str(path), path.read_bytes(), mode, int(path.stat().st_mtime))
        archive.end()


def _python() -> Iterator[Path]:
    """Python's own library with what is compiled of it."""
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if not name.startswith(_UNUSED)]
        yield from (Path(folder, name) for name in names)


def _virtrace() -> Iterator[Path]:
    for folder in ("src", "recipes"):
        yield from (path for path in (REPOSITORY / folder).rglob("*") if path.is_file())
    for name in _DISTRIBUTIONS:
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            if path.is_file():
                yield path


def _libraries(paths: Iterable[Path]) -> Iterator[Path]:
    """The shared libraries that programs and extension modules need, with their loader."""
    linked = [str(path) for path in paths if _is_linked(path)]
    done = subprocess.run(["ldd", *linked], capture_output=True, text=True)
    yield from (Path(path) for path in _LIBRARY.findall(done.stdout))


def _is_linked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


class Archive:
    """A cpio archive in the format that the kernel unpacks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._folders = {"/"}
        self._members = 0

    def add(self, path: str, data: bytes, mode: int, mtime: int = 0) -> None:
        """Add a file, after the folders that it is in."""
        parent = os.path.dirname(path)
        if parent not in self._folders:
            self._folders.add(parent)
            self.add(parent, b"", stat.S_IFDIR | 0o755)
        self._member(path[1:], data, mode, mtime)

    def add_tree(self, folder: Path, without: str) -> None:
        """Add all that is in a folder, without one name at its top, under the paths there."""
        for path in sorted(folder.rglob("*")):
            name = f"/{path.relative_to(folder)}"
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                self.add(name, os.fsencode(os.readlink(path)), mode)
            elif stat.S_ISREG(mode) and name != f"/{without}":
                self.add(name, path.read_bytes(), mode)

    def end(self) -> None:
        """Say that there is no more."""
        self._member("TRAILER!!!", b"", 0, 0)

    def _member(self, name: str, data: bytes, mode: int, mtime: int) -> None:
        self._members += 1
        encoded = os.fsencode(name) + b"\0"
        fields = (self._members, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._file.write(header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4))
