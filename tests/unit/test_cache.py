"""What the lab builds is made once, and kept under a name that tells what it holds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from virtrace.errors import LabError
from virtrace.lab import debug_build
from virtrace.lab.roots import keep_in_cache


def test_two_that_find_it_missing_make_it_once(tmp_path: Path) -> None:
    finished = tmp_path / "cache" / "built"
    filling, waiting = threading.Event(), threading.Event()

    def fill(work: Path) -> None:
        filling.set()
        assert waiting.wait(120)
        (work / "file").write_text("the first's")

    def unexpected(what: object) -> None:
        pytest.fail(str(what))

    first = threading.Thread(target=keep_in_cache, args=(finished, fill, unexpected))
    first.start()
    assert filling.wait(120)
    assert not finished.exists()
    told: list[str] = []

    def progress(line: str) -> None:
        told.append(line)
        waiting.set()

    keep_in_cache(finished, unexpected, progress)
    first.join()
    assert told == [f"waiting for another process, which is filling {finished.parent}"]
    assert (finished / "file").read_text() == "the first's"
    assert list(finished.parent.iterdir()) == [finished]


def test_a_build_without_a_file_of_today_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    today = debug_build.build_folder()
    monkeypatch.setattr(debug_build, "FILES", debug_build.FILES[1:])
    assert debug_build.build_folder() != today
    assert debug_build.build_folder().parent == today.parent


def test_a_home_that_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root's cache lies elsewhere.
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(LabError, match="HOME is 'here'"):
        debug_build.build_folder()
