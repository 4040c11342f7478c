"""A program under the name of a daemon that faults, for the lines that the kernel logs of it.

Its functions are in a library under the name of libvirt's own, which exports them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from tests.support.command import virtrace
from tests.support.toolchain import build

PROGRAM, LIBRARY = "libvirtd", "libvirt.so.0"
IMPOSSIBLE = 0x4141414141414141
_LIBRARY = f"""
static const int constant = 1;
static char nonsense[16] = {{1}};

int virTestReadNull(volatile int *from) {{ return from[4]; }}
void virTestWriteConstant(void) {{ *(volatile int *)&constant = 2; }}
void virTestReadImpossible(void) {{ *(volatile int *){IMPOSSIBLE:#x}; }}
int virTestOverflowStack(volatile char *before)
{{
    volatile char much[4096];
    much[0] = before ? *before : 1;
    return virTestOverflowStack(much) + much[1];
}}
void virTestRunNonsense(void) {{ __builtin_trap(); }}
void virTestDivide(void) {{ __asm__ volatile("xor %%edx, %%edx; div %%edx" ::: "eax", "edx"); }}
void virTestBreak(void) {{ __asm__ volatile("int3; nop"); }}
void virTestRunData(void) {{ ((void (*)(void))nonsense)(); }}
"""
_PROGRAM = """
#include <dlfcn.h>
int main(int count, char **words)
{
    void *library = dlopen(words[1], RTLD_NOW);
    ((void (*)(void *))dlsym(library, words[2]))(0);
    return 1;
}
"""


class Fault(NamedTuple):
    """What a function does. access, address: as of Crash; None where the kernel does not tell.

    is_in_code: whether it is in the function itself that it faults.
    """

    function: str
    signal: int
    access: str | None = None
    address: int | None = None
    is_in_code: bool = True


FAULTS = (
    Fault("virTestReadNull", 11, "reading", 16),
    Fault("virTestWriteConstant", 11, "writing"),
    Fault("virTestReadImpossible", 11),
    Fault("virTestOverflowStack", 11, "writing"),
    Fault("virTestRunNonsense", 4),
    Fault("virTestDivide", 8),
    Fault("virTestBreak", 5),
    Fault("virTestRunData", 11, "executing", is_in_code=False),
)


def build_faulting(folder: Path) -> Path:
    """Build program and library, as they are on a host below a folder; return the program."""
    library = folder / "usr" / "lib" / LIBRARY
    build(_LIBRARY, library, "-shared")
    build(_PROGRAM, folder / "usr" / "sbin" / PROGRAM)
    return folder / "usr" / "sbin" / PROGRAM


def assert_known(fault: Fault, pid: int, log: str, root: Path) -> None:
    """`virtrace snapshot --stacks` knows a fault by its line, and its place by the library.

    pid: of the program. log: the kernel's. root: the folder with the program.
    """
    line = line_of(pid, log)
    file = root / "line.txt"
    file.write_text(line)
    done = virtrace("snapshot", "--json", "--stacks", file, "--root", root)
    assert done.returncode == 1, (line, done.stderr)
    document = json.loads(done.stdout)
    (thread,) = document["threads"]
    assert (thread["tid"], thread["name"]) == (pid, PROGRAM), line
    crash = document["crash"]
    assert (crash["signal"], crash["access"]) == (fault.signal, fault.access), line
    assert (crash["address"] is None) == (fault.access is None), line
    if fault.address is not None:
        assert crash["address"] == f"{fault.address:#x}", line
    (frame,) = thread["frames"]
    place = rf"{fault.function}\+0x[0-9a-f]{{1,2}} \({re.escape(LIBRARY)}\)"
    if not fault.is_in_code:
        # Older kernels do not say where the mapping is in the file.
        place = rf"{re.escape(LIBRARY)}(\+0x3010|, 0x10 behind the start of its mapping)"
    assert re.fullmatch(place, frame), (line, frame)


def line_of(pid: int, log: str) -> str:
    """The line on the fault of a process."""
    found = [line for line in log.splitlines() if f" {PROGRAM}[{pid}]" in line]
    assert len(found) == 1, log
    return found[0]
