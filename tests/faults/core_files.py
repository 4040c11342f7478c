"""Damaged core files, and damaged call frame information: no crash, in bounds, no endless frames.

    python -m tests.faults.core_files --times 5000

Prints how many were refused, what took longest and most, and each that failed: `--seed N
--times 1` does one again.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import cast

from tests.support.elf_mutants import ODD, ODD_WIDE, command_line
from tests.support.taken import taken_by
from virtrace.binary.elf import ElfFile
from virtrace.errors import TargetError, Unavailable
from virtrace.image.core import CoreImage
from virtrace.image.unwind import Unwinder

SECONDS, BYTES = 5.0, 300 << 20
FRAMES = 5
SOURCE = """
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) static int wait(int number)
{
    puts("ready");
    fflush(stdout);
    pause();
    return number + 1;
}
__attribute__((noinline)) static int outer(int number) { return wait(number) * 3; }
int main(int argc, char **argv) { return outer(argc) + (argv != NULL); }
"""
_SEGMENT = 56


def real_core(folder: Path) -> tuple[Path, Path]:
    """A core of a small program, and a root with the files that it had mapped."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(SOURCE)
    subprocess.run(["gcc", "-O2", source, "-o", program], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        gcore = ("gcore", "-o", folder / "core", str(running.pid))
        subprocess.run(gcore, check=True, capture_output=True)
        running.kill()
    core, root = folder / f"core.{running.pid}", folder / "root"
    for module in CoreImage(core).program.modules:
        copy = root / module.path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module.path, copy)
    return core, root


class Damage:
    """Changes what is read of a core, or of the call frame information of one of its files."""

    def __init__(self, core: Path, root: Path) -> None:
        self._core = core.read_bytes()
        self._files = [path for path in root.rglob("*") if path.is_file()]
        self._whole = {path: path.read_bytes() for path in self._files}
        self._parts = {path: [*_unwind_parts(path)] for path in self._files}
        (self._segments_at,) = struct.unpack_from("<Q", self._core, 32)
        (self._segments,) = struct.unpack_from("<H", self._core, 56)
        kinds = [self._field(number, 0, "<I") for number in range(self._segments)]
        notes = kinds.index(4)
        self._notes_at = self._field(notes, 8, "<Q")
        self._notes_size = self._field(notes, 32, "<Q")

    def _field(self, segment: int, offset: int, form: str) -> int:
        at = self._segments_at + segment * _SEGMENT + offset
        return int(struct.unpack_from(form, self._core, at)[0])

    def write(self, seed: int, core: Path) -> None:
        """Write the core, and one of the files of its root, with changes."""
        chosen = Random(seed)
        data = bytearray(self._core)
        for path in self._files:
            path.write_bytes(self._whole[path])
        if chosen.random() < 0.5:
            for _ in range(chosen.choice((1, 1, 2, 8))):
                self._damage_core(data, chosen)
        else:
            path = chosen.choice([path for path in self._files if self._parts[path]])
            damaged = bytearray(self._whole[path])
            for _ in range(chosen.choice((1, 16, 200))):
                start, size = chosen.choice(self._parts[path])
                _put(damaged, start + chosen.randrange(size), chosen.choice((1, 2, 4)), chosen)
            path.write_bytes(damaged)
        core.write_bytes(data)

    def _damage_core(self, data: bytearray, chosen: Random) -> None:
        way = chosen.random()
        if way < 0.1:
            at, size = chosen.choice(((4, 1), (16, 2), (18, 2), (32, 8), (40, 8), (54, 2), (56, 2)))
            _put(data, at, size, chosen)
        elif way < 0.4:
            at = self._segments_at + chosen.randrange(self._segments) * _SEGMENT
            _put(data, at + chosen.choice((0, 8, 16, 32, 40)), 8, chosen)
        elif way < 0.95:
            at = self._notes_at + chosen.randrange(0, self._notes_size, 4)
            _put(data, at, chosen.choice((4, 8)), chosen)
        else:
            del data[chosen.randrange(1, len(data)) :]


def _unwind_parts(path: Path) -> list[tuple[int, int]]:
    """Offset and size of the sections with call frame information."""
    elf = ElfFile(path)
    parts = []
    for section in elf.loaded_sections(".eh_frame", ".eh_frame_hdr").values():
        [segment] = [one for one in elf.segments if 0 <= section.address - one.address < one.size]
        parts.append((segment.offset + section.address - segment.address, len(section.data)))
    return parts


def _put(data: bytearray, at: int, size: int, chosen: Random) -> None:
    value = chosen.choice([*ODD, *ODD_WIDE, len(data), chosen.getrandbits(8 * size)])
    if at + size <= len(data):
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def timed(core: Path, root: Path) -> tuple[int, float]:
    """The result of ask_all(), and the processor time of this process for it."""
    began = time.process_time()
    return ask_all(core, root), time.process_time() - began


def ask_all(core: Path, root: Path) -> int:
    """How many frames are known; -1 if the core is refused."""
    try:
        image = CoreImage(core, root)
        threads = image.threads()
    except TargetError:
        return -1
    unwinder = Unwinder(image)
    found = [unwinder.backtrace(thread) for thread in threads]
    for thread in threads:
        try:
            image.memory.read(thread.stack.start, 1 << 23)
        except (Unavailable, TargetError):
            continue
    return max((len(backtrace.frames) for backtrace in found), default=0)


def run(times: int, seed: int = 0) -> list[str]:
    """What went wrong, in words; prints the rest."""
    failures = []
    longest = largest = 0.0
    refused = whole = 0
    with TemporaryDirectory() as place:
        core, root = real_core(Path(place))
        assert ask_all(core, root) >= FRAMES
        damage = Damage(core, root)
        damaged = Path(place, "damaged")
        for number in range(seed, seed + times):
            damage.write(number, damaged)
            taken = taken_by(lambda: timed(damaged, root))
            if taken.failure:
                failures.append(f"{number}: {taken.failure}")
                continue
            frames, seconds = cast("tuple[int, float]", taken.result)
            seconds += taken.seconds
            refused += frames == -1
            whole += frames >= FRAMES
            longest, largest = max(longest, seconds), max(largest, taken.size)
            if seconds > SECONDS or taken.size > BYTES:
                failures.append(f"{number}: {seconds:.1f} s, {taken.size >> 20} MiB")
    print(f"{times} cores: {refused} refused, {whole} with all frames; {len(failures)} failures")
    print(f"longest {longest:.2f} s of processor time, largest {int(largest) >> 20} MiB")
    return failures


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, 200))
