"""What a snapshot takes from /proc, beside processes of the tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtrace.image.pids import Pids
from virtrace.snapshot import host


@pytest.fixture
def contained() -> Iterator[int]:
    """A process that is number 1 of a PID namespace of its own; its pid here."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a PID namespace")
    command = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        outer.stdout.readline()
        yield int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
        outer.kill()


def test_a_pid_of_a_container_is_found_here(contained: int) -> None:
    assert Pids(contained).here(1) == contained
    assert Pids(contained).here(2) is None


def test_a_pid_of_this_namespace_is_itself() -> None:
    assert Pids(os.getppid()).here(1) == 1


def test_the_longest_mount_point_above_a_path_is_its_mount() -> None:
    mount = host.mount_of(os.getpid(), "/proc/self/status")
    assert mount == host.Mount("/proc", "proc")
    assert not host.is_local("fuse.sshfs")
    assert host.is_local("ext4")


def test_a_thread_that_sleeps_has_slept() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        clocks = host.Clocks()
        first = clocks.asleep(process.pid, process.pid)
        second = clocks.asleep(process.pid, process.pid)
        process.kill()
    if not Path("/proc/self/sched").exists():
        pytest.skip("this kernel does not tell when a thread ran last")
    assert first is not None
    assert second is not None
    assert 0 <= first < 60
    # The document and its sentences must round the same number.
    assert first == round(first, 3)
    assert clocks.asleep(process.pid, process.pid) is None
