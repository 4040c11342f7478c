"""Snapshots of a daemon that eight clients call all the time: none may say that something hangs.

    python -m tests.faults.healthy_snapshots --times 1000
    python -m tests.faults.healthy_snapshots --times 1000 --registers

Prints how many there were of each first verdict, how many threads and calls were seen, and in full
each verdict that is not that of a healthy daemon. Afterwards the daemon must be as before: the same
process with no more descriptors, no byte of its code changed, and no thread stopped or traced.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.snapshot.take import take
from virtrace.snapshot.verdicts import Verdict, verdicts

CALLS = (
    "domblkinfo vm1 vda",
    "domblkstat vm1 vda",
    "domstats vm1",
    "dominfo vm1",
    "dumpxml vm1",
    "list --all",
    "nodeinfo",
    "pool-list --all",
)
WELL = ("busy", "healthy")
# Bytes that a client prints before it counts as one that calls.
_SOME = 1 << 12


@dataclass
class Seen:
    """What snapshots said. first: how often which verdict; wrong: the others, in full.

    stops: for how long threads were stopped, s.
    """

    first: Counter[str] = field(default_factory=Counter)
    threads: int = 0
    calls: int = 0
    stops: list[float] = field(default_factory=list)
    wrong: list[Verdict] = field(default_factory=list)


@contextmanager
def storm(lab: Lab, folder: Path) -> Iterator[None]:
    """Let eight clients call meanwhile, each another function of the API, on its own connection."""
    with ExitStack() as ends:
        outputs = []
        for number, call in enumerate(CALLS):
            output = folder / f"{number}.txt"
            outputs.append(output)
            yes = subprocess.Popen(["yes", call], stdout=subprocess.PIPE)
            with output.open("wb") as file:
                client = subprocess.Popen(
                    lab.virsh_command(), stdin=yes.stdout, stdout=file, stderr=subprocess.STDOUT
                )
            for process in (client, yes):
                ends.callback(process.wait)
                ends.callback(process.kill)
        wait_until(
            lambda: all(output.stat().st_size > _SOME for output in outputs), "all clients call"
        )
        yield
        assert all(b"error:" not in output.read_bytes() for output in outputs)


@contextmanager
def left_unharmed(lab: Lab) -> Iterator[None]:
    """The daemon is the same before and after."""
    pid, before = lab.pid, descriptors(lab.pid)
    yield
    # Clients have left, also one from before; the daemon takes note of that in its own time.
    wait_until(lambda: not descriptors(pid) - before, "the daemon has no more descriptors")
    assert lab.pid == pid
    assert_untraced_and_intact(pid)


def descriptors(pid: int) -> Counter[str]:
    """What the descriptors of a process lead to."""
    found: Counter[str] = Counter()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        # One of a client that leaves just now.
        with suppress(FileNotFoundError):
            found[os.readlink(file)] += 1
    return found


def snapshots(lab: Lab, times: int, *, registers: bool = False) -> Seen:
    """Take snapshots one after the other. registers: stop threads that run, for a moment."""
    seen = Seen()
    for _ in range(times):
        # As each command does: who reads the files may use a bounded time for them.
        process = inspect(lab.pid)
        look = take(process, registers=registers)
        found = verdicts(look, "libvirtd")
        seen.first[found[0].name] += 1
        seen.threads += len(look.threads)
        seen.calls += sum(thread.request is not None for thread in look.threads)
        seen.stops += [one.stopped for one in look.threads if one.stopped is not None]
        seen.wrong += [verdict for verdict in found if verdict.name not in WELL]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--registers", action="store_true")
    args = parser.parse_args()
    times: int = args.times
    folder = Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    with Lab(folder) as lab, left_unharmed(lab), storm(lab, folder):
        seen = snapshots(lab, times, registers=args.registers)
    print(
        f"{times} snapshots: {dict(seen.first)}; {seen.threads} threads, {seen.calls} calls seen, "
        f"{len(seen.stops)} stops of threads, the longest of {max(seen.stops, default=0):.4f} s"
    )
    for verdict in seen.wrong:
        print(verdict)


if __name__ == "__main__":
    main()
