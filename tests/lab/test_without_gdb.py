"""What works on a host that has no GDB: all but tracing by it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import virtrace
from tests.support.gdb_check import checked_by_gdb
from virtrace.lab.daemon import Lab

from .tracing import all_disks, record


@pytest.fixture
def no_gdb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PATH with every command but gdb."""
    # Not pytest's own tmp_path: the user whose daemon it is runs commands, too.
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as place:
        folder = Path(place)
        folder.chmod(0o755)
        for commands in os.environ["PATH"].split(os.pathsep):
            for command in Path(commands).glob("*"):
                link = folder / command.name
                if command.name != "gdb" and not link.is_symlink():
                    link.symlink_to(command)
        monkeypatch.setenv("PATH", place)
        assert shutil.which("gdb") is None
        yield


def all_but_tracing(lab: Lab, folder: Path, levels: set[str]) -> None:
    """levels: that the driver's function and the monitor's probes have."""
    pid = str(lab.pid)
    checked = virtrace("recipe", "check", "blockinfo", "-p", pid)
    assert checked.returncode == 0, checked.stderr
    assert all(f" {level} " in " ".join(checked.stdout.split()) for level in levels)

    looked = virtrace("doctor", "-p", pid)
    assert "gdb is not on PATH" in looked.stdout
    assert "qemuDomainGetBlockInfo" in looked.stdout

    trace = folder / "trace.jsonl"
    shown = virtrace("show", str(trace))
    assert shown.returncode == 0, shown.stderr
    assert "virDomainGetBlockInfo" in shown.stdout
    explained = virtrace("explain", str(trace))
    assert explained.returncode == 0, explained.stderr
    bundled = virtrace("bundle", str(trace), "-o", str(folder / "bundle.tar"))
    assert bundled.returncode == 0, bundled.stderr


def trace_of(lab: Lab, folder: Path) -> None:
    assert record(lab, folder / "trace.jsonl", command=all_disks(lab)).returncode == 0


def test_on_a_stripped_daemon(
    stock_lab: Lab, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trace_of(stock_lab, tmp_path)
    header = checked_by_gdb("blockinfo", stock_lab.pid)
    levels = {probe["level"] for probe in header["probes"]} - {"missing"}
    request.getfixturevalue("no_gdb")
    all_but_tracing(stock_lab, tmp_path, levels)


@pytest.mark.matrix
def test_with_debug_info(debug_lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    trace_of(debug_lab, tmp_path)
    request.getfixturevalue("no_gdb")
    all_but_tracing(debug_lab, tmp_path, {"dwarf", "usdt"})
