"""GDB killed by SIGKILL while it traces a daemon: what becomes of the daemon.

    python -m tests.faults.killed --times 200               # while nothing is called
    python -m tests.faults.killed --times 50 --clients 4    # while four clients call all the time

Prints how many daemons lived on, unharmed, and how long after the kernel had let go of them the
last breakpoint was gone; docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.binary.x86_64 import ABI
from virtrace.guard.journal import PatchedBytes
from virtrace.image.memory import ProcessMemory
from virtrace.image.process import inspect, read_status
from virtrace.lab.daemon import Lab


@dataclass(frozen=True)
class Killed:
    """What came of it.

    said: by `virtrace record` and the guard. open_ms: from when the daemon was let go until its
    last breakpoint was gone; 0 where that was before.
    """

    said: str
    open_ms: float


def killed_while_tracing(lab: Lab, folder: Path, clients: int = 0, wait: float = 0.0) -> Killed:
    """wait: seconds, before the kill."""
    pid = lab.pid
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb", "-p", str(pid)]
    record = subprocess.Popen(
        [*command, "-o", str(folder / "trace.jsonl")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert record.stdout is not None
    if not any("Ctrl-C" in line for line in record.stdout):
        raise AssertionError(record.communicate()[1])
    places = wait_for_breakpoints(pid)
    status = read_status(pid)
    assert status is not None
    with calling(lab, clients):
        time.sleep(wait)
        with closing(ProcessMemory(pid)) as memory:
            os.kill(int(status["TracerPid"]), signal.SIGKILL)
            while (tracer := read_status(pid)) is not None and tracer["TracerPid"] != "0":
                pass
            let_go = time.monotonic()
            while any(memory.read_available(place.address, 1) == place.written for place in places):
                assert time.monotonic() < let_go + 30, "breakpoints were left"
            open_ms = (time.monotonic() - let_go) * 1000
        # To its end: the guard writes there too.
        _, said = record.communicate(timeout=30)
    assert record.returncode == 4, said
    return Killed(said, open_ms)


def wait_for_breakpoints(pid: int) -> list[PatchedBytes]:
    """Those in the driver. The terminal is told of a trace before they are set."""
    driver = inspect(pid).module("libvirt_driver_qemu.so")
    assert driver is not None
    assert ABI.breakpoint is not None
    instruction = ABI.breakpoint
    found = wait_until(lambda: driver.elf.breakpoints(driver.base, instruction), "breakpoints")
    return [PatchedBytes(address, was, instruction) for address, was in found]


@contextmanager
def calling(lab: Lab, clients: int) -> Iterator[None]:
    """So many clients that ask for the numbers of a disk all the time."""
    asked = subprocess.list2cmdline(lab.virsh_command("domblkinfo", "vm1", "vda"))
    loop = ["sh", "-c", f"while :; do {asked} >/dev/null 2>&1; done"]
    running = [subprocess.Popen(loop, start_new_session=True) for _ in range(clients)]
    try:
        yield
    finally:
        for client in running:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()


def lives(lab: Lab, pid: int) -> bool:
    """It runs; and then it is unharmed, or this raises AssertionError."""
    status = read_status(pid)
    if status is None or status["State"].startswith("Z"):
        return False
    assert_untraced_and_intact(pid)
    assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0
    return True


class LabWhileItLives:
    """A lab, and another one once its daemon has ended."""

    def __init__(self) -> None:
        self._lab: Lab | None = None

    def __enter__(self) -> LabWhileItLives:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> Lab:
        """The one there is, or a new one."""
        if self._lab is None:
            self._lab = Lab(Path(mkdtemp(prefix="virtrace-faults-", dir="/var/tmp")))
            self._lab.up()
        return self._lab

    def down(self) -> None:
        if self._lab is not None:
            self._lab.down()
            self._lab = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clients", type=int, default=0)
    args = parser.parse_args()
    lived = 0
    open_ms = []
    with LabWhileItLives() as labs:
        for _ in range(args.times):
            lab = labs.up()
            pid = lab.pid
            with TemporaryDirectory() as folder:
                wait = random.uniform(0.2, 0.6) if args.clients else random.uniform(0, 0.1)
                killed = killed_while_tracing(lab, Path(folder), args.clients, wait)
            open_ms.append(killed.open_ms)
            if lives(lab, pid):
                lived += 1
            else:
                labs.down()
    print(f"{lived} of {len(open_ms)} daemons lived on, with {args.clients} clients calling")
    median, longest = statistics.median(open_ms), max(open_ms)
    # Longer than it was, where this process had to wait for a processor.
    within = sum(ms <= 1 for ms in open_ms)
    print(f"breakpoints without a tracer: {median:.2f} ms (median), {longest:.2f} ms (longest)")
    print(f"no more than 1 ms in {within} of {len(open_ms)}")


if __name__ == "__main__":
    main()
