"""The files of a core's process: at their own paths, by build-id, and on a debuginfod server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.faults.core_files import real_core
from tests.support.waiting import wait_until
from virtrace.binary.reader import read_by_child
from virtrace.image.core import CoreImage

PROGRAM = "program"


@pytest.fixture
def core(tmp_path: Path) -> tuple[Path, Path, Path, str]:
    """A core, its root without the program, the program at another place, and its build-id."""
    file, root = real_core(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (own,) = (one for one in CoreImage(file, root).program.modules if one.name == PROGRAM)
    build_id = own.build_id
    assert build_id is not None
    shutil.move(root / own.path.lstrip("/"), elsewhere / PROGRAM)
    return file, root, elsewhere / PROGRAM, build_id


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)


def test_a_file_that_is_missing_is_named(core: tuple[Path, Path, Path, str]) -> None:
    file, root, _, build_id = core
    (missing,) = CoreImage(file, root).missing
    assert (Path(missing.path).name, missing.build_id) == (PROGRAM, build_id)


def test_another_build_is_as_good_as_none(core: tuple[Path, Path, Path, str]) -> None:
    file, root, elsewhere, _ = core
    (missing,) = CoreImage(file, root).missing
    place = root / missing.path.lstrip("/")
    shutil.copy("/bin/true", place)
    assert CoreImage(file, root).missing == (missing,)
    shutil.copy(elsewhere, place)
    assert CoreImage(file, root).missing == ()


def test_by_build_id(core: tuple[Path, Path, Path, str]) -> None:
    file, root, elsewhere, build_id = core
    link = root / "usr/lib/.build-id" / build_id[:2] / build_id[2:]
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    image = CoreImage(file, root)
    assert image.missing == ()
    (own,) = (one for one in image.program.modules if Path(one.path).name == PROGRAM)
    assert own.build_id == build_id


@pytest.mark.host
def test_from_a_server(
    core: tuple[Path, Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, root, elsewhere, build_id = core
    if not shutil.which("debuginfod") or not shutil.which("debuginfod-find"):
        pytest.skip("debuginfod is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["debuginfod", "-F", "-p", str(port), "-d", ":memory:", str(elsewhere.parent)]
    urls = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            # It has scanned the folder when it answers; its earlier answers do not count.
            asked = tmp_path / "asked"
            asking = {**os.environ, "DEBUGINFOD_URLS": urls, "DEBUGINFOD_CACHE_PATH": str(asked)}
            find = ["debuginfod-find", "executable", build_id]

            def has_found() -> bool:
                shutil.rmtree(asked, ignore_errors=True)
                return not subprocess.run(find, env=asking, capture_output=True).returncode

            wait_until(has_found, "debuginfod answers")
            monkeypatch.setenv("DEBUGINFOD_URLS", urls)
            monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
            image = CoreImage(file, root)
            assert image.missing == ()
            (own,) = (one for one in image.program.modules if Path(one.path).name == PROGRAM)
            assert own.file.is_relative_to(tmp_path / "cache")
            assert read_by_child(own.file).build_id == build_id
        finally:
            server.terminate()
