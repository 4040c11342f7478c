"""Installed as users install it, and on machines whose GDB lacks something."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.lab.tracing import calls_of, gdb_environment, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.paths import REPOSITORY
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.matrix

INSTALL_SECONDS = 300.0


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        env={**os.environ, **variables},
        cwd="/",
    )


@pytest.fixture(scope="module", params=["pip", "pipx"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `virtrace` of an installation that knows nothing of the checkout."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = folder / "venv"
    venv.create(environment, with_pip=True)
    pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    if request.param == "pip":
        done = run(*pip, REPOSITORY)
        command = environment / "bin" / "virtrace"
    else:
        done = run(*pip, "pipx")
        assert done.returncode == 0, done.stderr
        places = {"PIPX_HOME": str(folder / "home"), "PIPX_BIN_DIR": str(folder / "bin")}
        done = run(environment / "bin" / "pipx", "install", REPOSITORY, **places)
        command = folder / "bin" / "virtrace"
    assert done.returncode == 0, done.stderr
    return command


def test_the_man_page_and_completions_come_along(installed: Path) -> None:
    """Where man and bash look for what is installed under the same prefix."""
    share = installed.resolve().parents[1] / "share"
    for file in ("man/man1/virtrace.1", "bash-completion/completions/virtrace"):
        assert (share / file).read_bytes() == (REPOSITORY / "share" / file).read_bytes()


def test_it_traces_with_its_own_recipes_and_scripts(
    installed: Path, stock_lab: Lab, tmp_path: Path
) -> None:
    output = tmp_path / "trace.jsonl"
    asked = stock_lab.virsh_command("domblkinfo", "vm1", "vda")
    done = run(
        installed, "record", "blockinfo", "-p", str(stock_lab.pid), "-o", output, "--", *asked
    )
    assert done.returncode == 0, done.stderr
    assert len(calls_of(whole_trace(output))) == 1
    done = run(installed, "show", output, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr

    [package] = installed.resolve().parents[1].glob("lib/python3*/site-packages/virtrace")
    assert REPOSITORY not in package.parents
    script = package / "gdb_scripts" / "trace_blockinfo.py"
    output = tmp_path / "by-script.jsonl"
    done = run(
        *("gdb", "-nx", "-batch", "-x", script, "-p", str(stock_lab.pid)),
        **gdb_environment(OUTPUT=str(output), SECONDS="0.5"),
    )
    assert done.returncode == 0, done.stderr
    assert whole_trace(output).footer is not None


@pytest.fixture(scope="module")
def gdb_without_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which Debian's gdb-minimal comes first."""
    folder = tmp_path_factory.mktemp("gdb-minimal")
    # apt downloads as a user of its own, which may not enter pytest's folder: it says so, and does.
    done = subprocess.run(
        "apt-get download gdb-minimal && dpkg-deb -x gdb-minimal_*.deb .",
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
    )
    if done.returncode:
        pytest.skip(f"gdb-minimal cannot be had: {done.stderr}")
    return f"{folder}/usr/bin:{os.environ['PATH']}"


def test_gdb_without_python(gdb_without_python: str, stock_lab: Lab, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": gdb_without_python}
    output = tmp_path / "trace.jsonl"
    target = ("-p", str(stock_lab.pid))
    recording = ("record", "blockinfo", *target, "--engine", "gdb", "-o", str(output))
    done = virtrace(*recording, env=environment)
    assert done.returncode == 3
    assert "Python" in done.stderr
    assert "try: " in done.stderr
    assert not output.exists()
    done = virtrace("doctor", *target, env=environment)
    assert done.returncode == 3
    assert done.stdout.startswith("Tracing will not work here")
    assert "Python" in done.stdout.splitlines()[0]


def test_no_gdb(stock_lab: Lab, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb"]
    done = subprocess.run(
        [*command, "-p", str(stock_lab.pid)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 3
    assert "gdb is not installed" in done.stderr
