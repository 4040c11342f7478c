"""The wheel and the source distribution, and virtrace run from them without an installation."""

from __future__ import annotations

import tarfile
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.lab.test_install import run
from tests.lab.tracing import calls_of, whole_trace
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tools import dist
from virtrace import __version__
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By suffix; checked by twine."""
    files = dist.build(tmp_path_factory.mktemp("dist"))
    assert [file.name for file in files] == [
        f"virtrace-{__version__}-py3-none-any.whl",
        f"virtrace-{__version__}.tar.gz",
    ]
    return {file.suffix: file for file in files}


def test_the_same_sources_give_the_same_files(built: dict[str, Path], tmp_path: Path) -> None:
    for again in dist.build(tmp_path):
        assert again.read_bytes() == built[again.suffix].read_bytes()


def test_the_source_distribution_has_what_git_has(built: dict[str, Path]) -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a checkout of git")
    files = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = run("git", "-C", REPOSITORY, *files).stdout.split("\0")
    tracked = {name for name in listed if name and not name.startswith(".")}
    with tarfile.open(built[".gz"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO", ".gitignore"} == tracked


def test_the_wheel_has_recipes_scripts_and_pages(built: dict[str, Path]) -> None:
    with ZipFile(built[".whl"]) as wheel:
        names = set(wheel.namelist())
    assert {
        "virtrace/recipes/blockinfo.yaml",
        "virtrace/gdb_scripts/trace_blockinfo.py",
        f"virtrace-{__version__}.data/data/share/man/man1/virtrace.1",
    } <= names
    assert not any(name.startswith(("tests", "docs")) for name in names)


@pytest.fixture(scope="module", params=["pipx", "uvx"])
def runner(
    request: pytest.FixtureRequest, built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[str | Path]:
    """As docs/install.md has it: the words before `virtrace`."""
    folder = tmp_path_factory.mktemp(request.param)
    venv.create(folder / "venv", with_pip=True)
    package = {"pipx": "pipx", "uvx": "uv"}[request.param]
    done = run(folder / "venv/bin/python", "-m", "pip", "install", "--quiet", package)
    assert done.returncode == 0, done.stderr
    places = [f"PIPX_HOME={folder}/home", f"UV_CACHE_DIR={folder}/cache"]
    words = ["run", "--spec"] if request.param == "pipx" else ["--from"]
    return ["env", *places, folder / "venv/bin" / request.param, *words, built[".whl"]]


def test_it_runs_without_an_installation(runner: list[str | Path]) -> None:
    done = run(*runner, "virtrace", "--version")
    assert (done.returncode, done.stdout) == (0, f"virtrace {__version__}\n"), done.stderr


def test_it_traces_without_an_installation(
    runner: list[str | Path], stock_lab: Lab, tmp_path: Path
) -> None:
    output = tmp_path / "trace.jsonl"
    asked = stock_lab.virsh_command("domblkinfo", "vm1", "vda")
    recording = ("record", "blockinfo", "-p", str(stock_lab.pid), "-o", output, "--")
    done = run(*runner, "virtrace", *recording, *asked)
    assert done.returncode == 0, done.stderr
    assert len(calls_of(whole_trace(output))) == 1
    assert_untraced_and_intact(stock_lab.pid)
