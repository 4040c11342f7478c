"""Threads of real processes, stopped for their registers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from virtrace.image.live import LiveImage
from virtrace.image.memory import ProcessMemory, StackCopier
from virtrace.image.process import inspect, read_status, stacks_of
from virtrace.image.stopping import LONGEST_STOP, StoppingImage, stop_thread, stopped

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Yama may forbid it to others")
# The parent sleeps uninterruptibly until the child is done.
VFORKS = b"""
#include <unistd.h>
int main(void)
{
    if (vfork() == 0)
        pause();
    write(1, "x", 1);
    pause();
}
"""
SPINS = "print(flush=True)\nwhile True: pass"


@pytest.fixture
def spinning() -> Iterator[int]:
    """A process that runs all the time."""
    with subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def copier(pid: int) -> StackCopier:
    return StackCopier(ProcessMemory(pid), stacks_of(pid))


def state_of(pid: int) -> tuple[str, str]:
    status = read_status(pid)
    assert status is not None
    return status["State"][0], status["TracerPid"]


def test_a_thread_is_stopped_and_goes_on(spinning: int) -> None:
    began = time.monotonic()
    ((tid, pause, registers, stack),) = stopped([spinning], copier(spinning))
    assert (tid, state_of(spinning)) == (spinning, ("R", "0"))
    assert 0 < pause < min(LONGEST_STOP, time.monotonic() - began)
    assert stack.start < registers["rsp"] < stack.start + len(stack.data)
    program = inspect(spinning)
    assert program.module_at(registers["rip"]) is not None


def test_an_image_has_the_registers_of_threads_that_run(spinning: int) -> None:
    process = inspect(spinning)
    with LiveImage(process) as image:
        (thread,) = image.threads()
    assert thread.registers.known == {}
    stopping = StoppingImage(process, lambda image, threads: "")
    with stopping:
        (thread,) = stopping.threads()
    assert stopping.pauses.keys() == {spinning}
    assert thread.registers.known.keys() >= {"rip", "rsp", "rbx", "rdi"}
    refusing = StoppingImage(process, lambda image, threads: f"not {len(threads)}")
    with refusing:
        (thread,) = refusing.threads()
    assert (thread.registers.known, refusing.pauses, refusing.refusal) == ({}, {}, "not 1")


def test_a_tracer_that_is_killed_leaves_the_thread_running(spinning: int) -> None:
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        stop_thread(spinning)
        os.write(tell, b"x")
        signal.pause()
    os.read(told, 1)
    assert state_of(spinning) == ("t", str(child))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: state_of(spinning) == ("R", "0"), "it goes on")


def test_a_signal_that_comes_meanwhile_is_not_lost() -> None:
    counts = """
import signal
count = 0
def add(*_):
    global count
    count += 1
    print(count, flush=True)
signal.signal(signal.SIGUSR1, add)
print(flush=True)
while True: pass
"""
    with subprocess.Popen([sys.executable, "-c", counts], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in range(1, 101):
            process.send_signal(signal.SIGUSR1)
            [*stopped([process.pid], copier(process.pid))]
            assert int(process.stdout.readline()) == number
        assert state_of(process.pid) == ("R", "0")
        process.kill()


def test_a_thread_that_does_not_stop_is_let_go(tmp_path: Path) -> None:
    subprocess.run(["gcc", "-xc", "-", "-o", tmp_path / "vforks"], input=VFORKS, check=True)
    with subprocess.Popen([tmp_path / "vforks"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        wait_until(lambda: state_of(process.pid)[0] == "D", "it waits for its child")
        began = time.monotonic()
        assert [*stopped([process.pid], copier(process.pid))] == []
        assert time.monotonic() - began < 1
        assert state_of(process.pid) == ("D", "0")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)
        assert process.stdout.read(1) == b"x"
        wait_until(lambda: state_of(process.pid) == ("S", "0"), "it goes on")
        process.kill()


def test_threads_that_are_gone_are_left_out(spinning: int) -> None:
    assert [tid for tid, *_ in stopped([1 << 22, spinning], copier(spinning))] == [spinning]
