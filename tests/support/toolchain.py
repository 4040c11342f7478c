"""Small programs and libraries for the tests, built by the system's C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# One static probe as sys/sdt.h writes it (that header is in no package the tests need).
PROBE = """
__extension__ unsigned short libvirt_%(name)s_semaphore
    __attribute__((section(".probes"), used, visibility("hidden")));
__attribute__((used)) static void at_%(name)s(void)
{
    __asm__ volatile(
        "990: nop\\n"
        ".pushsection .note.stapsdt,\\"\\",\\"note\\"\\n"
        ".balign 4\\n"
        ".4byte 992f-991f, 994f-993f, 3\\n"
        "991: .asciz \\"stapsdt\\"\\n"
        "992: .balign 4\\n"
        "993: .8byte 990b\\n"
        ".8byte _.stapsdt.base\\n"
        ".8byte libvirt_%(name)s_semaphore\\n"
        ".asciz \\"libvirt\\"\\n"
        ".asciz \\"%(name)s\\"\\n"
        ".asciz \\"8@%%rdi -4@$7\\"\\n"
        "994: .balign 4\\n"
        ".popsection\\n"
        ".ifndef _.stapsdt.base\\n"
        ".pushsection .stapsdt.base,\\"aG\\",\\"progbits\\",.stapsdt.base,comdat\\n"
        ".weak _.stapsdt.base\\n"
        ".hidden _.stapsdt.base\\n"
        "_.stapsdt.base: .space 1\\n"
        ".size _.stapsdt.base, 1\\n"
        ".popsection\\n"
        ".endif\\n");
}
"""


def need(*commands: str) -> None:
    """Skip the test where a tool is missing."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def build(source: str, output: Path, *flags: str) -> Path:
    """Compile C source to output, -O1 and position-independent unless the flags differ."""
    need("gcc")
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["gcc", "-O1", "-fPIC", "-o", str(output), "-x", "c", "-", "-x", "none", *flags],
        input=source,
        text=True,
        check=True,
    )
    return output
