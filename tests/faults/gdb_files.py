"""Damaged files of a stranger's process, which root lets GDB look at: GDB must not die of one.

    python -m tests.faults.gdb_files --times 2000

A process of another user maps a libvirt and a driver that were damaged, new ones each time, and
`virtrace check` says in GDB what a recipe would find there. Prints each that ended GDB;
docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gdb.harness import build_variant
from tests.support.elf_mutants import Mutants, command_line
from virtrace.engines.gdb.launch import command

STRANGER = 12345
SECONDS = 60
LIBRARY, DRIVER = "libvirt.so.0.9000.0", "libvirt_driver_qemu.so"
# Maps the two files of a folder for each line that it reads, in place of those before.
PROCESS = """
import mmap, os, sys
as_code = mmap.PROT_READ | mmap.PROT_EXEC
kept = []
for folder in sys.stdin:
    kept.clear()
    for name in ("libvirt.so.0.9000.0", "libvirt_driver_qemu.so"):
        with open(os.path.join(folder.strip(), name), "rb") as file:
            kept.append(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, as_code))
    print("mapped", flush=True)
"""


@contextmanager
def stranger() -> Iterator[subprocess.Popen[str]]:
    user = ["setpriv", f"--reuid={STRANGER}", "--clear-groups"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*user, "/usr/bin/python3", "-c", PROCESS], stdin=pipe, stdout=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def look(process: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """GDB's exit status, and what is wrong with its end; empty where nothing is."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "mapped\n"
    try:
        done = subprocess.run(
            command("virtrace check blockinfo"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env={**os.environ, "VIRTRACE_PID": str(process.pid)},
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {SECONDS} s"
    said = done.stdout + done.stderr
    if done.returncode not in (0, 2, 3) or "internal" in said or "Traceback" in said:
        return done.returncode, f"status {done.returncode}: {said[-2000:]}"
    return done.returncode, ""


def run(times: int, seed: int = 0) -> list[str]:
    failures, resolved = [], 0
    with tempfile.TemporaryDirectory(prefix="virtrace-faults-", dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        originals = Path(place, "originals")
        originals.mkdir()
        build_variant(originals, "cloned")
        mutants = {name: Mutants(originals / name) for name in (LIBRARY, DRIVER)}
        with stranger() as process:
            for number in range(seed, seed + times):
                folder = Path(place, str(number))
                folder.mkdir()
                for at, (name, of) in enumerate(mutants.items()):
                    # One of the two, or both.
                    spoiled = number % 3 in (at, 2)
                    data = of.make(number) if spoiled else (originals / name).read_bytes()
                    (folder / name).write_bytes(data or b"\0")
                    os.chown(folder / name, STRANGER, STRANGER)
                status, wrong = look(process, folder)
                resolved += status == 0
                if wrong:
                    failures.append(f"{number}: {wrong}")
                for name in mutants:
                    (folder / name).unlink()
    print(f"{times} processes, the probes of {resolved} resolved; {len(failures)} failures")
    return failures


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, 50))
