"""A program with a root of its own, as in a container: the same paths lead to other files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NAME, PATIENCE, SCRIPTS, Daemon

from support.intact import assert_untraced_and_intact

# A mount namespace in which the folder has what stands in another; then the program.
INSIDE = 'mount --bind "$1" "$2" && cd / && exec "$2/$3" "$2/libvirt_driver_qemu.so"'


class Contained(Daemon):
    """Runs the files of ``inside`` under the paths of ``outside``."""

    def __init__(self, outside: Path, inside: Path) -> None:
        self._inside = inside
        super().__init__(outside)

    def command(self) -> list[str | Path]:
        unshare = ["unshare", "--mount", "--propagation", "private"]
        return [*unshare, "sh", "-c", INSIDE, "sh", self._inside, self.folder, NAME]


@pytest.fixture
def contained(build: Callable[[str], Path], tmp_path: Path) -> Iterator[Contained]:
    if os.geteuid() != 0:
        pytest.skip("only root can make a mount namespace")
    outside = tmp_path / "outside"
    shutil.copytree(build("plain"), outside, symlinks=True)
    daemon = Contained(outside, build("optimized"))
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
