"""Snapshots of a daemon that eight clients call all the time: none may say that something hangs.

    python -m tests.faults.healthy_snapshots --times 1000

Prints how many there were of each first verdict, how many threads and calls were seen, and in full
each verdict that is not that of a healthy daemon.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

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
    """What snapshots said. first: how often which verdict; wrong: the others, in full."""

    first: Counter[str] = field(default_factory=Counter)
    threads: int = 0
    calls: int = 0
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


def snapshots(lab: Lab, times: int) -> Seen:
    """Take snapshots one after the other."""
    process, seen = inspect(lab.pid), Seen()
    for _ in range(times):
        look = take(process)
        found = verdicts(look, "libvirtd")
        seen.first[found[0].name] += 1
        seen.threads += len(look.threads)
        seen.calls += sum(thread.request is not None for thread in look.threads)
        seen.wrong += [verdict for verdict in found if verdict.name not in WELL]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=1000)
    times: int = parser.parse_args().times
    folder = Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    with Lab(folder) as lab, storm(lab, folder):
        seen = snapshots(lab, times)
    print(f"{times} snapshots: {dict(seen.first)}; {seen.threads} threads, {seen.calls} calls seen")
    for verdict in seen.wrong:
        print(verdict)


if __name__ == "__main__":
    main()
