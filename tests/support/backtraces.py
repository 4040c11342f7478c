"""GDB's backtraces as the oracle for ours, frame by frame and register by register."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from virtrace.image.model import Image
from virtrace.image.unwind import StackTrace, Unwinder

KEPT = ("rbx", "rbp", "r12", "r13", "r14", "r15")
_SCRIPT = Path(__file__).with_name("gdb_registers.py")
_SECONDS = 120

# pc, canonical frame address (0: GDB does not say), registers that are known.
Theirs = tuple[int, int, Mapping[str, int]]


def of_image(image: Image) -> dict[int, StackTrace]:
    """Ours, by thread id."""
    unwinder = Unwinder(image)
    return {thread.tid: unwinder.backtrace(thread) for thread in image.threads()}


def of_gdb(*target: str | Path) -> dict[int, list[Theirs]]:
    """GDB's, by thread id. target: `-p`, PID; or the program and its core."""
    quiet = ("-nx", "-batch", "-iex", "set debuginfod enabled off")
    done = subprocess.run(
        ["gdb", *quiet, *target, "-x", _SCRIPT], capture_output=True, text=True, timeout=_SECONDS
    )
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1, done.stdout + done.stderr
    threads = json.loads(printed[0])
    return {int(tid): [tuple(frame) for frame in frames] for tid, frames in threads.items()}


def differences(
    ours: Mapping[int, StackTrace], theirs: Mapping[int, Sequence[Theirs]]
) -> tuple[list[str], int, int]:
    """What differs, in words; how many frames and how many registers were compared."""
    found = [] if set(ours) == set(theirs) else [f"threads {[*ours]} and {[*theirs]}"]
    frames = registers = 0
    for tid, backtrace in ours.items():
        expected = theirs.get(tid, ())
        if backtrace.ended is not None:
            found.append(f"{tid}: ended after {len(backtrace.frames)}: {backtrace.ended}")
        if len(backtrace.frames) != len(expected):
            found.append(f"{tid}: {len(backtrace.frames)} frames and {len(expected)}")
        for number, (frame, (pc, cfa, known)) in enumerate(zip(backtrace.frames, expected)):
            frames += 1
            if frame.pc != pc or (cfa and frame.cfa != cfa):
                found.append(f"{tid} #{number}: {frame.pc:#x} {frame.cfa} and {pc:#x} {cfa}")
            for name in KEPT:
                if name in frame.registers.known:
                    registers += 1
                    if frame.registers[name] != known.get(name):
                        found.append(f"{tid} #{number}: {name} {frame.registers[name]:#x}")
    return found, frames, registers
