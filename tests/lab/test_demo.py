"""`make demo` where it can do nothing: it says what is missing, and shows the sample."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.tracing import DISKS
from tests.support.command import virtrace
from tests.support.paths import DATA, REPOSITORY

SAMPLE = DATA / "sample-blockinfo.jsonl"
# What the scripts themselves use; no package manager, no GDB, no libvirt.
TOOLS = ("bash", "cat", "dirname", "id", "mkdir", "mktemp", "rm", "sha256sum")


def test_the_sample_can_be_shown() -> None:
    shown = virtrace("show", str(SAMPLE))
    assert shown.returncode == 0, shown.stderr
    for disk in DISKS:
        assert f"virDomainGetBlockInfo(vm1, {disk}) = 0" in shown.stdout
    assert "wr_highest_offset_valid" in shown.stdout


@pytest.mark.matrix
def test_the_demo_without_gdb_and_libvirt(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "*_cache", "__pycache__")
    shutil.copytree(REPOSITORY, checkout, ignore=ignored)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    done = subprocess.run(
        [checkout / "tools" / "demo.sh"],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "missing here: gdb virsh" in done.stderr
    assert "NOT a trace of this machine" in done.stdout
    assert "virDomainGetBlockInfo(vm1, vdd) = 0" in done.stdout
    assert "nothing was traced here" in done.stderr
