"""Damaged ELF files: all that virtrace ever asks of a file, in bounds, and no error but its own.

    python -m tests.faults.elf_files --times 20000

Prints how many were refused, what took longest and most, and each that failed: `--seed N
--times 1` does one again. docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.elf_mutants import Mutants, command_line
from tests.support.taken import taken_by
from virtrace.binary import dwarf, x86_64
from virtrace.errors import TargetError
from virtrace.image.model import Module, Program
from virtrace.recipe import path

SECONDS, BYTES = 5.0, 300 << 20
SOURCE = """
struct inner { int two; };
struct outer { int number; const char *text; struct inner inside[3]; struct outer *next; };
int work(int);
int qemuMonitorGetAllBlockStatsInfo(int n) { return work(n) + 1; }
int virDomainGetBlockInfoEnsureACL(void *);
__attribute__((noinline)) static int gather(struct outer *first, int *out)
{ *out = qemuMonitorGetAllBlockStatsInfo(first->number); return work(*out); }
static int info(struct outer *first)
{
    int out = 0;
    return virDomainGetBlockInfoEnsureACL(first) < 0 || gather(first, &out) < 0 ? -1 : out;
}
int (*const table[])(struct outer *) = { info };
"""
DRIVER = Path("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so")


def originals(folder: Path) -> list[Path]:
    source = folder / "sample.c"
    source.write_text(SOURCE)
    made = []
    for name, flags in {
        "stripped": ["-O2", "-s"],
        "debug": ["-O2", "-g"],
        "debug4": ["-O1", "-gdwarf-4", "-Wl,--hash-style=sysv"],
        "compressed": ["-O2", "-g", "-gz"],
    }.items():
        made.append(folder / f"{name}.so")
        command = ["gcc", "-shared", "-fPIC", *flags, str(source), "-o", str(made[-1])]
        subprocess.run(command, check=True)
    return [*made, *([DRIVER] if DRIVER.exists() else [])]


def ask_all(file: Path) -> int:
    """How many questions were refused."""
    module = Module(str(file), file, 1 << 40, 2 << 40, 0, False)
    process = Program(str(file), Path("/"), (module,))
    elf = module.elf
    captures = [path.parse_path("first->inside")], [path.parse_path("first->number")]
    needs = {"info": dwarf.CaptureNeeds(*captures)}
    questions: Sequence[Callable[[], object]] = (
        lambda: (elf.machine, elf.build_id, elf.debuglink, elf.shared_debug_info, elf.is_trusted),
        lambda: elf.fingerprint,
        lambda: elf.crc,
        elf.exported_functions,
        elf.stap_probes,
        elf.code_digests,
        lambda: elf.callers_of("virDomainGetBlockInfoEnsureACL"),
        lambda: elf.called_by(0x1100, "qemuMonitorGetAllBlockStatsInfo"),
        lambda: [*elf.callees(0x1100)],
        lambda: elf.function_around(0x1100),
        lambda: [elf.unwind_row(at) for at in range(0x1000, 0x1200)],
        lambda: elf.calls_before(range(0x1000, 0x1200)),
        lambda: process.doubts({module.base + at: at % 2 == 0 for at in range(0x1000, 0x1200)}),
        lambda: process.debug_info(module),
        lambda: process.linker,
        lambda: dwarf.functions_and_structs(file, needs, x86_64.ABI, lambda _: None),
        lambda: dwarf.source_paths(file, ["info", "gather"]),
        lambda: dwarf.declarations(file, [0x1100, 0x1120], x86_64.ABI),
    )
    refused = 0
    for question in questions:
        try:
            question()
        except TargetError:
            refused += 1
    return refused


def run(times: int, seed: int = 0) -> list[str]:
    """What went wrong, in words; prints the rest."""
    failures = []
    refused = longest = largest = 0.0
    with TemporaryDirectory() as place:
        mutants = [Mutants(file) for file in originals(Path(place))]
        file = Path(place, "mutant.so")
        for number in range(seed, seed + times):
            file.write_bytes(mutants[number % len(mutants)].make(number))
            taken = taken_by(lambda: ask_all(file))
            if taken.failure:
                failures.append(f"{number}: {taken.failure}")
            refused += bool(taken.result)
            longest, largest = max(longest, taken.seconds), max(largest, taken.size)
            if taken.seconds > SECONDS or taken.size > BYTES:
                failures.append(
                    f"{number}: {taken.seconds:.1f} s of processor time, {taken.size >> 20} MiB"
                )
    print(f"{times} files, {refused:.0f} of them refused in part; {len(failures)} failures")
    print(f"longest {longest:.2f} s of processor time, largest {int(largest) >> 20} MiB")
    return failures


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, 200))
