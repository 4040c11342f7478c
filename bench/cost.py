"""What a trace costs: virtrace beside what people would use instead, in one run on one daemon.

    python -m bench.cost [--rounds N] [--calls N] [--debug-info] [--only WORD]...

A client calls virDomainGetBlockInfo of a libvirtd of the lab; a second one, whose calls nobody
traces, virDomainGetState. All contestants take their turn in every round, with calls of an
untraced daemon before and after each, so that what else the machine does hits all alike. Each
figure is a ratio within its round; the table has the median of the rounds, and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.contestants import (
    ATTACH_FLOOR,
    CONTESTANTS,
    FLOOR,
    NOTHING,
    Chain,
    Contestant,
    Ground,
    Running,
    asked,
    chain_of,
)
from bench.results import REPOSITORY, save
from tests.support.writer import writers_of
from virtrace.engines.uprobes import kernel
from virtrace.lab.daemon import Lab

PAGE = REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- begin: made by bench/cost.py -->", "<!-- end -->"
GUEST, DISK = "vm1", "vda"
CANNOT_RUN = "cannot run"
# Until what was recorded is in the file, and what came of an attach is over.
SETTLE_SECONDS = 0.2

# What a figure is called in the table, and what one of it is.
FIGURES = {
    "traced": "traced call",
    "traced_p99": "its p99",
    "of_floor": "added, of the floor's",
    "beside": "untraced call beside",
    "beside_p99": "its p99",
    "attach": "gap at attach",
    "detach": "gap at detach",
    "ready": "s until ready",
    "gone": "s to end",
    "programs": "kernel's count",
    "daemon_cpu": "daemon's CPU",
    "tracing_cpu": "tracer's CPU meanwhile",
    "tracer_cpu": "tracer's CPU in all",
    "bytes": "bytes a call",
    "captured": "values captured",
}


class Client:
    """See client.py."""

    def __init__(self, kind: str, lab: Lab) -> None:
        argv = [sys.executable, str(Path(__file__).with_name("client.py")), kind, lab.uri]
        self._process = subprocess.Popen(
            [*argv, GUEST, DISK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.made = 0
        self.info: list[int] = self._answer()

    def calls(self, number: int) -> list[float]:
        """How long each took, in ms."""
        self._say(str(number))
        return self._durations()

    @contextmanager
    def calling(self) -> Iterator[list[float]]:
        """All the time; how long each took is in the list afterwards."""
        durations: list[float] = []
        self._say("until")
        try:
            yield durations
        finally:
            self._say("now")
            durations += self._durations()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _durations(self) -> list[float]:
        calls = self._answer()
        self.made += len(calls)
        return [taken / 1e6 for _, taken in calls]

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def cpu_ms(pids: Iterable[int]) -> float:
    """What the threads of these processes have used of a processor."""
    total = 0
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(file.read_text().split()[0])
            except OSError:
                continue
    return total / 1e6


def programs_ms(pids: Iterable[int]) -> float:
    """How long the programs ran that these processes have in the kernel, by its own count."""
    taken = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/fdinfo").glob("*"):
            try:
                lines = file.read_text().splitlines()
            except OSError:
                continue
            told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if "run_time_ns" in told:
                # Two processes may have the same one.
                taken[told["prog_id"]] = int(told["run_time_ns"])
    return sum(taken.values()) / 1e6


def family(pid: int | None) -> set[int]:
    """A process with all that came of it."""
    if pid is None:
        return set()
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


class Bench:
    """The two clients of a lab, and the rounds in which contestants take their turn."""

    def __init__(self, lab: Lab, folder: Path, calls: int) -> None:
        self.lab = lab
        self.folder = folder
        self.calls = calls
        self.traced = Client("traced", lab)
        self.other = Client("untraced", lab)
        self.chain: Chain = chain_of(lab, folder, lambda: self._call())
        self.asked = asked(self.chain, lab, GUEST, DISK, self.traced.info)
        self._runs = 0

    def _call(self) -> None:
        self.traced.calls(1)

    def end(self) -> None:
        self.traced.end()
        self.other.end()

    def measure(self, contestant: Contestant) -> dict[str, float]:
        """One turn. Times in ms; RuntimeError where it cannot run."""
        self._runs += 1
        output = self.folder / f"{self._runs}.out"
        before = self.traced.calls(self.calls)
        started: list[Running] = []
        ground = Ground(self.lab, self.folder, self.chain, self._call)
        found = self._gap(
            "attach", "ready", lambda: started.append(_start(contestant, ground, output))
        )
        running = started[0]
        if contestant.attach_only:
            return found
        try:
            found |= self._cost(contestant, running)
        finally:
            _settle(running.output)
            found |= self._gap("detach", "gone", running.end)
        if contestant.facts and running.output:
            facts = contestant.facts(running.output, self._offset)
            made = self.traced.made - self._made
            found["captured"] = (
                sum(min(facts[key], times * made) for key, times in self.asked.items()) / made
            )
            running.output.unlink()
        around = before + self.traced.calls(self.calls)
        found["around"] = statistics.median(around)
        found["around_p99"] = p99(around)
        return found

    def _cost(self, contestant: Contestant, running: Running) -> dict[str, float]:
        self._made = self.traced.made
        # A trace is read as a whole.
        self._offset = _size(running.output)
        # The first call of all meets what is yet to be set up.
        self.traced.calls(2)
        _settle(running.output)
        daemon, tracers, size = {self.lab.pid}, family(running.pid), _size(running.output)
        if running.output is not None:
            # No child of GDB.
            tracers.update(writers_of(running.output))
        with kernel.statistics():
            daemon_ms, tracer_ms, programs = cpu_ms(daemon), cpu_ms(tracers), programs_ms(tracers)
            alone = self.traced.calls(self.calls)
            programs = programs_ms(tracers) - programs
            tracing_ms = cpu_ms(tracers)
        _settle(running.output)
        found = {
            "traced_ms": statistics.median(alone),
            "traced_p99_ms": p99(alone),
            "programs_ms": programs / self.calls,
            "daemon_cpu_ms": (cpu_ms(daemon) - daemon_ms) / self.calls,
            "tracing_cpu_ms": (tracing_ms - tracer_ms) / self.calls,
            "tracer_cpu_ms": (cpu_ms(tracers) - tracer_ms) / self.calls,
            "bytes": (_size(running.output) - size) / self.calls,
        }
        with self.other.calling() as beside:
            self.traced.calls(self.calls // 2)
        return {
            **found,
            "beside_ms": statistics.median(beside),
            "beside_p99_ms": p99(beside),
        }

    def _gap(self, gap: str, took: str, work: Callable[[], None]) -> dict[str, float]:
        """How long it took, in s, and the longest call of a client that calls all the time, in ms.

        gap, took: what these two are called.
        """
        with self.other.calling() as durations:
            began = time.monotonic()
            work()
            seconds = time.monotonic() - began
            time.sleep(SETTLE_SECONDS)
        return {gap: max(durations), took: seconds}


def _start(contestant: Contestant, ground: Ground, output: Path) -> Running:
    if contestant.start is None:
        return Running(None, None, lambda: None)
    return contestant.start(ground, output)


def _settle(output: Path | None) -> None:
    """Until nothing more is written: what comes late some lose when they end."""
    size = None
    while size != (size := _size(output)):
        time.sleep(SETTLE_SECONDS)


def _size(output: Path | None) -> int:
    return output.stat().st_size if output and output.exists() else 0


def ratios(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Of one round: each contestant's figures against those of the same round."""
    nothing, floor = found[NOTHING], found.get(FLOOR)
    gap = found.get(ATTACH_FLOOR, {}).get("attach")
    result: dict[str, dict[str, float]] = {}
    for name, own in found.items():
        row = result[name] = {}
        if gap:
            row |= {key: own[key] / gap for key in ("attach", "detach") if key in own}
        if "traced_ms" not in own:
            continue
        row["traced"] = own["traced_ms"] / own["around"]
        row["programs"] = own["programs_ms"] / own["around"]
        row["traced_p99"] = own["traced_p99_ms"] / own["around_p99"]
        if floor:
            row["of_floor"] = (row["traced"] - 1) / (floor["traced_ms"] / floor["around"] - 1)
        for key in "beside", "beside_p99":
            row[key] = own[f"{key}_ms"] / nothing[f"{key}_ms"]
        for key in "daemon_cpu", "tracing_cpu", "tracer_cpu":
            row[key] = own[f"{key}_ms"] / nothing["daemon_cpu_ms"]
        for key in "bytes", "ready", "gone":
            row[key] = own[key]
        if "captured" in own:
            row["captured"] = own["captured"]
    return result


def run(
    lab: Lab,
    folder: Path,
    rounds: int,
    calls: int,
    only: Sequence[str] = (),
    advance: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """All rounds; what came of them as JSON has it. advance: called before each turn."""
    needed = (NOTHING, FLOOR, ATTACH_FLOOR)
    chosen = [
        one
        for one in CONTESTANTS
        if not only or one.name in needed or any(word in one.name for word in only)
    ]
    cannot = {one.name: why for one in chosen if (why := one.missing())}
    bench = Bench(lab, folder, calls)
    measured: list[dict[str, dict[str, float]]] = []
    try:
        for number in range(1, rounds + 1):
            found: dict[str, dict[str, float]] = {}
            for contestant in chosen:
                if contestant.name in cannot:
                    continue
                advance(f"round {number} of {rounds}: {contestant.name}")
                try:
                    found[contestant.name] = bench.measure(contestant)
                except (RuntimeError, subprocess.SubprocessError) as why:
                    cannot[contestant.name] = str(why)
            measured.append(found)
    finally:
        bench.end()
    rows = [ratios(found) for found in measured]
    return {
        "machine": machine(lab),
        "stops_a_call": bench.chain.stops,
        "values_asked": sum(bench.asked.values()),
        "rounds": rounds,
        "calls_a_round": calls,
        "contestants": {
            one.name: (
                {"cannot_run": cannot[one.name]}
                if one.name in cannot
                else {
                    key: spread([row[one.name][key] for row in rows if key in row[one.name]])
                    for key in FIGURES
                    if any(key in row[one.name] for row in rows)
                }
            )
            for one in chosen
        },
        "measured": measured,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {"median": round(middle, 3), "min": round(low, 3), "max": round(high, 3)}


def machine(lab: Lab) -> dict[str, str]:
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    versions = {
        name: _first_line(*command)
        for name, command in {
            "gdb": ("gdb", "--version"),
            "qemu": (lab.system.emulator, "--version"),
            "bpftrace": ("bpftrace", "--version"),
        }.items()
    }
    try:
        import frida

        versions["frida"] = frida.__version__
    except ImportError:
        versions["frida"] = "not installed"
    return {
        "processor": processor[1] if processor else platform.machine(),
        "processors": str(len(os.sched_getaffinity(0))),
        "kernel": re.sub(r"[^\d.].*", "", platform.release()),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "libvirt": ".".join(map(str, lab.libvirt_version))
        + (", with debug info" if lab.debug_info else ", as the distribution has it, stripped"),
        **versions,
    }


def _first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.partition("\n")[0]


# --- For people.


def cells(result: Mapping[str, Any], name: str, between: str) -> list[str]:
    row = result["contestants"][name]
    if "cannot_run" in row:
        return [CANNOT_RUN]
    return [_cell(key, row.get(key), result, between) for key in FIGURES]


def _cell(key: str, figure: Mapping[str, float] | None, result: Any, between: str) -> str:
    if figure is None:
        return ""
    median = figure["median"]
    if key == "captured":
        return f"{median:g} of {result['values_asked']}"
    if key == "bytes":
        return f"{median:,.0f}"
    low, high = _short(figure["min"]), _short(figure["max"])
    return f"{_short(median)}{between}{low}-{high}"


def _short(ratio: float) -> str:
    if 0 < abs(ratio) < 0.1:
        return f"{ratio:.3f}"
    return f"{ratio:.2f}" if abs(ratio) < 10 else f"{ratio:.0f}"


def table(result: Mapping[str, Any]) -> Any:
    from rich.box import SIMPLE

    made = Table(box=SIMPLE, pad_edge=False, caption=_legend(result))
    made.add_column("")
    for title in FIGURES.values():
        made.add_column(title, justify="right")
    for name in result["contestants"]:
        made.add_row(name, *cells(result, name, "\n"))
    return made


def markdown(result: Mapping[str, Any]) -> str:
    lines = [
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
        "",
        _legend(result),
        "",
        "| |" + "".join(f" {title} |" for title in FIGURES.values()),
        "|---|" + "---|" * len(FIGURES),
    ]
    for name in result["contestants"]:
        lines.append(f"| {name} |" + "".join(f" {cell} |" for cell in cells(result, name, "<br>")))
    return "\n".join(lines) + "\n"


def _legend(result: Mapping[str, Any]) -> str:
    said = [
        f"Ratios, median and range of {result['rounds']} rounds of {result['calls_a_round']} "
        f"calls; {result['stops_a_call']} stops a call."
    ]
    said += [
        f"{name} cannot run: {row['cannot_run']}."
        for name, row in result["contestants"].items()
        if "cannot_run" in row
    ]
    return "\n".join(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--debug-info", action="store_true", help="libvirt with debug info")
    parser.add_argument("--only", metavar="WORD", action="append", default=[])
    parser.add_argument("--page", action="store_true", help=f"put the table into {PAGE.name}")
    args = parser.parse_args()

    console = Console()
    # Narrower than this no figure is whole.
    console.width = max(console.width, 156)
    folder = Path(mkdtemp(prefix="virtrace-bench-", dir="/var/tmp"))
    try:
        with Progress(console=console, transient=True) as progress:
            turns = progress.add_task("a libvirtd of the lab", total=None)
            lab = Lab(
                folder / "lab",
                debug_info=args.debug_info,
                progress=lambda line: progress.update(turns, description=line),
            )
            folder.chmod(0o711)
            with lab:
                progress.update(turns, total=args.rounds * len(CONTESTANTS))

                def advance(line: str) -> None:
                    progress.update(turns, advance=1, description=line)

                result = run(lab, folder, args.rounds, args.calls, args.only, advance)
    finally:
        shutil.rmtree(folder)
    name = "cost-debug-info" if args.debug_info else "cost"
    output = save(name, result)
    console.print(table(result))
    print(f"json  {output}")
    if args.page:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
