"""Mutants of every kind of file that virtrace reads, each given to commands that read it.

    python -m tests.support.mutants COUNT FOLDER [SEED] [--kind KIND]

Two processes do the work, within limits of time and memory. Prints one JSON object, see `Report`;
an input that a command fails over is kept in FOLDER/failed, under its number.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import gzip
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml
import zstandard

from tests.support import compiled, mutations
from tests.support.paths import DATA
from virtrace.cli.main import main
from virtrace.image.process import inspect
from virtrace.recipe import catalogue
from virtrace.snapshot.format import SNAPSHOT
from virtrace.trace.bundle_reader import FOLDER as TOP
from virtrace.trace.bundle_reader import MAX_BYTES

# Of processor time for one command, and of the whole process.
SECONDS = 5.0
MEBIBYTES = 300
WORKERS = 2
# After so many a new process takes over: what Python keeps of earlier ones is not measured.
CHUNK = 500
# A command that takes this long of real time waits for something.
PATIENCE = 120.0
TAR_FORMATS: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)  # ustar, GNU, pax
# Address space, of which much is never touched.
MOST_MEMORY = 4 << 30

READERS = DATA / "readers"
NAMES = ("error-9.0.0", "stopped-device-with-host-facts-9.0.0", "stopped-qcow2-with-lines-9.0.0",
         "legacy-drive-7.0.0", "qcow2-device-7.0.0", "copy-on-read-9.0.0",
         "discarded-with-lines-9.0.0")  # fmt: skip
TRACES = [
    *(DATA / "explain" / f"{name}.jsonl" for name in NAMES),
    *sorted(READERS.glob("*.jsonl")),
]
SNAPSHOTS = sorted(READERS.glob("*.snapshot"))

Words = list[str]


class Kind:
    """A kind of input; one more is one more class in KINDS.

    share: how often it is drawn, beside the others.
    """

    share = 1

    def __init__(self, scratch: Path) -> None:
        """scratch: a folder for what its mutants are made of."""

    def mutant(self, rng: Random) -> bytes:
        raise NotImplementedError

    def commands(self, file: str, work: Path) -> list[Words]:
        """All that read it. work: a folder for what they write."""
        raise NotImplementedError


# --- Traces


def _trace(rng: Random) -> bytes:
    data = rng.choice(TRACES).read_bytes()
    for _ in range(rng.choice((1, 1, 2, 4))):
        change = rng.choice(
            (_values, _values, _values, _record, _header, mutations.raw, mutations.lines)
        )
        data = _many_events(data, rng) if rng.random() < 0.03 else change(data, rng)
    return data


def _record(data: bytes, rng: Random) -> bytes:
    return mutations.a_line(data, rng, lambda found: [*range(len(found))])


def _values(data: bytes, rng: Random) -> bytes:
    """What a reader takes as it is, while it checks all the rest."""
    return mutations.a_line(data, rng, lambda found: [*range(len(found))], "values")


def _header(data: bytes, rng: Random) -> bytes:
    """The first or one of the last lines."""
    return mutations.a_line(data, rng, lambda found: [0, max(0, len(found) - 2), len(found) - 1])


def _many_events(data: bytes, rng: Random) -> bytes:
    """Calls that are nested deep, or that never end, or hold very much."""
    header, *_ = data.split(b"\n", 1)
    deep = rng.random() < 0.5
    count = rng.choice((60, 300, 1000, 5000))
    names = rng.choice((["f"], ["f", "g"], ["virDomainGetBlockInfo", "qemuDomainGetBlockInfo"]))
    point = rng.choice(("error", "p", "qmp.send", "qmp.reply"))
    result = rng.choice((0, "0x0", -1, None))
    events: list[dict[str, Any]] = []
    spans: list[tuple[int, int | None]] = []

    def add(kind: str, name: str, span: int | None, parent: int | None, values: Any) -> None:
        seq = len(events)
        record = {"type": kind, "seq": seq, "t_ns": seq * 1000, "tid": 1, "name": name}
        events.append({**record, "span": span, "parent": parent, "call": 1, "values": values})

    for number in range(1, count + 1):
        parent = None if number == 1 else number - 1 if deep else 1
        spans.append((number, parent))
        add("enter", names[number % len(names)], number, parent, {"domain": "d", "disk": "vda"})
        if rng.random() < 0.3:
            add("point", point, None, number, {"mon": "0x1", "json": {"id": str(number)}})
        if not deep and number > 1:
            add("exit", names[number % len(names)], number, parent, {"result": result})
    for number, parent in reversed(spans if deep else spans[:1]):
        if rng.random() < 0.99:
            add("exit", names[number % len(names)], number, parent, {"result": result})
    return b"\n".join([header, *(json.dumps(event).encode() for event in events), b""])


class Traces(Kind):
    """As they were written, or compressed."""

    share = 6

    def mutant(self, rng: Random) -> bytes:
        data = _trace(rng)
        packed = rng.random()
        if packed < 0.05:
            data = gzip.compress(data, 1)
        elif packed < 0.1:
            data = zstandard.compress(data, 1)
        return mutations.raw(data, rng) if packed < 0.1 and rng.random() < 0.5 else data

    def commands(self, file: str, work: Path) -> list[Words]:
        base = str(TRACES[0])
        forms = ("perfetto", "chrome", "otlp", "csv", "mermaid", "svg")
        return [
            ["show", file], ["show", "--full", file], ["show", "--json", file],
            ["show", "--summary", file], ["show", "--summary", "--json", file],
            ["show", "--html", str(work / "page.html"), file],
            ["explain", file], ["explain", "--json", file], ["diff", file, base],
            ["diff", "--json", base, file], ["diff", "--full", file, file],
            *(["export", file, "--to", form, "-o", str(work / form)] for form in forms),
            ["bundle", file, "-o", str(work / "b.tar.gz")],
            ["replay", file, "-p", "999999999"],
        ]  # fmt: skip


# --- Bundles


class Bundles(Traces):
    """Made by virtrace itself, and then tampered with."""

    share = 4

    def __init__(self, scratch: Path) -> None:
        traces = (TRACES[0], TRACES[1], TRACES[4], READERS / "rpc.jsonl")
        self._whole = [
            _bundled(trace, scratch / f"{number}.tar.gz") for number, trace in enumerate(traces)
        ]

    def mutant(self, rng: Random) -> bytes:
        kind = rng.choice((0, 1, 1, 1, 2, 2, 3, 4, 5))
        files = dict(rng.choice(self._whole))
        if kind == 1:
            files[TOP + "trace.jsonl"] = _trace(rng)
        elif kind == 2:
            name = rng.choice([*files])
            if name.endswith(".json") and rng.random() < 0.7:
                files[name] = mutations.structure(json.loads(files[name]), rng)
            else:
                files[name] = mutations.raw(files[name], rng)
        elif kind == 3:
            del files[rng.choice([*files])]
        plain = _tar(files)
        if kind >= 4:
            plain = rng.choice((_tricked, _tricked, _header_bits, mutations.raw))(plain, rng)
        packed = gzip.compress(plain, 1) + rng.randbytes(rng.choice((0, 0, 0, 1, 600)))
        return mutations.raw(packed, rng) if kind == 0 else packed

    def commands(self, file: str, work: Path) -> list[Words]:
        return [*super().commands(file, work), *[["bundle", "verify", file]] * 5]


def _bundled(file: Path, made: Path) -> dict[str, bytes]:
    """The files of a bundle of a trace or a snapshot. made: where virtrace writes it."""
    attempt(["bundle", str(file), "-o", str(made)])
    with tarfile.open(made) as bundle:
        files = {one.name: bundle.extractfile(one) for one in bundle if one.isfile()}
        return {name: file.read() for name, file in files.items() if file}


def _tar(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _header_bits(plain: bytes, rng: Random) -> bytes:
    changed = bytearray(plain)
    changed[rng.randrange(512)] = rng.randrange(256)
    if rng.random() < 0.7:
        changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + 256 + sum(changed[156:512]))
    return bytes(changed)


def _tricked(plain: bytes, rng: Random) -> bytes:
    """One more member, of a kind that no bundle has."""
    member = tarfile.TarInfo(
        rng.choice(
            (
                TOP + "trace.jsonl", TOP + "../escaped", "/tmp/virtrace-escaped", TOP + "more",
                "escaped", TOP + "x" * 150, TOP + "..", TOP, TOP + "a/../../escaped", "", ".",
                TOP + "näme", TOP + "a\\..\\b",
            )
        )
    )  # fmt: skip
    member.type = rng.choice(
        (tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
         tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE, b"7", b"x", b"g", b"L", b"S", b"Z")
    )  # fmt: skip
    member.linkname = rng.choice(("", "/etc/passwd", "../../escaped", TOP + "trace.jsonl"))
    body = b"" if member.type != tarfile.REGTYPE else rng.randbytes(rng.choice((0, 10, 600)))
    member.size = rng.choice((len(body), len(body), 0, 2**33 - 1, 100 << 20))
    try:
        header = member.tobuf(rng.choice(TAR_FORMATS))
    except ValueError:
        header = member.tobuf(tarfile.GNU_FORMAT)
    extra = header + body + b"\0" * (-len(body) % 512)
    extra *= rng.choice((1, 1, 1, 2, 100))
    if rng.random() < 0.02:
        # A bomb, larger than what is read of it.
        extra += bytes(MAX_BYTES)
    if rng.random() < 0.5:
        return extra + plain
    return plain.rstrip(b"\0")[:-512] + extra + plain[-1024:]


# --- Snapshots


class Snapshots(Kind):
    """As they were written, or in a bundle."""

    share = 3

    def __init__(self, scratch: Path) -> None:
        self._bundle = _bundled(SNAPSHOTS[0], scratch / "snapshot.tar.gz")

    def mutant(self, rng: Random) -> bytes:
        data = rng.choice(SNAPSHOTS).read_bytes()
        if rng.random() < 0.8:
            data = mutations.structure(json.loads(data), rng)
        else:
            data = mutations.raw(data, rng)
        if rng.random() < 0.3:
            return gzip.compress(_tar({**self._bundle, TOP + SNAPSHOT: data}), 1)
        return data

    def commands(self, file: str, work: Path) -> list[Words]:
        base = str(SNAPSHOTS[0])
        return [
            ["show", file], ["show", "--full", file], ["show", "--json", file],
            ["show", "--html", str(work / "page.html"), file],
            ["explain", file], ["explain", "--json", file],
            ["diff", file, base], ["diff", "--json", base, file], ["diff", file, file],
            ["bundle", file, "-o", str(work / "b.tar.gz")], ["bundle", "verify", file],
        ]  # fmt: skip


# --- Recipes, packs, journals


class Recipes(Kind):
    """The shipped ones: as JSON, which is YAML, or with their lines changed."""

    share = 3

    def mutant(self, rng: Random) -> bytes:
        data = catalogue.file_of(rng.choice(catalogue.shipped())).read_bytes()
        if rng.random() < 0.5:
            return mutations.structure(yaml.safe_load(data), rng)
        for _ in range(rng.choice((1, 1, 4))):
            data = rng.choice((mutations.raw, mutations.lines))(data, rng)
        if rng.random() < 0.05:
            return data.decode("utf-8", "replace").encode("utf-16", "replace")
        return data

    def commands(self, file: str, work: Path) -> list[Words]:
        named = str(shutil.copy(file, work / "r.yaml"))
        return [["recipe", "check", named], ["recipe", "show", named]]


class Packs(Kind):
    share = 2

    def mutant(self, rng: Random) -> bytes:
        data = (READERS / "driver.pack.json").read_bytes()
        if rng.random() < 0.8:
            return mutations.structure(json.loads(data), rng)
        return mutations.raw(data, rng)

    def commands(self, file: str, work: Path) -> list[Words]:
        return [["pack", "show", file]]


class Journals(Kind):
    """What the guard noted of a process; this one ends with its standard input."""

    def __init__(self, scratch: Path) -> None:
        self._child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self._process = inspect(self._child.pid)

    def mutant(self, rng: Random) -> bytes:
        data = (READERS / "guard.journal").read_bytes()
        if rng.random() < 0.7:
            return _record(data, rng)
        return rng.choice((mutations.raw, mutations.lines))(data, rng)

    def commands(self, file: str, work: Path) -> list[Words]:
        guard = Path(os.environ["XDG_CACHE_HOME"], "virtrace", "guard")
        guard.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(file, guard / f"{self._process.pid}-{self._process.start_time}")
        return [["rescue", str(self._process.pid)]]


# --- What compiled recipes write


class Records(Kind):
    share = 3

    def __init__(self, scratch: Path) -> None:
        self._whole = [compiled.apart(file) for file in compiled.FILES]

    def mutant(self, rng: Random) -> bytes:
        said, records = rng.choice(self._whole)
        said, records = {**said}, [*records]
        for _ in range(rng.choice((1, 1, 3))):
            change = rng.choice((_number, _number, _number, _order, _plan))
            said = change(said, records, rng) or said
        data = compiled.joined(said, records)
        _, _, rest = data.partition(b"\n")
        kind = rng.random()
        if kind < 0.1:
            return mutations.structure(said, rng) + b"\n" + rest
        return mutations.raw(data, rng) if kind < 0.2 else data

    def commands(self, file: str, work: Path) -> list[Words]:
        return [["import", file, "-o", str(work / "t.jsonl")]]


def _number(said: Any, records: list[bytes], rng: Random) -> None:
    """Change a number of 1 to 8 bytes, mostly one of a record's beginning."""
    index = rng.randrange(len(records))
    record, size = bytearray(records[index]), rng.choice((1, 2, 4, 8))
    at = rng.randrange(min(len(record), rng.choice((8, 64, 1 << 20))) + 1) // size * size
    odd = rng.choice((0, 1, -1, 7, 1 << 15, 1 << 31, 1 << 32, 1 << 63, -14, rng.getrandbits(64)))
    record[at : at + size] = (odd & (1 << 8 * size) - 1).to_bytes(size, "little")
    records[index] = bytes(record)


def _order(said: Any, records: list[bytes], rng: Random) -> None:
    """Change how many records there are, their order, or the size of one."""
    at, other = rng.randrange(len(records)), rng.randrange(len(records))
    few, many = rng.choice((0, 1, 20)), rng.choice((1, 100))
    changes: tuple[Callable[[], Any], ...] = (
        lambda: records.insert(at, records[other]),
        lambda: records.insert(at, b""),
        lambda: records.insert(at, rng.randbytes(100)),
        lambda: rng.shuffle(records),
        lambda: records.__setitem__(at, records[at][: rng.randrange(len(records[at]) + 1)]),
        lambda: records.__setitem__(at, records[at] + bytes(rng.choice((1, 8, 5000)))),
        lambda: records.__setitem__(slice(at, at + few), [records[other]] * many),
    )
    rng.choice(changes)()
    if not records:
        records.append(b"")


def _plan(said: Any, records: list[bytes], rng: Random) -> Any:
    """Change the plan; its programs are those of the changed one, if there are any."""
    try:
        changed = mutations.structure(json.loads(said["plan"]), rng)
    except (ValueError, RecursionError):
        return said
    try:
        return compiled.with_plan(said, changed)
    except Exception:
        # What `virtrace import` says of it is what is tried.
        return {**said, "plan": changed.decode()}


KINDS = (Traces, Bundles, Snapshots, Recipes, Packs, Journals, Records)


# --- The run


@dataclass(frozen=True)
class Draw:
    """What mutants are drawn from."""

    seed: int = 1
    kinds: tuple[type[Kind], ...] = KINDS


@dataclass
class Report:
    """read: inputs that their command took for what they are. slowest, largest: the command."""

    count: int = 0
    read: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    by_command: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0
    slowest: str = ""
    largest_mib: int = 0
    largest: str = ""

    def add(self, kind: str, words: Words, is_read: bool, seconds: float, mebibytes: int) -> None:
        self.count += 1
        self.read += is_read
        self.by_kind[kind] += 1
        self.by_command[_brief(words)] += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = round(seconds, 2), f"{kind}: {_brief(words)}"
        if mebibytes > self.largest_mib:
            self.largest_mib, self.largest = mebibytes, f"{kind}: {_brief(words)}"


def _brief(words: Words) -> str:
    return " ".join(word for word in words if "/" not in word and not word.isdecimal())


class TooMuch(BaseException):
    """It took more than it may. No command takes it for an error of its own."""


def attempt(words: Words) -> int:
    """The exit status, of which there are five."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
        out.flush()
        err.flush()
    assert isinstance(err.buffer, io.BytesIO)
    said = err.buffer.getvalue().decode()
    if "an error of its own" in said:
        raise AssertionError(said)
    if status not in (0, 1, 2, 3, 4):
        raise AssertionError(f"exit status {status}")
    return status


def measured(words: Words) -> tuple[bool, float, int]:
    """Whether the input was read, processor time in seconds, and the most memory in MiB."""

    def over(*_: object) -> None:
        raise TooMuch(f"more than {SECONDS} s")

    if _resident_mib() > MEBIBYTES / 4:
        # What the mutant was made with, and earlier ones, is given back to the kernel.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    # What cannot be interrupted ends the process instead.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(start + 6 * SECONDS), hard))
    signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        status = attempt(words)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, mebibytes = time.process_time() - start, _peak_mib()
    if mebibytes > MEBIBYTES:
        raise TooMuch(f"{mebibytes} MiB")
    return status != 2, seconds, mebibytes


def _resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


def _peak_mib() -> int:
    """Since it was last cleared."""
    status = Path("/proc/self/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kib) >> 10


def work_through(draw: Draw, numbers: list[int], scratch: Path, keep: Path, to: Connection) -> None:
    """In a process of its own. Sends what it is at, and then what came of it; None at its end."""
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    os.environ.pop("VIRTRACE_DEBUG", None)
    # Else each command looks for translations of its options, which takes longer than many mutants.
    os.environ["LANGUAGE"] = "C"
    sys.stdin = open(os.devnull)  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    work = scratch / "work"
    work.mkdir(parents=True)
    kinds = [kind(scratch) for kind in draw.kinds]
    gc.freeze()
    for number in numbers:
        rng = Random(f"{draw.seed}-{number}")
        [kind] = rng.choices(kinds, [each.share for each in kinds])
        name = type(kind).__name__
        to.send(f"{number} ({name}): to make it")
        file = work / "input"
        file.write_bytes(kind.mutant(rng))
        words = rng.choice(kind.commands(str(file), work))
        doing = f"{number} ({name}): {_brief(words)}"
        to.send(doing)
        try:
            to.send((name, words, *measured(words)))
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "virtrace" in frame.filename] or frames[-1:]
            at = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            to.send((doing, f"{error!r:.300} at {at}"))
            shutil.copy(file, keep / str(number))
        for left in work.iterdir():
            left.unlink()
    to.send(None)


@dataclass
class _Worker:
    """left: the numbers that it has not done. doing: the first of them."""

    process: multiprocessing.process.BaseProcess
    out: Connection
    scratch: Path
    left: list[int]
    heard: float
    doing: str = ""

    def hear(self, report: Report) -> bool:
        """Whether more is to come."""
        self.heard = time.monotonic()
        try:
            said = self.out.recv()
        except EOFError:
            return False
        if isinstance(said, str):
            self.doing = said
        elif said is not None:
            self.left.pop(0)
            if len(said) == 2:
                report.failures.append(": ".join(said))
                print(report.failures[-1], file=sys.stderr, flush=True)
            else:
                report.add(*said)
                if report.count % 1000 == 0:
                    print(f"{report.count} done", file=sys.stderr, flush=True)
        return said is not None


def run(count: int, folder: Path, draw: Draw) -> Report:
    report, keep = Report(), folder / "failed"
    keep.mkdir(parents=True)
    chunks = [[*range(start, min(start + CHUNK, count))] for start in range(0, count, CHUNK)]
    workers: list[_Worker] = []
    begun = 0
    while chunks or workers:
        while chunks and len(workers) < WORKERS:
            begun += 1
            workers.append(_begin(draw, chunks.pop(0), folder / str(begun), keep))
        ready = wait([worker.out for worker in workers], timeout=1)
        for worker in [*workers]:
            if worker.out in ready:
                if worker.hear(report):
                    continue
            elif time.monotonic() - worker.heard < PATIENCE:
                continue
            worker.process.kill()
            worker.process.join()
            workers.remove(worker)
            if worker.left:
                report.failures.append(f"{worker.doing}: the process ended, or hung")
                print(report.failures[-1], file=sys.stderr, flush=True)
                shutil.copy(worker.scratch / "work" / "input", keep / str(worker.left[0]))
                chunks.insert(0, worker.left[1:])
            shutil.rmtree(worker.scratch)
    return report


def _begin(draw: Draw, numbers: list[int], scratch: Path, keep: Path) -> _Worker:
    out, to = multiprocessing.Pipe(duplex=False)
    # Not a fork: that would begin with all the memory of this process.
    process = multiprocessing.get_context("spawn").Process(
        target=work_through, args=(draw, numbers, scratch, keep, to)
    )
    process.start()
    to.close()
    return _Worker(process, out, scratch, numbers, time.monotonic())


def _command_line() -> int:
    """The exit status: 1 where a command failed over a mutant."""
    names = {kind.__name__.lower(): kind for kind in KINDS}
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("count", metavar="COUNT", type=int, help="how many mutants")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="for inputs that failed")
    parser.add_argument("seed", metavar="SEED", type=int, nargs="?", default=Draw.seed)
    parser.add_argument("--kind", choices=names, help="only mutants of this kind")
    args = parser.parse_args()
    kinds = KINDS if args.kind is None else (names[args.kind],)
    found = run(args.count, args.folder, Draw(args.seed, kinds))
    print(json.dumps(vars(found), indent=2))
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(_command_line())
