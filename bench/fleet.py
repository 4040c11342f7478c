"""`virtrace fleet` on 1,000 traces of 10 calls, of which 13 differ: time, and peak of memory.

Time is of the processor, of all processes, beside what it takes to parse each line. Memory is the
peak of the largest process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.results import save
from tests.support.large import SOURCE, write
from tests.support.paths import DATA
from virtrace.errors import ANSWER_IS_NO

FILES, CALLS = 1000, 10
ODD = range(7, FILES, 77)
OTHER = DATA / "explain" / "discarded-9.0.0.jsonl"
_PR_SET_CHILD_SUBREAPER = 36


def make(folder: Path) -> int:
    """Make the traces; return their bytes."""
    for number in range(FILES):
        source = OTHER if number in ODD else SOURCE
        events = len(source.read_text().splitlines()) - 2
        write(folder / f"host-{number:04}.jsonl", CALLS * events, source)
    return sum(file.stat().st_size for file in folder.iterdir())


def parse(folder: Path) -> float:
    """Seconds of the processor to parse each line."""
    began = time.process_time()
    for file in folder.iterdir():
        for line in file.read_bytes().splitlines():
            json.loads(line)
    return time.process_time() - began


def run(folder: Path, output: Path) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and bytes of the largest process."""
    # Its readers are no children of its own, and come to this process as they end.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
        command = ["-m", "virtrace.cli.main", "fleet", "--json", str(folder)]
        os.execv(sys.executable, [sys.executable, *command])
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == ANSWER_IS_NO
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss << 10


def main() -> int:
    with TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name) / "fleet"
        folder.mkdir()
        size, parsed = make(folder), parse(folder)
        seconds, cpu, memory = run(folder, Path(name) / "answer")
        answer = json.loads((Path(name) / "answer").read_text())
    odd = sum(len(each["files"]) for each in answer["odd"])
    assert odd == len(ODD), answer["odd"]
    figures = {
        "files": FILES,
        "bytes": size,
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "ratio_to_parsing": round(cpu / parsed, 1),
        "peak_mib": memory >> 20,
    }
    output = save("fleet", figures)
    print(f"fleet of {FILES:,} traces of {CALLS} calls, {size / 1e6:.0f} MB: {odd} differ")
    print(f"  time     {seconds:.1f} s, {cpu:.1f} s of processor time,")
    print(f"           {figures['ratio_to_parsing']} times as long as to parse each line")
    print(f"  memory   {memory >> 20} MiB in the largest process")
    print(f"  json     {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
