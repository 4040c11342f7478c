"""What looking at a daemon costs a client that calls all the time: the longest of its calls.

    python -m bench.snapshot [--rounds N] [--large]

Beside `virtrace snapshot`: nothing, what libvirt's own page on bugs asks for, and a core by gcore.
All take their turn in each round. The table has the median of the rounds and their range. Then, how
long it takes until `virtrace snapshot` has said its answer, and for how long `--registers` stops a
thread that runs; with `--large`, of a daemon with 120 workers and 200 domains, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp

from bench.cost import Client
from bench.results import save
from tests.faults.storms import start_guests
from tests.support.command import ENVIRONMENT, VIRTRACE
from tests.support.hanging import admin
from virtrace.lab.daemon import Lab

GDB = ("gdb", "-nx", "-q", "-batch", "-p", "{pid}", "-ex")
WAYS: Mapping[str, tuple[str, ...]] = {
    "nothing": ("sleep", "1"),
    "virtrace snapshot": (*VIRTRACE, "snapshot", "-p", "{pid}"),
    "virtrace snapshot --registers": (*VIRTRACE, "snapshot", "--registers", "-p", "{pid}"),
    "gdb, thread apply all bt": (*GDB, "thread apply all bt"),
    "gdb, thread apply all bt full": (*GDB, "thread apply all bt full"),
    "gdb, gcore": (*GDB, "gcore {folder}/core"),
}


def measure(lab: Lab, client: Client, folder: Path, way: tuple[str, ...]) -> dict[str, float]:
    """The longest call meanwhile and the time it took, in ms."""
    command = [word.format(pid=lab.pid, folder=folder) for word in way]
    began = time.monotonic()
    with client.calling() as durations:
        subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True)
    taken = (time.monotonic() - began) * 1000
    for file in folder.glob("core*"):
        file.unlink()
    return {"longest_ms": max(durations), "took_ms": taken}


def first_answer(lab: Lab) -> float:
    """Milliseconds until the first line of a snapshot is there."""
    began = time.monotonic()
    command = [*VIRTRACE, "snapshot", "-p", str(lab.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return (time.monotonic() - began) * 1000


def stops(lab: Lab, client: Client) -> list[float]:
    """For how long `--registers` stopped each thread that ran, ms."""
    command = [*VIRTRACE, "snapshot", "--json", "--registers", "-p", str(lab.pid)]
    with client.calling():
        done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True)
    threads = json.loads(done.stdout)["threads"]
    return [one["stopped_ms"] for one in threads if one["stopped_ms"] is not None]


def enlarge(lab: Lab, folder: Path) -> None:
    """Give a daemon 120 workers and 200 further domains."""
    workers = ("srv-threadpool-set", "libvirtd", "--min-workers", "120", "--max-workers", "120")
    admin(lab, *workers)
    start_guests(lab, 200, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    rounds = args.rounds
    answers = {}
    folder = Path(mkdtemp(prefix="virtrace-bench-", dir="/var/tmp"))
    try:
        folder.chmod(0o711)
        with Lab(folder / "lab") as lab:
            client = Client("untraced", lab)
            found = [
                {name: measure(lab, client, folder, way) for name, way in WAYS.items()}
                for _ in range(rounds)
            ]
            pauses = [pause for _ in range(10 * rounds) for pause in stops(lab, client)]
            client.end()
            answers["20 threads"] = _spread([first_answer(lab) for _ in range(rounds)])
            if args.large:
                enlarge(lab, folder)
                answers["120 workers, 200 domains"] = _spread(
                    [first_answer(lab) for _ in range(rounds)]
                )
    finally:
        shutil.rmtree(folder)
    figures = {
        name: {key: _spread([each[name][key] for each in found]) for key in found[0][name]}
        for name in WAYS
    }
    stopped = _spread(pauses) if pauses else None
    results = {"ways": figures, "answers_ms": answers, "stopped_ms": stopped}
    save("snapshot", {"rounds": rounds, **results})
    for name, each in figures.items():
        longest, took = each["longest_ms"], each["took_ms"]
        print(
            f"{name:<30} longest call {longest['median']:>7.1f} ms "
            f"({longest['min']:.1f} to {longest['max']:.1f}), took {took['median'] / 1000:.1f} s"
        )
    for name, answer in answers.items():
        print(
            f"{name:<30} first answer after {answer['median']:.0f} ms "
            f"({answer['min']:.0f} to {answer['max']:.0f})"
        )
    if stopped is not None:
        print(
            f"{'--registers':<30} stopped {len(pauses)} threads for {stopped['median']:.2f} ms "
            f"({stopped['min']:.2f} to {stopped['max']:.2f})"
        )
    return 0


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
