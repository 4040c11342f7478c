"""The image of a real libvirtd that hangs: every frame without GDB, beside what GDB says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import backtraces
from virtrace.image.live import LiveImage
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab

# Where a call waits for QEMU's answer: exported by the driver.
WAITS = "qemuMonitorSend"
PATIENCE = 60.0


@pytest.fixture
def hung(stock_lab: Lab) -> Iterator[LiveImage]:
    """The daemon, while one call waits for a QEMU that is stopped by a signal, and one for that."""
    process = inspect(stock_lab.pid)
    driver = process.module("libvirt_driver_qemu.so")
    assert driver is not None
    waits = driver.elf.exported_function(WAITS)
    assert waits is not None
    asked = stock_lab.virsh_command("domblkinfo", "vm1", "vda")
    with LiveImage(process) as image, stock_lab.stalled():
        calls = [subprocess.Popen(asked, stdout=subprocess.DEVNULL) for _ in range(2)]
        end = time.monotonic() + PATIENCE
        while not any(
            frame.function == driver.base + waits
            for found in backtraces.of_image(image).values()
            for frame in found.frames
        ):
            assert time.monotonic() < end
        yield image
    assert [call.wait(PATIENCE) for call in calls] == [0, 0]


def test_every_frame_of_a_daemon_that_hangs_is_that_of_gdb(hung: LiveImage) -> None:
    pid = hung.program.pid
    before = scheduled(pid)
    ours = backtraces.of_image(hung)
    after = scheduled(pid)
    theirs = backtraces.of_gdb("-p", str(pid))
    found, frames, registers = backtraces.differences(ours, theirs)
    assert found == []
    assert frames > 100
    assert registers > 500
    # The look woke and stopped nobody.
    assert after == before


def scheduled(pid: int) -> dict[str, list[str]]:
    """How often a processor took up each thread but the main one, which has timers of its own."""
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
    return {task.name: (task / "schedstat").read_text().split() for task in tasks}
