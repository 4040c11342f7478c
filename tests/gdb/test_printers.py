"""The pretty-printers, on a program with structs of libvirt's names."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest

from tests.gdb.harness import SOURCES
from tests.gdb.test_commands import in_gdb

Print = Callable[..., list[str]]
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@pytest.fixture(scope="module", params=[(), ("-DGOBJECT",)], ids=["plain", "gobject"])
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Print:
    """What GDB prints of expressions, and does at other commands, addresses as ADDRESS."""
    program = tmp_path_factory.mktemp("structs") / "structs"
    source = str(SOURCES / "structs.c")
    subprocess.run(["gcc", "-g", "-O0", *request.param, source, "-o", program], check=True)

    def run(*commands: str) -> list[str]:
        words = [word for command in commands for word in ("echo ====\\n", command)]
        start = (f"file {program}", "set width 0", "break ready", "run", "echo ====\\n")
        done = in_gdb(*start, *words)
        text = ADDRESS.sub("ADDRESS", done.stdout)
        answers = [re.sub(r"^\$\d+ = ", "", one.strip("\n")) for one in text.split("====\n")[2:]]
        assert len(answers) == len(commands), done.stderr
        return answers

    return run


STATS = (
    "rd_req = 712, rd_bytes = 17435136 (16.627 MiB), rd_total_times = 527027278 (527 ms), "
    "capacity = 2147483648 (2.000 GiB), physical = 4096 (4.000 KiB), "
    "wr_highest_offset = 32870912 (31.348 MiB), wr_highest_offset_valid = true}"
)
SUMMARY = (
    "ADDRESS capacity 2147483648 (2.000 GiB), physical 4096 (4.000 KiB), "
    "wr_highest_offset 32870912 (31.348 MiB)"
)
TOP = 'ADDRESS VIR_STORAGE_TYPE_FILE "/top" VIR_STORAGE_FILE_QCOW2 capacity 2147483648 (2.000 GiB)'
BASE = 'ADDRESS VIR_STORAGE_TYPE_FILE "/base" VIR_STORAGE_FILE_RAW capacity 512'


def test_units_beside_the_numbers(printed: Print) -> None:
    stats, pointer, const, argument, other = printed(
        "print stats", "print &stats", "print its_pointer", "print first", "print none"
    )
    assert stats.endswith(STATS)
    assert pointer == const == argument == SUMMARY
    # It is there for these structs alone.
    assert other == "{pid = 7}"
    [raw] = printed("print/r stats")
    assert "capacity = 2147483648, " in raw


def test_what_a_pointer_points_to(printed: Print) -> None:
    disk, no_source, source, null, domain = printed(
        *("print &vda", "print vdb", "print top", "print (virStorageSourcePtr) 0", "print &domain")
    )
    assert disk == f'ADDRESS "vda" {TOP}'
    assert no_source == '{src = 0x0, dst = ADDRESS "vdb"}'
    assert f"capacity = 2147483648 (2.000 GiB), backingStore = {BASE}}}" in source
    assert null == "0x0"
    # Whose type has no name but that of its typedef.
    assert domain == r'ADDRESS "vm\"1" id 4, 3 disks'


def test_unreadable_memory_is_said(printed: Print) -> None:
    wild, pointer, broken, whole, chain = printed(
        *("print wild", "print (virStorageSource *) 16", "print &broken", "print broken"),
        "with virtrace chain on -- print wild",
    )
    assert "path = 0x10 <error: Cannot access memory at address 0x10>" in wild
    assert "backingStore = 0x10 unavailable: Cannot access memory at address 0x" in wild
    assert pointer.startswith("0x10 unavailable: Cannot access memory at address 0x")
    assert re.fullmatch(r"ADDRESS unavailable: Cannot access memory at address 0x\w+", broken)
    assert whole == "{pid = 78, def = 0x10}"
    assert "[backing 1] = 0x10 unavailable: " in chain
    assert "[chain] = unavailable: Cannot access memory at address 0x" in chain


def test_chains_are_followed_on_request(printed: Print) -> None:
    off, said, _, on, disk, domain, told = printed(
        *("print top", "show virtrace chain", "set virtrace chain on", "print top", "print vda"),
        *("print domain", "show virtrace chain"),
    )
    assert "[" not in off
    assert (said, told) == ("Backing chains are not followed.", "Backing chains are followed.")
    assert on.endswith(f", [backing 1] = {BASE}}}")
    assert disk == f'{{src = {TOP}, dst = ADDRESS "vda", [backing 1] = {BASE}}}'
    circle = "ADDRESS VIR_STORAGE_TYPE_FILE"
    assert f'[disk 0] = ADDRESS "vda" {TOP}, [disk 0 backing 1] = {BASE}, ' in domain
    assert '[disk 1] = ADDRESS "vdb" 0x0, [disk 2]' in domain
    # It ends where it came from.
    assert f'[disk 2] = ADDRESS "vdc" {circle}' in domain
    assert domain.count(circle) == 5
    again = "[disk 2 backing 3] = ADDRESS again: this chain goes in a circle}"
    assert domain.endswith(again)


def test_chains_are_bounded(printed: Print) -> None:
    _, chain, disks = printed("set virtrace chain on", "print longest[0]", "print busy")
    assert chain.count("[backing ") == 100
    assert chain.endswith(", [backing] = more than 100: not followed}")
    assert len(set(re.findall(r"\[disk \d+\]", disks))) == 64
    assert disks.endswith(", [disk] = 100 in all: the first 64 are shown}")


def test_they_can_be_switched_off(printed: Print) -> None:
    listed, _, stats, source, _, pointer = printed(
        *("info pretty-printer", "disable pretty-printer global virtrace;qemuBlockStats"),
        *("print stats", "print &top", "disable pretty-printer global virtrace", "print &top"),
    )
    names = ["qemuBlockStats", "virDomainDiskDef", "virDomainObj", "virStorageSource"]
    assert "  virtrace\n" + "\n".join(f"    {name}" for name in names) in listed
    assert "capacity = 2147483648, " in stats
    assert source == TOP
    assert pointer == "(virStorageSource *) ADDRESS <top>"


def test_what_is_unseen_or_turns_text_is_an_escape(printed: Print) -> None:
    # A right-to-left override and a zero width space, as UTF-8.
    shown = printed('set var top.path = "/a\\342\\200\\256b\\342\\200\\213"', "print &top")[1]
    assert '"/a\\u202eb\\u200b"' in shown
