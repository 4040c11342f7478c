"""What is taken back out of a process, and what is left alone."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtrace import files
from virtrace.guard import restore
from virtrace.guard.journal import Fingerprint, Journal, JournalEntries, PatchedBytes
from virtrace.image.memory import ProcessMemory
from virtrace.image.process import inspect

CC = b"\xcc"


@pytest.fixture
def memory() -> Iterator[ProcessMemory]:
    """Of this very process, as the guard has it of a daemon."""
    opened = ProcessMemory("self", writable=True)
    yield opened
    opened.close()


def test_only_what_is_still_ours_is_taken_back(memory: ProcessMemory) -> None:
    code = ctypes.create_string_buffer(b"MARK\xcc\x90\xcc")
    start = ctypes.addressof(code)
    places = tuple(PatchedBytes(start + at, b"U", CC) for at in (4, 5, 6))
    entries = JournalEntries((Fingerprint(start, b"MARK"),), places)
    # Somebody else has written over the second.
    assert entries.still_in_place(memory) == [places[0], places[2]]
    restore.write_back(memory, entries.still_in_place(memory))
    assert code.raw[:7] == b"MARKU\x90U"
    assert entries.still_in_place(memory) == []


def test_nothing_is_written_where_the_module_has_gone(memory: ProcessMemory) -> None:
    code = ctypes.create_string_buffer(b"KRAM\xcc")
    start = ctypes.addressof(code)
    patches = (PatchedBytes(start + 4, b"U", CC),)
    gone = JournalEntries((Fingerprint(start, b"MARK"),), patches)
    assert gone.still_in_place(memory) == []
    # Nor where nothing is mapped.
    unmapped = JournalEntries((Fingerprint(0, b"MARK"),), patches)
    assert unmapped.still_in_place(memory) == []


def test_only_its_own_old_journals_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "virtrace" / "guard"
    (folder / "4194305-9").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    # No process has such a pid.
    journal = json.dumps([[4096, "4d41524b"]]) + "\n" + json.dumps([8192, "55", "cc"]) + "\n"
    for name, content in {
        "4194305-1": journal,
        "4194305-2": "my notes\n",
        "4194305-3": "",
        "4194305-4": "1\n",
        "4194305-x": journal,
        "-rf": journal,
        "notes": journal,
        "4194305": journal,
    }.items():
        (folder / name).write_text(content)
    (folder / "4194305-5").symlink_to(folder / "4194305-1")
    for file in folder.iterdir():
        os.utime(file, (0, 0), follow_symlinks=False)
    (folder / "4194305-6").write_text(journal)
    before = {file.name for file in folder.iterdir()}
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        process = inspect(sleeper.pid)
        made = Journal(process, process.modules, CC)
        made.close()
        sleeper.kill()
    after = {file.name for file in folder.iterdir()}
    assert before - after == {"4194305-1"}
    assert after - before == {f"{process.pid}-{process.start_time}"}


@pytest.mark.parametrize("home", ["here", "", "./here", "~"])
def test_a_home_that_is_no_path_makes_no_folder(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    with pytest.raises(OSError, match="HOME"), files.cache_folder("any"):
        pass
    assert list(tmp_path.iterdir()) == []
