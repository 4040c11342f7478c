"""Files that strangers control, and private files, are opened by one module."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import virtrace
from virtrace import files
from virtrace.errors import TraceError

PACKAGE = Path(virtrace.__file__).parent
# It uses only files that it made itself, without root's rights.
NOT_LOOKED_AT = {"files.py", "lab"}
OPENERS = {"open", "io.open", "os.open", "os.fdopen", "FileIO", "io.FileIO"}
METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes"}
# What is opened, in the source, by something else than the name of a kernel's or a package's file.
HARMLESS = {
    # Names of /sys, the kernel's log, and a pipe.
    "host/failures.py": {
        *("(folder / 'free_hugepages').read_text", "os.open('/dev/kmsg')", "open(asked)"),
    },
    # Pipes.
    "confined.py": {"open(questions)"},
    "cli/without_rights.py": {"open(os.memfd_create('virtrace-outcome'))"},
    "engines/gdb/engine.py": {"open(ready)"},
    "guard/process.py": {"open(read_end)"},
    "inferior/recorder.py": {"open(descriptor)"},
    # A bundle that is made: a descriptor, or in memory.
    "bundle/archive.py": {"tarfile.open"},
    "bundle/collect.py": {"files.open"},
    "bundle/files.py": {"files.open", "self.open"},
    # A new file in the user's own cache, which is open.
    "guard/journal.py": {"os.open(self._name)"},
    # O_PATH: nothing is read, and no device is started.
    "image/process.py": {"os.open(mapped)"},
    # Names of /sys.
    "engines/uprobes/host.py": {"_LOCKDOWN.read_text"},
    "engines/uprobes/kernel.py": {"_UPROBE_TYPE.read_text"},
    # Links of /proc/PID/map_files, which lead to mapped files alone; and a new file.
    "engines/uprobes/standalone.py": {
        *("Path(mapped).read_bytes", "open(path)", "os.open(args.output)"),
    },
    # Functions that are given names of /proc alone.
    "image/live.py": {"Path(file).read_text"},
    "targets/hazards.py": {"Path(path).read_text"},
}


def opened(file: Path) -> Iterator[str]:
    """Each call that opens a file, but for files of the kernel and the package, by its name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in OPENERS:
            what = ast.unparse(node.args[0])
            is_descriptor = any(
                keyword.arg == "closefd" and ast.unparse(keyword.value) == "False"
                for keyword in node.keywords
            )
            if not is_descriptor and not is_known(what):
                yield f"{name}({what})"
        elif name.rpartition(".")[2] in METHODS and "." in name and not is_known(name):
            yield name


def is_known(what: str) -> bool:
    of_kernel = ("'/proc/", "f'/proc/", "f'/sys/", "Path('/proc/", "Path(f'/proc/", "Path(f'/sys/")
    return what.startswith((*of_kernel, "os.devnull", "Path(__file__)"))


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_nothing_else_opens_files(file: Path) -> None:
    name = str(file.relative_to(PACKAGE))
    if name.split("/")[0] not in NOT_LOOKED_AT:
        assert set(opened(file)) == HARMLESS.get(name, set())


def test_a_plain_open_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "open(path)\nPath(name).read_text()\nopen(1, closefd=False)\nfile.open('x')\n"
    )
    assert [*opened(source)] == ["open(path)", "Path(name).read_text", "file.open"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(files.NotRegularError):
            files.open_regular(path)
    file = tmp_path / "file"
    file.write_bytes(b"x" * 2049)
    (tmp_path / "link").symlink_to(file)
    assert files.read_regular(tmp_path / "link", 2049) == b"x" * 2049
    with pytest.raises(OSError, match="it is not a regular file"):
        files.open_regular(tmp_path / "link", follow=False)
    with pytest.raises(files.TooLargeError, match="it is larger than 2 KiB"):
        files.read_regular(file, 2048)


def test_a_file_that_others_can_write_is_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"mine")
    with files.open_folder(tmp_path) as folder:
        file.chmod(0o644)
        assert files.read_trusted(folder, "file", 4) == b"mine"
        with pytest.raises(files.TooLargeError):
            files.read_trusted(folder, "file", 3)
        file.chmod(0o664)
        with pytest.raises(PermissionError, match="others can write to it"):
            files.read_trusted(folder, "file", 4)
        (tmp_path / "link").symlink_to("file")
        with pytest.raises(files.NotRegularError):
            files.read_trusted(folder, "link", 4)


def test_a_new_file_appears_whole_and_replaces_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def pieces() -> Iterator[str]:
        yield "first"
        assert not file.exists()
        yield "second"

    files.write_new(file, "the text", pieces())
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("firstsecond", 0o600)
    with pytest.raises(TraceError, match="already exists"):
        files.write_new(file, "the text", ["third"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "firstsecond"


# Has the kernel refuse system calls to this process, as a file system without them does; then
# writes files.
WITHOUT = """
import ctypes, errno, struct, sys
from pathlib import Path
from virtrace.errors import TraceError
from virtrace.files import write_new

def refuse(numbers):
    # struct sock_filter: load the number of the system call; for each one, compare and refuse.
    program = struct.pack("<HBBI", 0x20, 0, 0, 0)
    for number in numbers:
        program += struct.pack("<HBBI", 0x15, 0, 1, number)
        program += struct.pack("<HBBI", 0x06, 0, 0, 0x50000 | errno.EPERM)
    program += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
    code = ctypes.create_string_buffer(program)
    whole = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, whole, 0, 0) == 0

file = Path(sys.argv[1])
refuse(map(int, sys.argv[2:]))
for text in ("first", "second"):
    try:
        write_new(file, "the text", [text])
    except TraceError as error:
        print(error)
"""
# By machine: link and linkat; renameat2.
SYSTEM_CALLS = {"x86_64": ((86, 265), 316), "aarch64": ((37,), 276)}


def written_without(file: Path, calls: Iterable[int]) -> list[str]:
    """Write a file twice, without some system calls; return what is said about it."""
    words = [sys.executable, "-c", WITHOUT, str(file), *map(str, calls)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


@pytest.mark.skipif(platform.machine() not in SYSTEM_CALLS, reason="knows other system calls")
def test_a_new_file_needs_no_hard_links(tmp_path: Path) -> None:
    links, rename = SYSTEM_CALLS[platform.machine()]
    file = tmp_path / "file"
    assert written_without(file, links) == [f"{file} already exists"]
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("first", 0o600)
    other = tmp_path / "other"
    refused = f"cannot write the text {other}: Operation not permitted"
    assert written_without(other, (*links, rename)) == [refused, refused]
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_in_another_root_is_read_within_its_limits(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"0123456789")
    (tmp_path / "folder/link").symlink_to("file")
    root, deadline = "/", time.monotonic() + 30
    folder = os.fsencode(tmp_path / "folder")

    def read(name: bytes, limit: int, *, only_end: bool = False) -> bytes:
        return files.read_inside(root, folder, [name], limit, deadline=deadline, only_end=only_end)

    assert read(b"file", 10) == b"0123456789"
    assert read(b"file", 4, only_end=True) == b"6789"
    with pytest.raises(files.TooLargeError):
        read(b"file", 9)
    with pytest.raises(files.NotRegularError):
        read(b"link", 10)
    with pytest.raises(FileNotFoundError):
        read(b"none", 10)
    with pytest.raises(TimeoutError):
        files.read_inside(root, folder, [b"file"], 10, deadline=time.monotonic() - 1)
