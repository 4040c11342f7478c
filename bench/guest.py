"""What a trace of QEMU costs a guest that writes: virtrace beside bpftrace and GDB.

    python -m bench.guest [--rounds N] [--writes N]

A guest with Linux overwrites 4 KiB of a raw disk, past the page cache, one write after the other;
nothing raises the mark, nothing fails, and nothing takes long. All contestants take their turn in
every round, with untraced turns before and after each. A figure is a ratio of medians within its
round; the table has the median of the rounds, and their range.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from signal import SIGINT
from statistics import mean, median

from bench.results import save
from tests.support.command import VIRTRACE
from tests.support.linux import Linux, linux
from tests.support.stages import staged
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, MIB, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME
from virtrace.targets.qemu.blocks import node_layout
from virtrace.targets.qemu.guests import qemu_of

READY_SECONDS = 60
# Compares in the kernel, too, and prints where the mark rose.
BPFTRACE = """\
uprobe:{file}:{function} /pid == {pid}/ {{
  $mark = *(uint64*)(arg0 + {mark});
  if ($mark > @marks[arg0]) {{ @marks[arg0] = $mark; printf("%d %d\\n", arg1, arg2); }}
}}
BEGIN {{ printf("ready\\n"); }}
"""
GDB = """\
import gdb
class Raised(gdb.Breakpoint):
    marks = {{}}
    def stop(self):
        bs, offset, size = (int(gdb.parse_and_eval(r)) for r in ("$rdi", "$rsi", "$rdx"))
        where = bs + {mark}
        mark = int.from_bytes(gdb.selected_inferior().read_memory(where, 8).tobytes(), "little")
        if mark > self.marks.get(bs, 0):
            self.marks[bs] = mark
            print(offset, size)
        return False
Raised("*{address}")
print("ready", flush=True)
gdb.execute("continue")
"""


@contextmanager
def running(*command: str, ready: str) -> Iterator[None]:
    """Run a tracer meanwhile. ready: in the line that says that it traces."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as tracer:
        assert tracer.stdout is not None
        said = ""
        for line in tracer.stdout:
            said += line
            if ready in line:
                break
        else:
            raise AssertionError(said)
        try:
            yield
        finally:
            # GDB leaves its breakpoint, which ends the guest, where SIGTERM meets it in a stop.
            tracer.send_signal(SIGINT)
            tracer.communicate(timeout=READY_SECONDS)


def contestants(lab: Lab, folder: Path) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
    """By name: a function that traces until its context ends."""
    pid, _ = qemu_of(lab.pid, GUEST_NAME)
    module = inspect(pid).module("qemu-system-x86_64")
    assert module is not None
    mark, function = node_layout(module).mark, "bdrv_set_dirty"
    address = module.elf.exported_function(function)
    assert address is not None
    options = ("-p", str(lab.pid), "--domain", GUEST_NAME)
    traces = iter(range(1000))

    def by_virtrace(recipe: str, *more: str) -> AbstractContextManager[None]:
        output = folder / f"{next(traces)}.jsonl"
        line = [*VIRTRACE, "record", recipe, *more, *options, "-o", str(output)]
        return running(*line, "--", "sh", "-c", "read line", ready="running")

    script = folder / "mark.bt"
    script.write_text(BPFTRACE.format(file=module.file, function=function, pid=pid, mark=mark))
    gdb = folder / "mark.py"
    gdb.write_text(GDB.format(mark=mark, address=hex(module.base + address)))
    quick = ("-nx", "-q", "-iex", "set auto-solib-add off", "-iex", "set debuginfod enabled off")
    found: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "virtrace": lambda: by_virtrace("high-water"),
        "virtrace --classify-writes": lambda: by_virtrace("high-water", "--classify-writes"),
        "virtrace io-error": lambda: by_virtrace("io-error"),
        "virtrace qmp-slow": lambda: by_virtrace("qmp-slow"),
    }
    if shutil.which("bpftrace"):
        found["bpftrace"] = lambda: running("bpftrace", "-p", str(pid), str(script), ready="ready")
    if shutil.which("gdb"):
        found["GDB"] = lambda: running(
            *("gdb", *quick, "-p", str(pid), "-x", str(gdb)), ready="ready"
        )
    return found


def turn(guest: Linux, writes: int) -> float:
    """The median time of a write, us."""
    times = guest.run(f"io time /dev/vda {MIB} {writes}").split()
    return median(map(int, times)) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writes", type=int, default=1000)
    args = parser.parse_args()
    untraced: list[float] = []
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        lab = Lab(Path(tempfile.mkdtemp(prefix="virtrace-bench-", dir="/var/tmp")))
        try:
            lab.up()
            with staged(lab) as stage:
                disk = file_source(stage.image("vda.raw", GIB))
                with linux(stage, disk_xml("file", disk, "vda")) as guest:
                    guest.run(f"io write /dev/vda {2 * MIB} 4096 1")
                    tracers = contestants(lab, Path(temporary))
                    for name, start in [*tracers.items()] * args.rounds:
                        before = turn(guest, args.writes)
                        with start():
                            traced = turn(guest, args.writes)
                        around = [before, turn(guest, args.writes)]
                        untraced += around
                        ratios.setdefault(name, []).append(traced / mean(around))
        finally:
            lab.down()
    figures = {
        "writes": args.writes,
        "untraced_us": round(median(untraced), 1),
        "ratios": {name: [round(one, 3) for one in found] for name, found in ratios.items()},
    }
    print(f"a guest's write of 4 KiB, untraced: {figures['untraced_us']} us")
    for name, found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f} in {args.rounds} rounds"
        print(f"  {name:27} {median(found):.2f} times as long ({spread})")
    print(f"  json  {save('guest', figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
