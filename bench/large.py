"""Offline work on traces of 10^3 to 10^6 events: time and memory of each command, and a plot.

Time is of the processor. Memory is the peak of the process itself (VmHWM), as the kernel counts
it. `screen` is when the first screen of output was there, by the clock on the wall. `json` is how
many times as long it took as to parse each line of the trace alone, right before: that does not
depend on how busy the machine is.

The longest is left out without --most 1000000: with it, all took 20 minutes on two busy processors.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

from bench.results import FOLDER, save
from tests.support import large
from virtrace.errors import ANSWER_IS_NO, DONE

matplotlib.use("svg")
from matplotlib import pyplot

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_SCREEN_LINES = 40
_GOAL_BYTES = 250_000_000
# Prints the peak as the process ends, where nobody can have missed it.
PEAK = (
    "import sys; from virtrace.cli.main import main; status = main(sys.argv[1:]); "
    "lines = open('/proc/self/status').read().split('\\n'); "
    "print([l.split()[1] for l in lines if l.startswith('VmHWM')][0], file=sys.stderr); "
    "sys.exit(status)"
)


def parsed(trace: Path) -> float:
    """Seconds of the processor to parse each line."""
    began = time.process_time()
    with trace.open("rb") as lines:
        for line in lines:
            json.loads(line)
    return time.process_time() - began


def commands(trace: Path, packed: Path, folder: Path) -> Iterator[tuple[str, list[str]]]:
    yield "show", ["show", str(trace)]
    yield "show .gz", ["show", str(packed)]
    yield "explain", ["explain", str(trace)]
    yield "diff", ["diff", str(trace), str(packed)]
    yield "export csv", ["export", "--to", "csv", "-o", str(folder / "out"), str(trace)]
    yield "export perfetto", ["export", "--to", "perfetto", "-o", str(folder / "out"), str(trace)]
    yield "export otlp", ["export", "--to", "otlp", "-o", str(folder / "out"), str(trace)]
    yield "bundle", ["bundle", str(trace), "-o", str(folder / "out.tar.gz")]


def started(words: list[str]) -> tuple[subprocess.Popen[bytes], float]:
    """A command that has printed its first screen, and when it had, in seconds from its start."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", PEAK, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(_SCREEN_LINES):
        process.stdout.readline()
    return process, time.monotonic() - began


def first_screen(words: list[str]) -> float:
    """Seconds until a command, which is not needed any more then, has printed its first screen."""
    process, screen = started(words)
    process.kill()
    process.communicate()
    return round(screen, 2)


def measured(words: list[str]) -> dict[str, Any]:
    began = time.monotonic()
    before = os.times()
    process, screen = started(words)
    assert process.stdout is not None
    while process.stdout.read(1 << 20):
        pass
    told = process.communicate()[1].decode()
    wall = time.monotonic() - began
    after = os.times()
    assert process.returncode in (DONE, ANSWER_IS_NO), told
    return {
        "cpu_s": round(
            after.children_user + after.children_system
            - before.children_user - before.children_system, 2,
        ),
        "wall_s": round(wall, 2),
        "screen_s": round(screen, 2),
        "peak_mib": round(int(told.split()[-1]) / 1024),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=SIZES[-2], help="no trace of more events")
    most = parser.parse_args().most
    found: dict[str, dict[int, dict[str, Any]]] = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    heads = f"{'cpu s':>8} {'screen s':>8} {'peak MiB':>8} {'json':>6} {'load':>6}"
    print(f"{'command':<16} {'events':>9} {heads}")
    for size in SIZES:
        if size > most:
            break
        with TemporaryDirectory(dir=FOLDER) as name:
            folder = Path(name)
            trace = large.write(folder / "trace.jsonl", size)
            packed = folder / "trace.jsonl.gz"
            with trace.open("rb") as plain, gzip.open(packed, "wb", 6) as small:
                shutil.copyfileobj(plain, small)
            for what, words in commands(trace, packed, folder):
                alone = parsed(trace)
                figures = measured(words)
                figures["json"] = round(figures["cpu_s"] / max(alone, 0.001), 1)
                found.setdefault(what, {})[size] = figures
                print(
                    f"{what:<16} {size:>9,} {figures['cpu_s']:>8.2f} {figures['screen_s']:>8.2f} "
                    f"{figures['peak_mib']:>8} {figures['json']:>6} {figures['load']:>6}",
                    flush=True,
                )
                for left in folder.glob("out*"):
                    left.unlink()
                # Also where it is ended before its end.
                output = save("large", found)
    plot(found, FOLDER / "large.svg")
    print(f"json {output}, plot large.svg beside it")
    return 0


def plot(found: dict[str, dict[int, dict[str, Any]]], file: Path) -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "virtrace", "svg.fonttype": "none", "font.size": 9})
    figure, (times, peaks) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for what, sizes in found.items():
        events = list(sizes)
        times.loglog(events, [sizes[n]["cpu_s"] for n in events], marker="o", label=what)
        peaks.semilogx(events, [sizes[n]["peak_mib"] for n in events], marker="o")
    # From what the dearest took: along it, time is in proportion to the events.
    last = max(max(sizes) for sizes in found.values())
    dearest = max(sizes[last]["cpu_s"] for sizes in found.values())
    proportional = [dearest * size / last for size in (SIZES[0], last)]
    times.loglog((SIZES[0], last), proportional, ":", color="gray", label="in proportion")
    times.set(xlabel="events", ylabel="processor time, s")
    times.legend(frameon=False)
    peaks.axhline(_GOAL_BYTES / (1 << 20), linestyle=":", color="gray")
    peaks.set(xlabel="events", ylabel="peak memory, MiB (dotted: 250 MB)", ylim=(0, None))
    times.minorticks_off()
    peaks.minorticks_off()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
