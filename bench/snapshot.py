"""What looking at a daemon costs a client that calls all the time: the longest of its calls.

    python -m bench.snapshot [--rounds N]

Beside `virtrace snapshot`: nothing, what libvirt's own page on bugs asks for, and a core by gcore.
All take their turn in each round. The table has the median of the rounds and their range.
"""

from __future__ import annotations

import argparse
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
from tests.support.command import ENVIRONMENT, VIRTRACE
from virtrace.lab.daemon import Lab

GDB = ("gdb", "-nx", "-q", "-batch", "-p", "{pid}", "-ex")
WAYS: Mapping[str, tuple[str, ...]] = {
    "nothing": ("sleep", "1"),
    "virtrace snapshot": (*VIRTRACE, "snapshot", "-p", "{pid}"),
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    folder = Path(mkdtemp(prefix="virtrace-bench-", dir="/var/tmp"))
    try:
        folder.chmod(0o711)
        with Lab(folder / "lab") as lab:
            client = Client("untraced", lab)
            found = [
                {name: measure(lab, client, folder, way) for name, way in WAYS.items()}
                for _ in range(rounds)
            ]
            client.end()
    finally:
        shutil.rmtree(folder)
    figures = {
        name: {key: _spread([each[name][key] for each in found]) for key in found[0][name]}
        for name in WAYS
    }
    save("snapshot", {"rounds": rounds, "ways": figures})
    for name, each in figures.items():
        longest, took = each["longest_ms"], each["took_ms"]
        print(
            f"{name:<30} longest call {longest['median']:>7.1f} ms "
            f"({longest['min']:.1f} to {longest['max']:.1f}), took {took['median'] / 1000:.1f} s"
        )
    return 0


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


if __name__ == "__main__":
    sys.exit(main())
