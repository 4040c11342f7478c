"""A daemon that is traced over and over while clients call it all the time: what it costs them.

    python -m tests.faults.cycles --times 1000

Four clients ask for the numbers of a disk, which is traced; a fifth for the state of the guest,
which is not. After each cycle the daemon must be as it was. Prints the waits of the fifth, by what
the tracer did then, and what became of the daemon's memory and descriptors; docs/safety.md has
the figures of a full run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.image.process import read_status
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import read_trace

TRACED, UNTRACED = "domblkinfo vm1 vda", "domstate vm1"
# What was begun so long after the attach is not counted to it: by then all breakpoints are set.
ATTACH_SECONDS = DETACH_SECONDS = 0.2


@dataclass
class Client:
    """virsh that gives one command all the time. waits: when each call began and ended."""

    lab: Lab
    command: str
    waits: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def calling(self) -> Iterator[None]:
        virsh = subprocess.Popen(
            self.lab.virsh_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        ended = threading.Event()
        thread = threading.Thread(target=self._call, args=(virsh, ended))
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(60)
            virsh.kill()
            virsh.communicate()

    def _call(self, virsh: subprocess.Popen[str], ended: threading.Event) -> None:
        assert virsh.stdin is not None
        assert virsh.stdout is not None
        last = {TRACED: "Physical:", UNTRACED: "running"}[self.command]
        while not ended.is_set():
            began = time.monotonic()
            virsh.stdin.write(self.command + "\n")
            for line in virsh.stdout:
                if line.startswith("error:"):
                    self.failed.append(line.strip())
                if line.startswith((last, "error:")):
                    break
            else:
                self.failed.append("virsh ended")
                return
            self.waits.append((began, time.monotonic()))


@dataclass(frozen=True)
class Cycle:
    """When the daemon was traced, by the clock of the clients.

    whole: nothing was switched off, as it is where a busy machine makes it dear.
    """

    begin: float
    end: float
    whole: bool = True


def cycle(lab: Lab, folder: Path) -> Cycle:
    """Attach, trace twenty calls, detach; AssertionError where it leaves anything behind."""
    pid, output = lab.pid, folder / "t.jsonl"
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb", "-p", str(pid)]
    record = subprocess.Popen(
        [*command, "--calls", "20", "-o", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    begin = _until(lab, record, traced=True)
    end = _until(lab, record, traced=False)
    _, said = record.communicate(timeout=60)
    assert record.returncode == 0, said
    trace = read_trace(output)
    assert trace.problems == []
    assert trace.footer is not None
    assert (trace.footer["reason"], trace.footer["detached"]) == ("limit", True)
    assert_untraced_and_intact(pid)
    output.unlink()
    return Cycle(begin, end, trace.switched_off == [])


def _until(lab: Lab, record: subprocess.Popen[str], *, traced: bool) -> float:
    def has_happened() -> bool:
        status = read_status(lab.pid)
        assert status is not None, "the daemon has ended"
        return (status["TracerPid"] != "0") is traced or (traced and record.poll() is not None)

    wait_until(has_happened, "the trace begins" if traced else "the trace ends")
    return time.monotonic()


@dataclass(frozen=True)
class Size:
    rss_kib: int
    descriptors: int


def size(lab: Lab) -> Size:
    status = read_status(lab.pid)
    assert status is not None
    return Size(int(status["VmRSS"].split()[0]), len(os.listdir(f"/proc/{lab.pid}/fd")))


def waits_of(client: Client, cycles: Sequence[Cycle]) -> dict[str, list[float]]:
    """In ms, by what the tracer did: each call counts to the first of these it falls into."""
    found: dict[str, list[float]] = {"attach": [], "detach": [], "traced": [], "untraced": []}
    remaining = list(cycles)
    for began, ended in client.waits:
        while remaining and remaining[0].end + DETACH_SECONDS < began:
            remaining.pop(0)
        now = remaining[0] if remaining else Cycle(float("inf"), float("inf"))
        if ended < now.begin:
            kind = "untraced"
        elif began < now.begin + ATTACH_SECONDS:
            kind = "attach"
        elif ended > now.end - DETACH_SECONDS:
            kind = "detach"
        else:
            kind = "traced"
        found[kind].append((ended - began) * 1000)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    args = parser.parse_args()
    with Lab(Path(mkdtemp(prefix="virtrace-faults-", dir="/var/tmp"))) as lab:
        pid = lab.pid
        clients = [Client(lab, TRACED) for _ in range(args.clients)]
        other = Client(lab, UNTRACED)
        cycles: list[Cycle] = []
        sizes: list[Size] = []
        with ExitStack() as running, TemporaryDirectory() as folder:
            for client in (*clients, other):
                running.enter_context(client.calling())
            try:
                for done in range(1, args.times + 1):
                    cycles.append(cycle(lab, Path(folder)))
                    sizes.append(size(lab))
                    if done % 50 == 0:
                        print(f"{done} cycles, {sizes[-1]}", flush=True)
            finally:
                report(cycles, sizes, clients, other)
        assert lab.pid == pid


def report(
    cycles: Sequence[Cycle], sizes: Sequence[Size], clients: Sequence[Client], other: Client
) -> None:
    failed = [message for client in (*clients, other) for message in client.failed]
    calls = sum(len(client.waits) for client in (*clients, other))
    print(f"{len(cycles)} cycles, {calls:,} calls, {len(failed)} failed", *failed[:5])
    print("something was switched off in", sum(not cycle.whole for cycle in cycles))
    warm = len(sizes) // 10
    if sizes:
        print("after", warm, "cycles:", sizes[warm], "at the end:", sizes[-1])
    for kind, waits in waits_of(other, cycles).items():
        if waits:
            print(
                f"{UNTRACED}, {kind}: {len(waits):,} calls, "
                f"median {statistics.median(waits):.1f} ms, longest {max(waits):.1f} ms"
            )
    traced = [wait for client in clients for wait in waits_of(client, cycles)["traced"]]
    if traced:
        print(f"{TRACED}, traced: median {statistics.median(traced):.1f} ms")


if __name__ == "__main__":
    main()
