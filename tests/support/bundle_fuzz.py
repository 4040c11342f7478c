"""Mutated bundles and traces, each given to commands that read them, in this one process.

    python bundle_fuzz.py SEED COUNT FOLDER

Prints one JSON object: `failures` (what was raised, by whom, over which input), `slowest_s` of
processor time, `peak_mib` of this process, and how many inputs were read and refused. An input
that fails is kept in FOLDER.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import signal
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from virtrace.bundle import archive
from virtrace.bundle.collect import HostFacts, make
from virtrace.cli.main import main
from virtrace.trace.archive import FOLDER as TOP
from virtrace.trace.archive import MAX_BYTES
from virtrace.trace.format import unavailable
from virtrace.trace.reader import read_trace

SECONDS = 5.0
DATA = Path(__file__).parents[1] / "data"
NAMES = ("error-9.0.0", "stopped-device-with-host-facts-9.0.0", "stopped-qcow2-with-lines-9.0.0",
         "legacy-drive-7.0.0", "qcow2-device-7.0.0")  # fmt: skip
TRACES = [(DATA / "explain" / f"{name}.jsonl").read_bytes() for name in NAMES]
ODD: list[Any] = [
    None, True, -1, 0, 2**63, 2**64, -(2**70), 10**39, 1e308, -1e-308, "", "0x0", "x" * 5000,
    "\ud800", "\x00\x1b[2J", [], {}, [[]], {"": {}}, {"unavailable": 7}, {"text": 1, "length": ""},
    {"bytes": "!"}, {"from": [], "to": {}}, "json:{", 'json:{"file": 7}', "<domain/>", "<a",
    "/" * 300, "../../etc/passwd", "://", "nbd://[::1", "'", '"', "-", "=,=,", "%", "{}", "[1]",
]  # fmt: skip
FACTS = HostFacts(unavailable("not asked"), {}, unavailable("not asked"))


class TooSlow(Exception):
    """It took more processor time than it may."""


def mutated_trace(rng: random.Random) -> bytes:
    data = rng.choice(TRACES)
    for _ in range(rng.choice((1, 1, 2, 5))):
        often = (value,) * 12
        data = rng.choice((bits, cut, lines, deep, number, *often))(data, rng)
    return data


def mutated_bundle(rng: random.Random) -> bytes:
    kind = rng.choice((0, 1, 1, 1, 2, 3, 4, 5))
    if kind == 0:
        return rng.choice((bits, cut))(rng.choice(BUNDLES), rng)
    files = dict(rng.choice(FILES))
    if kind == 1:
        files["trace.jsonl"] = mutated_trace(rng)
    elif kind == 2:
        name = rng.choice(list(files))
        files[name] = rng.choice((bits, cut, value))(files[name], rng)
    elif kind == 3:
        del files[rng.choice(list(files))]
    plain = gzip.decompress(archive.pack(files))
    if kind >= 4:
        plain = rng.choice((tricked, tricked, header_bits, cut))(plain, rng)
    packed = gzip.compress(plain, 1)
    return packed + rng.randbytes(rng.choice((0, 0, 0, 1, 600)))


def bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def lines(data: bytes, rng: random.Random) -> bytes:
    all_lines = data.splitlines(keepends=True)
    if not all_lines:
        return data
    one, other = rng.randrange(len(all_lines)), rng.randrange(len(all_lines))
    change: Callable[[], Any] = rng.choice(
        (
            lambda: all_lines.pop(one),
            lambda: all_lines.insert(one, all_lines[other]),
            lambda: all_lines.insert(one, b"\n"),
            lambda: all_lines.insert(one, rng.randbytes(40) + b"\n"),
            lambda: all_lines.reverse(),
        )
    )
    change()
    return b"".join(all_lines)


def value(data: bytes, rng: random.Random) -> bytes:
    """Another value, or none, somewhere in a line; or other keys."""
    all_lines = data.splitlines()
    for _ in range(rng.choice((1, 1, 4))):
        index = rng.randrange(len(all_lines)) if all_lines else 0
        try:
            record = json.loads(all_lines[index])
        except (ValueError, IndexError, RecursionError):
            return data
        place, keys = record, []
        # What a reader takes as it is, more often than what it checks.
        inner = [record[key] for key in ("values", "xml", "image_info", "stat") if key in record]
        if inner and rng.random() < 0.8 and isinstance(inner[0], dict):
            place = inner[0]
        while isinstance(place, (dict, list)) and place:
            keys = [
                place,
                rng.choice(list(place) if isinstance(place, dict) else range(len(place))),
            ]
            place = place[keys[1]]
            if rng.random() < 0.3:
                break
        if not keys:
            return data
        if rng.random() < 0.2 and isinstance(keys[0], dict):
            del keys[0][keys[1]]
        else:
            old = keys[0][keys[1]]
            like = [odd for odd in ODD if type(odd) is type(old)]
            keys[0][keys[1]] = rng.choice(like if like and rng.random() < 0.6 else ODD)
        if rng.random() < 0.1 and isinstance(keys[0], dict):
            keys[0][rng.choice(("", "0x", "a b", "\u202e", "x" * 300))] = rng.choice(ODD)
        all_lines[index] = json.dumps(record).encode()
    return b"\n".join(all_lines) + b"\n"


def deep(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 300, 900, 2000, 100_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"unavailable":', b"}]")))
    return replaced(data, opened * depth + b"1" + closed * depth, rng)


def number(data: bytes, rng: random.Random) -> bytes:
    digits = rng.choice((b"9" * 30, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"1" + b"0" * 4000))
    return replaced(data, digits, rng)


def replaced(data: bytes, new: bytes, rng: random.Random) -> bytes:
    places = [index for index in range(len(data)) if data[index : index + 1] == b":"]
    if not places:
        return data
    start = rng.choice(places) + 1
    ends = [end for end in (data.find(b",", start), data.find(b"}", start)) if end > 0]
    return data[:start] + new + data[min(ends, default=start) :]


def header_bits(plain: bytes, rng: random.Random) -> bytes:
    changed = bytearray(plain)
    changed[rng.randrange(512)] = rng.randrange(256)
    if rng.random() < 0.7:
        changed[148:156] = b"%06o\0 " % (sum(changed[:148]) + 256 + sum(changed[156:512]))
    return bytes(changed)


def tricked(plain: bytes, rng: random.Random) -> bytes:
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
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    try:
        header = member.tobuf(form)
    except ValueError:
        header = member.tobuf(tarfile.GNU_FORMAT)
    extra = header + body + b"\0" * (-len(body) % 512)
    extra *= rng.choice((1, 1, 1, 2, 100))
    if rng.random() < 0.02:
        # A bomb, larger than what is read of it.
        extra += bytes(MAX_BYTES)
    return (
        extra + plain if rng.random() < 0.5 else plain.rstrip(b"\0")[:-512] + extra + plain[-1024:]
    )


def commands(file: Path, base: Path, folder: Path, rng: random.Random) -> list[str]:
    name = str(file)
    choices = [
        ["show", name], ["show", "--full", name], ["show", "--json", name],
        ["show", "--summary", name], ["show", "--summary", "--json", name],
        ["show", "--html", str(folder / "page.html"), name],
        ["explain", name], ["explain", "--json", name], ["diff", name, str(base)],
        ["diff", "--json", str(base), name], ["diff", "--full", name, name],
        ["export", name, "--to", "mermaid", "-o", str(folder / "m")],
        ["export", name, "--to", "svg", "-o", str(folder / "s")],
        ["bundle", "verify", name], ["bundle", name, "--preview"],
        ["bundle", name, "-o", str(folder / "b.tar.gz")],
        ["replay", name, "-p", "999999999"],
    ]  # fmt: skip
    return rng.choice(choices)


def attempt(words: list[str]) -> int:
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


def too_slow(*_: object) -> None:
    raise TooSlow


def _peak_mib() -> int:
    """Of this program; what getrusage says is at least what the process was that started it."""
    status = Path("/proc/self/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kib) >> 10


def run(seed: int, count: int, folder: Path) -> dict[str, Any]:
    work, keep = folder / "work", folder / "failed"
    work.mkdir()
    keep.mkdir()
    base = work / "base.jsonl"
    base.write_bytes(TRACES[0])
    signal.signal(signal.SIGPROF, too_slow)
    failures, slowest, read = [], 0.0, 0
    for index in range(count):
        rng = random.Random(f"{seed}-{index}")
        data = (mutated_trace if rng.random() < 0.5 else mutated_bundle)(rng)
        file = work / "input"
        file.write_bytes(data)
        words = commands(file, base, work, rng)
        del data
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read += attempt(words) != 2
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"{index}: {words[:2]}: {error!r:.200} at {where.name}:{where.lineno}")
            (keep / str(index)).write_bytes(file.read_bytes())
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
        for left in work.iterdir():
            if left.name not in ("input", "base.jsonl"):
                left.unlink()
    return {
        "count": count,
        "failures": failures,
        "slowest_s": round(slowest, 2),
        "peak_mib": _peak_mib(),
        "read": read,
    }


if __name__ == "__main__":
    os.environ.pop("VIRTRACE_DEBUG", None)
    scratch = Path(sys.argv[3])
    FILES = []
    for each in (DATA / "explain" / f"{name}.jsonl" for name in NAMES):
        FILES.append(make(read_trace(each), FACTS, (), lambda _: None).files)
    BUNDLES = [archive.pack(files) for files in FILES]
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), scratch)))
