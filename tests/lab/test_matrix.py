"""The tests of the engine and of whole traces again, on other versions of everything they meet.

Each inside a root of another Debian release: its libvirt, QEMU, GDB, Python and compiler.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tests.lab.test_trace import EXPECTED, spans
from tests.lab.tracing import (
    DISKS,
    SCRIPT,
    calls_of,
    exchanges,
    gdb_environment,
    printed_info,
    whole_trace,
)
from tests.support.command import SECONDS, virtrace
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tests.support.waiting import wait_until
from virtrace.errors import LabError
from virtrace.lab import roots
from virtrace.lab.roots import ensure_root, inside, keep_in_cache
from virtrace.targets.processes import find_daemons

pytestmark = pytest.mark.matrix

TESTS = (
    "tests/gdb",
    "tests/lab/test_trace.py",
    "tests/lab/test_stripped.py",
    "tests/lab/test_catalogue.py",
    "tests/lab/test_new_recipe.py",
    "tests/lab/test_lab.py",
)
# Those with other releases are for the host, which has their roots; so are those by the kernel
# engine, which takes nothing from GDB.
CHOSEN = (
    *("-m", "not matrix and not host and not scenarios and not kernels"),
    *("-k", "not uprobes"),
)
TESTS_NEED = ("pytest", "pytest-timeout", "pexpect", "jsonschema-rs")

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}

# Seconds.
LAB_TIMEOUT = 120.0
INSTALL_TIMEOUT = 300.0
TESTS_TIMEOUT = 1800.0

# The shell is the first process of a namespace: it reaps, as tests of ended daemons need, and
# takes every process along when it ends.
PRIVATE = ("unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder on a file system like the one that the lab is used on, which /tmp may not be."""
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    folder.chmod(0o1777)
    yield folder
    # What tests that were killed left attached; by whose paths, no process is left to know.
    for file in folder.rglob("*.raw"):
        listed = ["losetup", "--list", "--noheadings", "--output=NAME", f"--associated={file}"]
        for device in subprocess.check_output(listed, text=True).split():
            subprocess.run(["losetup", "--detach", device], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "*_cache", "__pycache__")
    shutil.copytree(REPOSITORY, copy, ignore=ignored, symlinks=True)
    (copy / ".venv").mkdir()
    return copy


@dataclass(frozen=True)
class Inside:
    """A root with a checkout in /mnt. scratch: its /tmp and /var/tmp."""

    root: Path
    checkout: Path
    scratch: Path

    def command(self, venv: Path, *command: str) -> list[str | Path]:
        """For the host: it runs the command in the checkout, with `venv` as its .venv."""
        binds = {"/mnt": self.checkout, "/mnt/.venv": venv}
        binds |= {"/tmp": self.scratch, "/var/tmp": self.scratch}
        for file in ("/etc/resolv.conf", "/etc/hosts"):
            if (self.root / file[1:]).exists():
                binds[file] = Path(file).resolve()
        return [*PRIVATE, *inside(self.root, binds, ["env", "--chdir=/mnt", *command])]

    def run(self, venv: Path, timeout: float, *command: str, **variables: str) -> None:
        """Run a command there; the test fails with it."""
        try:
            done = subprocess.run(
                self.command(venv, *command),
                env={**ENVIRONMENT, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
            )
            output, ending = done.stdout, f"ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode(errors="replace") if error.stdout else ""
            ending = f"had not ended after {timeout:.0f} s"
        else:
            if done.returncode == 0:
                print(output)
                return
        pytest.fail(f"{' '.join(command)}\nin {self.root} {ending}:\n{output}", pytrace=False)


def network_settings(scratch: Path) -> dict[str, str]:
    """What pip needs to reach the index that this host is configured for."""
    settings = {
        name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")
    }
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copy(authorities, scratch)
        settings["PIP_CERT"] = f"/tmp/{authorities.name}"
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in ("index-url", "extra-index-url", "trusted-host", "proxy"):
            settings[f"PIP_{option.upper().replace('-', '_')}"] = ast.literal_eval(value)
    return settings


def ensure_venv(root: Inside) -> Path:
    """The root's virtual environment of this pyproject.toml, kept beside the root."""
    wanted = hashlib.sha256((root.checkout / "pyproject.toml").read_bytes()).hexdigest()[:16]
    made = f"{root.root.name}-venv-"
    finished = root.root.with_name(made + wanted)
    if finished.is_dir():
        return finished

    def fill(venv: Path) -> None:
        python = "/mnt/.venv/bin/python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        network = network_settings(root.scratch)
        root.run(venv, INSTALL_TIMEOUT, "python3", "-m", "venv", "/mnt/.venv")
        # Bullseye's own is too old to know today's wheels.
        root.run(venv, INSTALL_TIMEOUT, *pip, "--upgrade", "pip", **network)
        install = [*pip, "--editable", "/mnt", *TESTS_NEED]
        root.run(venv, INSTALL_TIMEOUT, *install, **network)

    keep_in_cache(finished, fill, print)
    for outdated in finished.parent.glob(made + "*"):
        if outdated != finished:
            # Another worker may be at it, too.
            shutil.rmtree(outdated, ignore_errors=True)
    return finished


@pytest.fixture(autouse=True)
def _as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make and enter another root")


class TheSameInside:
    """As here; a class for each release, as a class is what a worker is given at a time."""

    suite: ClassVar[str]

    # What it runs has limits of its own.
    @pytest.mark.timeout(0)
    def test_the_same(self, checkout: Path, scratch: Path) -> None:
        root = Inside(ensure_root(self.suite, print), checkout, scratch)
        venv = ensure_venv(root)
        ci = {"CI": os.environ["CI"]} if "CI" in os.environ else {}
        pytest_ = ("/mnt/.venv/bin/python", "-m", "pytest", *CHOSEN, *TESTS)
        root.run(venv, TESTS_TIMEOUT, *pytest_, **ci)


class TestBullseye(TheSameInside):
    suite = "bullseye"


class TestSid(TheSameInside):
    suite = "sid"


@dataclass(frozen=True)
class Elsewhere:
    """A lab in a root, PID and mount namespace of its own. pid, uri: as the host has them."""

    pid: int
    uri: str

    def domblkinfo(self, disk: str) -> list[str]:
        return ["virsh", "-c", self.uri, "domblkinfo", "vm1", disk]


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, checkout: Path, scratch: Path) -> Iterator[Elsewhere]:
    root = Inside(ensure_root(request.param, print), checkout, scratch)
    up = "/mnt/.venv/bin/virtrace lab up --dir /tmp/lab && touch /tmp/up && exec sleep infinity"
    command = root.command(ensure_venv(root), "sh", "-c", up)
    with (scratch / "log").open("w+") as log:
        running = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            is_up = (scratch / "up").exists
            wait_until(lambda: is_up() or running.poll() is not None, "the lab is up", LAB_TIMEOUT)
            assert running.poll() is None, (scratch / "log").read_text()
            [pid] = [
                daemon.pid
                for daemon in find_daemons("libvirtd")
                if os.path.samefile(f"/proc/{daemon.pid}/root/tmp", scratch)
            ]
            socket = scratch / "lab/run/libvirt/libvirt-sock"
            yield Elsewhere(pid, f"qemu+unix:///session?socket={socket}")
        finally:
            running.kill()
            running.wait()


def by_record(elsewhere: Elsewhere, disk: str, output: Path) -> str:
    options = ["-p", str(elsewhere.pid), "-o", str(output)]
    done = virtrace("record", "blockinfo", *options, "--", *elsewhere.domblkinfo(disk))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def by_gdb(elsewhere: Elsewhere, disk: str, output: Path) -> str:
    ready, ready_for_gdb = os.pipe()
    line = ["gdb", "-nx", "-batch", "-x", str(SCRIPT), "-p", str(elsewhere.pid)]
    gdb = subprocess.Popen(
        ["timeout", str(SECONDS), *line],
        env=gdb_environment(OUTPUT=str(output), CALLS="1", READY_FD=str(ready_for_gdb)),
        stdout=subprocess.DEVNULL,
        pass_fds=[ready_for_gdb],
    )
    os.close(ready_for_gdb)
    with open(ready) as ready_file:
        assert ready_file.readline() == "ready\n"
    asked = subprocess.run(elsewhere.domblkinfo(disk), capture_output=True, text=True)
    assert gdb.wait() == 0
    return asked.stdout


@pytest.mark.parametrize("way", [by_record, by_gdb])
@pytest.mark.parametrize("elsewhere", ["bullseye", "sid"], indirect=True)
def test_another_release_from_outside(
    elsewhere: Elsewhere, way: Callable[[Elsewhere, str, Path], str], tmp_path: Path
) -> None:
    """Whose libvirt is another than the host's, under the same paths."""
    for disk in DISKS:
        printed = way(elsewhere, disk, tmp_path / disk)
        trace = whole_trace(tmp_path / disk)
        [call] = calls_of(trace)
        assert call.root.returned == {"result": 0, "info": printed_info(printed)[0]}
        assert trace.header is not None
        version = tuple(map(int, (trace.header["target"]["program"]["version"] or "").split(".")))
        assert spans(call) == EXPECTED[version].spans
        assert [one.command for one in exchanges(call)] == EXPECTED[version].commands
        assert_untraced_and_intact(elsewhere.pid)
        assert subprocess.run(elsewhere.domblkinfo(disk), capture_output=True).returncode == 0
    doctor = virtrace("doctor", "-p", str(elsewhere.pid))
    assert doctor.returncode == 0, doctor.stdout
    assert ", in another mount namespace (a container?)" in doctor.stdout


def test_failed_root_is_not_taken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "cache_folder", lambda: tmp_path)
    with pytest.raises(LabError, match="could not be made") as caught:
        ensure_root("no-such-suite", print)
    [log] = (tmp_path / "roots").iterdir()
    assert str(log) in caught.value.remedy
    assert "no-such-suite" in log.read_text()
