"""`virtrace fleet` on 1,000 traces of 10 calls, of which 13 differ: time, and peak of memory.

Then again with 30 more files among them, five of each kind: bundles, with a newer version of the
trace format; traces that were cut short; and what cannot be read, as it is binary, of a format that
is not known yet, a gigabyte in gzip, or nested too deeply.

Time is of the processor, of all processes, beside what it takes to parse each line. Memory is the
peak of the largest process.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.results import save
from tests.support.command import virtrace
from tests.support.large import SOURCE, write
from tests.support.paths import DATA
from virtrace.errors import ANSWER_IS_NO, INCOMPLETE

FILES, CALLS, OF_EACH = 1000, 10, 5
READABLE = ("bundle.tar.gz", "cut.jsonl")
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


def make_strange(folder: Path) -> set[str]:
    """Make the other files; return the names of those that cannot be read."""
    usual = (folder / "host-0000.jsonl").read_bytes()
    bundle = folder.with_name("bundle.tar.gz")
    virtrace("bundle", folder / "host-0000.jsonl", "-o", bundle)
    header, rest = usual.split(b"\n", 1)
    contents = {
        "bundle.tar.gz": bundle.read_bytes(),
        "cut.jsonl": usual[:-1000],
        "binary": bytes(range(256)) * 1000,
        "newer.jsonl": usual.replace(b'"version":1', b'"version":99', 1),
        "bomb.jsonl.gz": gzip.compress(header + b"\n" + b"[" * (1 << 30), 1),
        "deep.jsonl": header + b'\n{"type":' + b"[" * 1_000_000 + b"\n" + rest,
    }
    for name, content in contents.items():
        for number in range(OF_EACH):
            (folder / f"host-{number}-{name}").write_bytes(content)
    unreadable = [name for name in contents if name not in READABLE]
    return {f"host-{number}-{name}" for name in unreadable for number in range(OF_EACH)}


def parse(folder: Path) -> float:
    """Seconds of the processor to parse each line."""
    began = time.process_time()
    for file in folder.iterdir():
        for line in file.read_bytes().splitlines():
            json.loads(line)
    return time.process_time() - began


def run(folder: Path, output: Path, status: int) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and bytes of the largest process until now.

    status: what it ends with
    """
    # Its readers are no children of its own, and come to this process as they end.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        command = ["-m", "virtrace.cli.main", "fleet", "--json", str(folder)]
        os.execv(sys.executable, [sys.executable, *command])
    _, ended = os.waitpid(child, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(ended) == status
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, used.ru_maxrss << 10


def main() -> int:
    with TemporaryDirectory(dir="/var/tmp") as name:
        folder, said = Path(name) / "fleet", Path(name) / "answer"
        folder.mkdir()
        size, parsed = make(folder), parse(folder)
        seconds, cpu, memory = run(folder, said, ANSWER_IS_NO)
        (odd,) = json.loads(said.read_text())["odd"]
        unreadable = make_strange(folder)
        seconds_strange, cpu_strange, memory_strange = run(folder, said, INCOMPLETE)
        answer = json.loads(said.read_text())
    assert len(odd["files"]) == len(ODD), odd
    # For the same reason; and those that were cut short, as their last call has no answer.
    groups = {tuple(each["files"]): each["differs"] for each in answer["odd"]}
    cut = groups.pop(tuple(f"host-{number}-cut.jsonl" for number in range(OF_EACH)))
    assert [each["value"] for each in cut] == ["disk-sizes: incomplete"], cut
    assert groups == {tuple(odd["files"]): odd["differs"]}, groups
    assert {each["file"] for each in answer["left_out"]} == unreadable, answer["left_out"]
    figures = {
        "files": FILES,
        "bytes": size,
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu, 1),
        "ratio_to_parsing": round(cpu / parsed, 1),
        "peak_mib": memory >> 20,
        "strange_seconds": round(seconds_strange, 1),
        "strange_cpu_s": round(cpu_strange, 1),
        "strange_peak_mib": memory_strange >> 20,
    }
    output = save("fleet", figures)
    print(f"fleet of {FILES:,} traces of {CALLS} calls, {size / 1e6:.0f} MB: {len(ODD)} differ")
    print(f"  time     {seconds:.1f} s, {cpu:.1f} s of processor time,")
    print(f"           {figures['ratio_to_parsing']} times as long as to parse each line")
    print(f"  memory   {memory >> 20} MiB in the largest process")
    print(f"and {len(unreadable) + len(READABLE) * OF_EACH} strange files: the same {len(ODD)}")
    print(f"  left out {len(unreadable)}, which are those that cannot be read")
    print(f"  time     {seconds_strange:.1f} s, {cpu_strange:.1f} s of processor time")
    print(f"  memory   {memory_strange >> 20} MiB in the largest process")
    print(f"  json     {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
