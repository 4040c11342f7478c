"""Mutated inputs of `virtrace snapshot`: no error that is not its own, in bounds.

    python -m tests.faults.snapshot_inputs --times 20000

Of ten, seven are texts with stacks, and three are a daemon's memory and stacks; one of 200 is a
core file instead. All come from a real daemon that hangs. Prints how many of each were read, what
took longest and most, and each that failed: `--seed N --times 1` does one again.
"""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, cast

from tests.support.elf_mutants import ODD, ODD_WIDE, command_line
from tests.support.hanging import qemu_of, waiting
from tests.support.taken import taken_by
from virtrace.errors import TargetError, TraceError
from virtrace.image.core import CoreImage
from virtrace.image.live import LiveImage
from virtrace.image.memory import PAGE
from virtrace.image.model import Program, Thread
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab
from virtrace.report.highlight import style_for
from virtrace.report.snapshot import snapshot_lines
from virtrace.snapshot.document import snapshot_of, snapshot_of_core, snapshot_of_text
from virtrace.snapshot.format import Snapshot, encoded
from virtrace.snapshot.take import take_from_core

SECONDS, BYTES = 10.0, 200 << 20
# Done by one process, as a snapshot does one of them.
_BATCH = 20
_CALLS = (("domblkinfo", "vm1", "vda"), ("dommemstat", "vm1"), ("domstats", "vm1"))
_LARGE = 1 << 16
# Characters of a text that one change makes.
_LARGEST_PART = 1 << 20
_WORD = 8


@contextmanager
def hanging(lab: Lab) -> Iterator[None]:
    """Let calls wait for a QEMU that is stopped."""
    with lab.stalled(), waiting(lab, *_CALLS):
        yield
        os.kill(qemu_of(lab), signal.SIGCONT)


# --- Memory


@dataclass
class Copy:
    """The memory of a daemon, as far as a look reads it.

    places: the addresses of small reads
    """

    pages: dict[int, bytes]
    places: list[int]

    def read_available(self, address: int, size: int) -> bytes:
        pieces, at, end = [], address, address + size
        while at < end:
            piece = self.pages.get(at // PAGE, b"")[at % PAGE : at % PAGE + end - at]
            if not piece:
                break
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def read(self, address: int, size: int) -> bytes:
        return self.read_available(address, size)


class _Copying:
    """Reads a live memory, and keeps what was read."""

    def __init__(self, image: LiveImage) -> None:
        self._memory = image.memory
        self.copy = Copy({}, [])

    def read_available(self, address: int, size: int) -> bytes:
        first, last = address // PAGE, (address + size - 1) // PAGE
        for page in range(first, last + 1):
            if page not in self.copy.pages:
                self.copy.pages[page] = self._memory.read_available(page * PAGE, PAGE)
        if size < _LARGE:
            self.copy.places.append(address)
        return self.copy.read_available(address, size)

    def read(self, address: int, size: int) -> bytes:
        return self._memory.read(address, size)


@dataclass
class Pictured:
    """An image that is a copy."""

    program: Program
    memory: Any
    all_threads: Sequence[Thread]
    ranges: Sequence[tuple[int, int]]
    pid: int | None = None
    signal: None = None
    missing: tuple[()] = ()

    def threads(self) -> Sequence[Thread]:
        return self.all_threads

    def heaps(self) -> Sequence[tuple[int, int]]:
        return self.ranges


def pictured(lab: Lab) -> Pictured:
    with LiveImage(inspect(lab.pid)) as image:
        copying = _Copying(image)
        made = Pictured(image.program, copying, image.threads(), image.heaps(), lab.pid)
        take_from_core(cast(CoreImage, made), time.time())
    return replace(made, memory=copying.copy)


def mutated(picture: Pictured, seed: int) -> Pictured:
    """Change words that are read, and words of stacks."""
    chosen = Random(seed)
    pages = dict(picture.memory.pages)
    places = picture.memory.places
    for _ in range(chosen.choice((1, 4, 30, 300))):
        address = chosen.choice(places) // _WORD * _WORD + chosen.choice((0, 0, 8, 16, 64))
        page = pages.get(address // PAGE, b"")
        at = address % PAGE
        if at + _WORD <= len(page):
            word = struct.pack("<Q", _other(chosen, address, places))
            pages[address // PAGE] = page[:at] + word + page[at + _WORD :]
    threads = [*picture.all_threads]
    for _ in range(chosen.choice((0, 1, 10))):
        number = chosen.randrange(len(threads))
        data = bytearray(threads[number].stack.data)
        if len(data) >= _WORD:
            at = chosen.randrange(min(len(data) - 7, 4096))
            data[at : at + _WORD] = struct.pack("<Q", _other(chosen, at, places))
            stack = replace(threads[number].stack, data=bytes(data))
            threads[number] = replace(threads[number], stack=stack)
    return replace(picture, memory=Copy(pages, places), all_threads=threads)


def _other(chosen: Random, address: int, places: Sequence[int]) -> int:
    """Another word: a wild or a valid pointer, itself, a huge count."""
    way = chosen.random()
    if way < 0.5:
        return chosen.choice(places)
    if way < 0.6:
        return address
    return int(chosen.choice([*ODD, *ODD_WIDE, chosen.getrandbits(64)])) & (1 << 64) - 1


# --- Texts


def texts(lab: Lab) -> Sequence[str]:
    """Stacks of the daemon as reporters of bugs attach them."""
    every = ["thread apply all bt", "thread apply all bt full", "info threads"]
    words = [word for each in every for word in ("-ex", each)]
    command = ["gdb", "-nx", "-q", "-batch", "-p", str(lab.pid), *words]
    by_gdb = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    return [
        by_gdb,
        re.sub(r"^Thread .*LWP (\d+).*$", r"Stack trace of thread \1:", by_gdb, flags=re.M),
    ]


def mutated_text(text: str, seed: int) -> str:
    chosen = Random(seed)
    lines = text.split("\n")
    for _ in range(chosen.choice((1, 4, 40))):
        at = chosen.randrange(len(lines))
        way = chosen.random()
        if way < 0.2:
            lines[at] = lines[chosen.randrange(len(lines))]
        elif way < 0.3:
            lines[at : at + 1] = [lines[at]] * min(chosen.choice((2, 100, 3000)), _most(lines[at]))
        elif way < 0.4:
            lines[at] *= min(chosen.choice((2, 50, 5000)), _most(lines[at]))
        elif way < 0.5:
            del lines[at : at + chosen.choice((1, 20))]
            lines = lines or [""]
        else:
            line, place = lines[at], chosen.randrange(len(lines[at]) + 1)
            odd = chosen.choice(("\0", "(", ")", "#9999999999", '"', "\u202e", "9" * 5000, "in ??"))
            lines[at] = line[:place] + odd + line[place + chosen.choice((0, 1, 10)) :]
    return "\n".join(lines)


def _most(line: str) -> int:
    """How often a line may be repeated: a text is not read beyond 64 MiB."""
    return max(1, _LARGEST_PART // (len(line) + 1))


# --- Cores


class Core:
    """A core file that is changed, and changed back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            # The headers and the notes, which are in front of the memory.
            self._head = file.read(1 << 16)

    def damage(self, seed: int) -> None:
        chosen = Random(seed)
        data = bytearray(self._head)
        for _ in range(chosen.choice((1, 8, 100, 1000))):
            at, size = chosen.randrange(len(data) - _WORD), chosen.choice((1, 2, 4, 8))
            value = int(chosen.choice([*ODD, *ODD_WIDE, chosen.getrandbits(64)]))
            data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._write(bytes(data))

    def mend(self) -> None:
        self._write(self._head)

    def _write(self, head: bytes) -> None:
        with self.path.open("r+b") as file:
            file.write(head)


# --- All


@dataclass
class Inputs:
    texts: Sequence[str]
    picture: Pictured
    core: Core

    def kind_of(self, seed: int) -> str:
        return "core" if seed % 200 == 0 else "memory" if seed % 10 < 3 else "text"

    def done(self, seed: int) -> bool:
        """Whether one mutant was read; it is refused otherwise. Raises: what must not be."""
        kind = self.kind_of(seed)
        try:
            if kind == "text":
                text = mutated_text(self.texts[seed % len(self.texts)], seed)
                _print(snapshot_of_text(text, "stacks"))
            elif kind == "memory":
                image = mutated(self.picture, seed)
                look = take_from_core(cast(CoreImage, image), time.time())
                _print(snapshot_of(look, image.program, "core"))
            else:
                self.core.damage(seed)
                _print(snapshot_of_core(self.core.path, Path("/")))
        except (TargetError, TraceError):
            return False
        finally:
            if kind == "core":
                self.core.mend()
        return True


def _print(snapshot: Snapshot) -> None:
    encoded(snapshot)
    for _ in snapshot_lines(snapshot, style_for(sys.stdout, full=True), None):
        pass


class TooSlowError(BaseException):
    """One input takes far too long. Nothing that reads it handles that."""


def _give_up(*_: object) -> None:
    raise TooSlowError


def several(inputs: Inputs, seeds: Sequence[int]) -> Mapping[str, Any]:
    """Do some mutants; what each took, and how many of each kind were read."""
    longest, read, failures = 0.0, dict.fromkeys(("text", "memory", "core"), 0), []
    signal.signal(signal.SIGVTALRM, _give_up)
    for seed in seeds:
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)
        try:
            read[inputs.kind_of(seed)] += inputs.done(seed)
        except BaseException as error:
            failures.append(f"{seed}: {inputs.kind_of(seed)}: {error!r}")
        took = time.process_time() - began
        longest = max(longest, took)
        if took > SECONDS:
            failures.append(f"{seed}: {inputs.kind_of(seed)}: {took:.1f} s")
    return {"longest": longest, "read": read, "failures": failures}


def run(times: int, seed: int = 0) -> list[str]:
    """What went wrong, in words; prints the rest."""
    failures: list[str] = []
    longest, largest = 0.0, 0
    read = dict.fromkeys(("text", "memory", "core"), 0)
    with TemporaryDirectory(dir="/var/tmp") as place:
        with Lab(Path(mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))) as lab, hanging(lab):
            inputs = _inputs(lab, Path(place))
        for first in range(seed, seed + times, _BATCH):
            seeds = range(first, min(first + _BATCH, seed + times))
            taken = taken_by(partial(several, inputs, seeds))
            if taken.failure:
                failures.append(f"{first}: {taken.failure}")
                continue
            result = cast("Mapping[str, Any]", taken.result)
            longest = max(longest, result["longest"])
            largest = max(largest, taken.size)
            failures += result["failures"]
            for kind, number in result["read"].items():
                read[kind] += number
            if taken.size > BYTES:
                failures.append(f"{first}: {taken.size >> 20} MiB")
    print(f"{times} inputs, read: {read}; {len(failures)} failures")
    print(f"longest {longest:.2f} s of processor time, largest {largest >> 20} MiB")
    return failures


def _inputs(lab: Lab, folder: Path) -> Inputs:
    core = folder / "core"
    subprocess.run(["gcore", "-o", core, str(lab.pid)], check=True, capture_output=True)
    return Inputs(texts(lab), pictured(lab), Core(Path(f"{core}.{lab.pid}")))


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, 200))
