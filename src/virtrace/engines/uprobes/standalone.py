"""Traces by compiled programs, where nothing of virtrace is installed.

`virtrace recipe compile` writes a script of this module and of those of this package that it
imports: all of them need nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import select
import signal
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from virtrace.engines.uprobes.frames import SIZE, frames
from virtrace.engines.uprobes.kernel import Place, attach, load
from virtrace.engines.uprobes.layout import END, END_RECORD
from virtrace.engines.uprobes.linking import link
from virtrace.engines.uprobes.maps import Maps, shares_pids

FORMAT, VERSION = "virtrace-records", 1

_POLL_SECONDS = 0.02
# Bytes at the place of a probe that must be in memory as in the file.
_CODE = 16


def main(compiled: str) -> int:
    """Trace, as the command line says. compiled: what compile.py made."""
    about = json.loads(zlib.decompress(base64.b64decode(compiled)))
    parser = argparse.ArgumentParser(
        description=f"Trace a libvirt daemon by the recipe {about['name']}, until Ctrl-C or a "
        "limit. Python alone is needed. The output becomes a trace where virtrace is installed: "
        "virtrace import OUTPUT -o TRACE",
    )
    parser.add_argument("pid", metavar="PID", type=int, help="the daemon's")
    parser.add_argument("output", metavar="OUTPUT", help="a new file")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=60, help="end after S seconds (default 60)"
    )
    parser.add_argument(
        "--max-bytes",
        metavar="N",
        type=int,
        default=1 << 30,
        help="end when the output has N bytes (default 1 GiB)",
    )
    args = parser.parse_args()
    try:
        files = {path: _mapped(args.pid, path, known) for path, known in about["files"].items()}
        _require_unchanged(args.pid, about["programs"], files)
        target = os.pidfd_open(args.pid)
        maps = Maps(args.pid)
        programs = [
            load(link(one, maps.symbols), "virtrace", sleepable=False, multi=False)
            for one in about["programs"]
        ]
    except OSError as error:
        _fail(f"process {args.pid} cannot be traced: {error}", "run as root, on the host")
    try:
        output = os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        _fail(f"cannot create {args.output}: {error.strerror}", "name a new file")
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda came, _: signals.append(came))
    links = [
        attach(program, _place(one, files), args.pid)
        for program, one in zip(programs, about["programs"])
    ]
    begin = {
        "format": FORMAT,
        "version": VERSION,
        "plan": about["plan"],
        "fingerprint": about["fingerprint"],
        "started_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "epoch": time.time(),
        "pid": args.pid,
        "own_tids": shares_pids(args.pid),
        "bases": {path: base for path, (_, base) in files.items()},
    }
    written = _write(output, json.dumps(begin).encode() + b"\n")
    print(f"{args.output}: every call is recorded now; Ctrl-C ends it", flush=True)
    until = time.monotonic() + args.seconds
    while (
        not signals
        and time.monotonic() < until
        and written < args.max_bytes
        and not select.select([target], [], [], _POLL_SECONDS)[0]
    ):
        written += _drain(output, maps)
    for one in links:
        os.close(one)
    _drain(output, maps)
    end = END_RECORD.pack(END, maps.lost(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    _write(output, SIZE.pack(len(end)) + end)
    print(f"then, where virtrace is installed: virtrace import {args.output} -o TRACE")
    return 0


def _drain(output: int, maps: Maps) -> int:
    written = _write(output, frames(maps.ring.records()))
    maps.ring.release()
    return written


def _write(output: int, data: bytes) -> int:
    written = 0
    while written < len(data):
        try:
            written += os.write(output, data[written:])
        except OSError as error:
            _fail(f"the output cannot be written: {error.strerror}", "make room for it")
    return written


def _mapped(pid: int, path: str, known: Mapping[str, Any]) -> tuple[str, int]:
    """Return where a mapped file can be opened, and its load bias.

    known: `sha256` of the file, `first`: address of its beginning, as the file counts
    """
    maps = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape")
    name = re.escape(os.path.basename(path))
    found = re.search(rf"^(\w+)-(\w+) \S+ 0+ .*/{name}(?: \(deleted\))?$", maps, re.M)
    if found is None:
        _fail(f"process {pid} has not mapped {path}", "name the pid of the daemon")
    mapped = f"/proc/{pid}/map_files/{found[1]}-{found[2]}"
    if hashlib.sha256(Path(mapped).read_bytes()).hexdigest() != known["sha256"]:
        _fail(
            f"{path} is not the file that this was made for",
            "virtrace recipe compile, against the file of this host",
        )
    return mapped, int(found[1], 16) - known["first"]


def _require_unchanged(
    pid: int, programs: Sequence[Mapping[str, Any]], files: Mapping[str, tuple[str, int]]
) -> None:
    """End where the process has other code in memory than the file, at any place of a probe."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for one in programs:
            path, base = files[one["file"]]
            with open(path, "rb") as file:
                file.seek(one["offset"])
                wanted = file.read(_CODE)
            memory.seek(base + one["address"])
            if memory.read(_CODE) != wanted:
                _fail(
                    f"process {pid} has other code in memory than {one['file']}",
                    "end what else traces it, or restart the daemon",
                )


def _place(program: Mapping[str, Any], files: Mapping[str, tuple[str, int]]) -> Place:
    path = files[program["file"]][0]
    return Place(path, program["offset"], program["semaphore"], program["at_return"])


def _fail(what: str, remedy: str) -> NoReturn:
    print(f"virtrace: {what}\ntry: {remedy}", file=sys.stderr)
    raise SystemExit(3)
