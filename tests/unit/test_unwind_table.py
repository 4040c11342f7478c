"""Call frame information: every row of real libraries, as binutils' readelf has it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtrace.binary import unwind
from virtrace.binary.elf import ElfFile
from virtrace.binary.unwind import Row, Rule, UnwindTable
from virtrace.binary.x86_64 import ABI

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
NAMES = (*ABI.dwarf_registers, "ra")
CFA = "CFA"
SIGNS = {
    unwind.UNDEFINED: "u",
    unwind.SAME: "s",
    unwind.EXPRESSION: "exp",
    unwind.VALUE_EXPRESSION: "vexp",
}

Rows = dict[int, dict[str, str]]


def as_readelf_has_it(row: Row) -> dict[str, str]:
    """The rules of a row by the names of its columns."""

    def text(rule: Rule) -> str:
        if rule.kind == unwind.OFFSET:
            return f"c{rule.offset:+d}"
        if rule.kind == unwind.VALUE_OFFSET:
            return f"v{rule.offset:+d}"
        if rule.kind == unwind.REGISTER:
            return f"r{rule.register}"
        return SIGNS[rule.kind]

    is_relative = row.cfa.kind == unwind.REGISTER
    cfa = f"{NAMES[row.cfa.register]}{row.cfa.offset:+d}" if is_relative else "exp"
    rules = {NAMES[number]: text(rule) for number, rule in row.registers.items()}
    return {CFA: cfa, **rules}


def readelf(file: Path) -> Iterator[tuple[int, int, Rows]]:
    """First address, address behind, and rows of each entry; one without rows has its CIE's."""
    # Its exit status is 1 where a separate debug file is missing.
    printed = subprocess.run(
        ["readelf", "--debug-dump=frames-interp", file], capture_output=True, text=True
    ).stdout
    common: dict[str, Rows] = {}
    for block in printed.split("\n\n"):
        head, *lines = block.strip("\n").splitlines() or [""]
        rows: Rows = {}
        if lines:
            columns = lines[0].split()[1:]
            for line in lines[1:]:
                # Behind the number of a register stands its name.
                location, *rules = re.sub(r" \(\w+\)", "", line).split()
                rows[int(location, 16)] = dict(zip(columns, rules))
        entry = re.search(r"FDE cie=(\w+) pc=(\w+)\.\.(\w+)", head)
        if entry is not None:
            start, end = int(entry[2], 16), int(entry[3], 16)
            yield start, end, rows or {start: common[entry[1]][0]}
        elif " CIE " in head:
            common[head.split()[0]] = rows


@pytest.mark.parametrize(
    "name", ["libc.so.6", "libvirt.so.0", "libvirt/connection-driver/libvirt_driver_qemu.so"]
)
def test_every_row_is_that_of_readelf(name: str) -> None:
    file = LIBRARIES / name
    if not file.exists() or shutil.which("readelf") is None:
        pytest.skip(f"{name} or readelf is not installed")
    table = UnwindTable(ElfFile(file))
    seen = 0
    for start, end, rows in readelf(file):
        entry = table.entry(start)
        assert entry is not None
        assert (entry.start, entry.end) == (start, end)
        ours: Rows = {location: as_readelf_has_it(row) for location, row in table.rows(entry)}
        assert [*ours] == [*rows], hex(start)
        for location, expected in rows.items():
            # A column stands for every register that any row of the entry has a rule for.
            rules = {"ra": "u", **dict.fromkeys(expected, "u"), **ours[location]}
            assert rules == expected, hex(location)
        last = table.row(end - 1)
        assert last is not None
        assert as_readelf_has_it(last) == ours[max(ours)]
        seen += len(rows)
    assert seen > 10_000
