"""A program with a root of its own, as in a container: the same paths lead to other files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NAME, PATIENCE, SCRIPTS, Daemon

from support.intact import assert_untraced_and_intact


class Contained(Daemon):
    """Runs in a root of its own, where its folder's path leads to other files."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._root = root
        super().__init__(folder)

    def command(self) -> list[str | Path]:
        # Without /proc in there, $ORIGIN leads nowhere.
        return ["env", f"LD_LIBRARY_PATH={self.folder}", "chroot", self._root, *super().command()]


@pytest.fixture
def contained(build: Callable[[str], Path], tmp_path: Path) -> Iterator[Contained]:
    if os.geteuid() != 0:
        pytest.skip("only root can change a process's root")
    folder, root = tmp_path / "program", tmp_path / "root"
    shutil.copytree(build("plain"), folder, symlinks=True)
    inside = root / folder.relative_to("/")
    shutil.copytree(build("optimized"), inside, symlinks=True)
    listed = subprocess.check_output(["ldd", inside / NAME], text=True)
    for library in re.findall(r"(/\S+) \(0x", listed):
        if not Path(library).is_relative_to(inside):
            copy = root / library.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, copy)
    daemon = Contained(folder, root)
    yield daemon
    daemon.end()


def test_it_is_refused_and_left_alone(contained: Contained, tmp_path: Path) -> None:
    """From out here GDB would read the wrong files, and write to wrong addresses."""
    output = tmp_path / "t.jsonl"
    pid = str(contained.pid)
    for command in (
        [sys.executable, "-m", "virtrace.cli.main", "record", "blockinfo", "-p", pid],
        ["gdb", "-nx", "-batch", "-x", str(SCRIPTS / "trace_blockinfo.py"), "-p", pid],
    ):
        done = subprocess.run(
            command,
            env={**os.environ, "VIRTRACE_OUTPUT": str(output)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 3
        assert "lives in another root" in done.stderr
        assert "run virtrace in there" in done.stderr
        assert not output.exists()
        assert_untraced_and_intact(contained.pid)
        assert contained.do("call vm1 vda")
