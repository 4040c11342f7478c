"""The programs for the kernel, and what the records that they write are taken for."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.recipes import FOR_LIBVIRT
from virtrace import __version__
from virtrace.binary.ctype import CType, Integer
from virtrace.binary.pack import InRegister
from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes import spool
from virtrace.engines.uprobes.assembler import (
    FP,
    R0,
    R1,
    R2,
    R6,
    R7,
    Assembler,
    Symbol,
)
from virtrace.engines.uprobes.compile import programs_of
from virtrace.engines.uprobes.frames import frames, records_of
from virtrace.engines.uprobes.hits import DamagedRecordError, Hit, Hits
from virtrace.engines.uprobes.layout import (
    BLOCK_HEADER,
    BLOCKS,
    BYTES,
    CONTENT,
    FREE,
    HIT,
    HIT_HEADER,
    LOST,
    NOT_REACHED,
    PARAMETERS,
    PARAMETERS_SIZE,
    PART_HEADER,
    TEXT,
    VALUES,
    WORD,
)
from virtrace.engines.uprobes.program import PLAIN, Program, fingerprint, programs
from virtrace.errors import TraceError, Unavailable, VirtraceError
from virtrace.plan import file as document
from virtrace.plan.arguments import ByPlaces
from virtrace.plan.capture import Capture
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import (
    ExportedFunctions,
    Plan,
    ResolvedProbe,
    ReturnPointSite,
    SpanSite,
)
from virtrace.recipe import path
from virtrace.targets import LIBVIRT
from virtrace.trace.format import Header

LIBRARY = "/usr/lib/libvirt.so.0"
LIBVIRTD = Path("/usr/sbin/libvirtd")

# --- The assembler


def coded(write: Callable[[Assembler], None]) -> str:
    code = Assembler()
    write(code)
    return code.code().instructions.hex(" ", 8)


def jumping(comparison: str, value: int) -> Callable[[Assembler], None]:
    def write(code: Assembler) -> None:
        code.jump_if(R1, comparison, value, "there")
        code.exit()
        code.label("there")

    return write


EXIT = " 9500000000000000"


# By the tables of instruction-set.rst: opcode, registers (source in the upper half), offset,
# immediate.
@pytest.mark.parametrize(
    ("write", "bytes_"),
    [
        (lambda code: code.do(R1, "+=", 8), "0701000008000000"),
        (lambda code: code.do(R1, "+=", R2), "0f21000000000000"),
        (lambda code: code.do(R1, "-=", 1), "1701000001000000"),
        (lambda code: code.do(R1, "*=", 96), "2701000060000000"),
        (lambda code: code.do(R2, "&=", -2), "57020000feffffff"),
        (lambda code: code.do(R1, "<<=", 32), "6701000020000000"),
        (lambda code: code.do(R1, ">>=", 32), "7701000020000000"),
        (lambda code: code.do(R1, "s>>=", 32), "c701000020000000"),
        (lambda code: code.do(R6, "=", R1), "bf16000000000000"),
        (lambda code: code.do(R0, "=", 0), "b700000000000000"),
        (lambda code: code.do(R0, "=", -1), "b7000000ffffffff"),
        (lambda code: code.do(R1, "=", 1 << 32), "1801000000000000 0000000001000000"),
        (lambda code: code.do(R1, "=", 0xFFFFFFFF), "18010000ffffffff 0000000000000000"),
        (lambda code: code.load(R1, R6, 112), "7961700000000000"),
        (lambda code: code.load(R1, FP, -8, 4), "61a1f8ff00000000"),
        (lambda code: code.load(R1, FP, -8, 2), "69a1f8ff00000000"),
        (lambda code: code.load(R1, FP, -8, 1), "71a1f8ff00000000"),
        (lambda code: code.store(R7, 8, R1), "7b17080000000000"),
        (lambda code: code.store(R7, 8, R1, 4), "6317080000000000"),
        (lambda code: code.store(FP, -16, 1), "7a0af0ff01000000"),
        (lambda code: code.store(R7, 0, 65537, 4), "6207000001000100"),
        (lambda code: code.atomic_add(R0, 0, R1), "db10000000000000"),
        (lambda code: code.call(131), "8500000083000000"),
        (lambda code: code.exit(), "9500000000000000"),
        (jumping("==", 0), "1501010000000000" + EXIT),
        (jumping("==", R2), "1d21010000000000" + EXIT),
        (jumping("!=", -1), "55010100ffffffff" + EXIT),
        (jumping("&", 1), "4501010001000000" + EXIT),
        (jumping(">", 5), "2501010005000000" + EXIT),
        (jumping(">=", 5), "3501010005000000" + EXIT),
        (jumping("<", 5), "a501010005000000" + EXIT),
        (jumping("<=", 5), "b501010005000000" + EXIT),
        (jumping("s>", 0), "6501010000000000" + EXIT),
        (jumping("s>=", 0), "7501010000000000" + EXIT),
        (jumping("s<", 0), "c501010000000000" + EXIT),
        (jumping("s<=", 0), "d501010000000000" + EXIT),
    ],
)
def test_an_instruction(write: Callable[[Assembler], None], bytes_: str) -> None:
    assert coded(write) == bytes_


def test_a_jump_goes_backwards_and_over_an_inserted_fragment() -> None:
    code = Assembler()
    code.label("again")
    fragment = code.fragment()
    fragment.load_symbol(R1, Symbol("number"))
    fragment.jump("out")
    code.insert(fragment)
    code.jump_if(R1, "!=", 0, "again")
    code.label("out")
    code.exit()
    assert code.code().instructions.hex(" ", 8) == (
        "1801000000000000 0000000000000000 0500010000000000 5501fcff00000000 9500000000000000"
    )


def test_symbols_become_values() -> None:
    code = Assembler()
    code.exit()
    code.load_symbol(R1, Symbol("ring", is_map=True))
    code.load_symbol(R2, Symbol("inode"))
    linked = code.code().link({"ring": 7, "inode": 0xF000000012345678})
    assert linked.hex(" ", 8) == (
        # A map's descriptor is marked by the number 1 where the source would be.
        "9500000000000000 1811000007000000 0000000000000000 1802000078563412 00000000000000f0"
    )


# --- The programs of a plan


def capture(text: str, **types: str) -> Capture:
    known = {name.rstrip("_"): LIBVIRT.type_named(ctype) for name, ctype in types.items()}
    return Capture(path.parse_path(text), known)


def span() -> SpanSite:
    return SpanSite(
        "virDomainSave",
        "libvirt.so.0",
        LIBRARY,
        entry=0x1000,
        address=0x1000,
        arguments=ByPlaces({"domain": InRegister("rdi"), "to": InRegister("rsi")}, ABI),
        enter={
            "domain": capture("domain->name", domain="virDomain *"),
            "to": capture("to", to="char *"),
        },
        exit={"result": capture("return", return_="int")},
        root=True,
    )


RECIPE = {
    "virtrace": 1,
    "name": "small",
    "about": "a",
    "try": "t",
    "spans": [
        {
            "prototype": "int virDomainSave(virDomainPtr domain, const char *to)",
            "module": "libvirt.so.0",
            "root": True,
            "enter": {"domain": "domain->name", "to": "to"},
            "exit": {"result": "return"},
        }
    ],
}


def plan(site: SpanSite | None = None) -> StoredPlan:
    header: Header = {
        "type": "header",
        "format": "virtrace-trace",
        "version": 2,
        "started": "2026-01-01T00:00:00+00:00",
        "clock": {"source": "CLOCK_MONOTONIC", "start_ns": 0},
        "tool": {
            "virtrace": __version__,
            "engine": {"name": "uprobes", "version": "6.1"},
            "python": "3.11.2",
        },
        "target": {
            "pid": 1,
            "exe": "libvirtd",
            "program": {"name": "libvirt", "version": "9.0.0"},
            "modules": [],
        },
        "host": {"machine": "x86_64", "kernel": "6.1", "system": None},
        "recipe": RECIPE,
        "probes": [
            {
                "name": "virDomainSave",
                "kind": "span",
                "role": None,
                "module": "libvirt.so.0",
                "offset": "0x1000",
                "level": "symbol",
                "why": None,
                "lacks": [],
            }
        ],
    }
    probe = ResolvedProbe(
        *("virDomainSave", "virDomainSave", "span", "libvirt.so.0", "symbol"),
        [site or span()],
        offset=0x1000,
    )
    return StoredPlan(Plan([probe], ExportedFunctions()), header)


ENTRY, RETURN = range(2)
PROGRAMS = programs(plan().plan, PLAIN)


def test_a_span_has_a_program_at_its_entry_and_one_at_its_return() -> None:
    assert [(one.site, one.address, one.at_return) for one in PROGRAMS] == [
        (0, 0x1000, False),
        (0, 0x1000, True),
    ]


ENTERED, ENDED = 0x1004, (0x1080, 0x10F0)


def conditional(
    *captures: str, fails: int | None = None, over: int | None = None
) -> ReturnPointSite:
    """What is recorded of a function with two `ret`s."""
    types: dict[str, CType] = {name: Integer(8) for name in ("a", "b")}
    types[path.RETURN] = Integer(fails or 8)
    places = {"a": InRegister("rdi"), "b": InRegister("rsi")}
    return ReturnPointSite(
        *("failed", "q", "/usr/bin/q", 0x1000, ENTERED, ByPlaces(places, ABI)),
        {name: Capture(path.parse_path(name), types) for name in captures},
        anywhere=True,
        returns=ENDED,
        fails=fails,
        over=over,
    )


def made_of(site: ReturnPointSite) -> list[Program]:
    probe = ResolvedProbe("failed", "f", "point", "q", "symbol", [site], offset=0x1000)
    return [*programs(Plan([probe], ExportedFunctions()), PLAIN)]


def operations(program: Program) -> list[tuple[int, int, int, int]]:
    """Of each instruction: its operation, registers, offset and number."""
    return [*struct.iter_unpack("<BBhi", program.code.instructions)]


CALL, RESERVE, DELETE = 0x85, 131, 3
LOAD, SHIFT, IS_BELOW, IS_ABOVE, MINUS = 0x79, 0x67, 0xC5, 0x2D, 0x1F
RAX = 80


def test_what_fails_leaves_no_record_of_its_entry() -> None:
    entry, *ends = made_of(conditional("b", "return", fails=4))
    assert entry.address == ENTERED
    assert [end.address for end in ends] == [*ENDED]
    assert not any(one.is_return_probe for one in (entry, *ends))
    calls = [number for code, _, _, number in operations(entry) if code == CALL]
    assert RESERVE not in calls
    # A map is updated once: with what the return needs, also if it needs nothing.
    assert calls.count(2) == 1
    bare, *_ = made_of(conditional("return", fails=4))
    assert [number for code, _, _, number in operations(bare) if code == CALL].count(2) == 1


@pytest.mark.parametrize(("size", "shift"), [(4, [(SHIFT, 1, 0, 32)]), (8, [])])
def test_only_a_result_below_0_is_recorded(size: int, shift: list[tuple[int, ...]]) -> None:
    _, end, _ = made_of(conditional("b", "return", fails=size))
    found = operations(end)
    # The result, its sign, and the way on: before that no room is reserved for a record.
    at = next(index for index, (code, *_) in enumerate(found) if code == IS_BELOW)
    assert found[at][1:] == (1, found[at][2], 0)
    assert found[at - len(shift) : at] == shift
    load = found[at - len(shift) - 1]
    assert load[:3] == (LOAD, 0x61, RAX)
    reserves = found.index((CALL, 0, 0, RESERVE))
    target = at + 1 + found[at][2]
    assert at < target < reserves
    # What did not fail lets go what was kept, and ends.
    fine = found[at + 1 : target]
    assert [number for code, _, _, number in fine if code == CALL] == [DELETE]
    leads_to = target + found[target - 1][2]
    assert found[target - 1][0] == 0x05
    assert found[leads_to : leads_to + 2] == [(0xB7, 0, 0, 0), (0x95, 0, 0, 0)]


NOW = 125


@pytest.mark.parametrize("limit", [10_000_000, 3600 * 10**9])
def test_only_a_call_that_took_longer_is_recorded(limit: int) -> None:
    entry, end, _ = made_of(conditional("b", over=limit))
    calls = [number for code, _, _, number in operations(entry) if code == CALL]
    assert RESERVE not in calls
    assert calls.count(NOW) == 1
    found = operations(end)
    at = next(index for index, (code, *_) in enumerate(found) if code == IS_ABOVE)
    assert found[at][1] == 1 | 2 << 4
    before = found[:at]
    # The time now, without that which the entry kept first.
    assert before.index((CALL, 0, 0, NOW)) < before.index((MINUS, 1 | 8 << 4, 0, 0))
    low, high = limit & (1 << 32) - 1, limit >> 32
    wanted = [(0x18, 2, 0, low), (0, 0, 0, high)] if high else [(0xB7, 2, 0, low)]
    assert [(*one[:3], one[3] & (1 << 32) - 1) for one in before[-len(wanted) :]] == wanted
    target = at + 1 + found[at][2]
    assert target < found.index((CALL, 0, 0, RESERVE))
    within = found[at + 1 : target]
    assert [number for code, _, _, number in within if code == CALL] == [DELETE]
    assert end.layout.began is not None


def test_fingerprints_differ_where_programs_do() -> None:
    site = replace(span(), enter={"to": span().enter["to"]})
    assert fingerprint(programs(plan(site).plan, PLAIN)) != fingerprint(PROGRAMS)
    assert fingerprint(programs(plan().plan, PLAIN)) == fingerprint(PROGRAMS)


def test_a_plan_is_read_as_it_was_written() -> None:
    data = document.write(plan(), ABI)
    assert document.write(document.read(data), ABI) == data


@pytest.mark.parametrize(
    "change",
    [
        ('"version":2,"machine"', '"version":1,"machine"'),
        ('"is":"SpanSite"', '"is":"x"'),
        ('"is":"SpanSite"', '"is":"LineSite"'),
        ('"address":4096', '"address":-1'),
        ('"is":"InRegister","name":"rdi"', '"is":"InRegister"'),
        ('"is":"ByPlaces"', '"is":"ByOperands"'),
        ('"root":true', '"root":1'),
        ('"path":"to"', '"path":"system(to)"'),
        ('"string":true,"size":8', '"string":true,"size":9'),
    ],
)
def test_a_broken_plan_is_refused(change: tuple[str, str]) -> None:
    data = document.write(plan(), ABI).decode()
    assert change[0] in data
    with pytest.raises((TraceError, VirtraceError)):
        document.read(data.replace(*change).encode())


def leaves(value: Any, way: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key)
        if isinstance(one, (dict, list)):
            yield from leaves(one, (*way, key))


def test_a_strangers_plan_is_refused_or_has_programs() -> None:
    dice = random.Random(2)
    sound = document.write(plan(), ABI)
    odd = [None, -1, 1 << 70, "x", [], {}, True, 0.5, {"pointer": 8}, [1, 2], "rdi", "->"]
    refused = 0
    for _ in range(400):
        about = json.loads(sound)
        way = dice.choice([*leaves(about)])
        inner = about
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = dice.choice(odd)
        try:
            programs_of(json.dumps(about).encode())
        except VirtraceError:
            refused += 1
    assert 100 < refused < 400


FINGERPRINTS = """
import json, sys
from pathlib import Path
from virtrace.binary.x86_64 import ABI
from virtrace.engines.uprobes.compile import programs_of
from virtrace.engines.uprobes.program import fingerprint
from virtrace.engines.uprobes.run import resolve
from virtrace.plan import file
from virtrace.recipe import catalogue
from virtrace.targets.processes import installed
daemon = installed(Path(sys.argv[1]))
for name in sys.argv[2:]:
    data = file.write(resolve(catalogue.find_recipe(name), daemon, {}, ()), ABI)
    made = programs_of(data)[1]
    code = [program.code.instructions.hex() for program in made]
    print(json.dumps([name, fingerprint(made), code]))
"""


def made_of_recipes(seed: int) -> dict[str, tuple[str, list[bytes]]]:
    """For each shipped recipe: the fingerprint of its programs, and their instructions."""
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS, LIBVIRTD, *FOR_LIBVIRT],
        env={**os.environ, "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = map(json.loads, done.stdout.splitlines())
    return {name: (mark, [*map(bytes.fromhex, code)]) for name, mark, code in lines}


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[str, list[bytes]]]:
    if not LIBVIRTD.exists():
        pytest.skip("no libvirt is installed")
    return made_of_recipes(1)


def test_the_same_plan_has_the_same_programs_everywhere(
    made: dict[str, tuple[str, list[bytes]]],
) -> None:
    """The import on another host makes them again, to know what the records mean."""
    assert [*made] == FOR_LIBVIRT
    assert len({mark for mark, _ in made.values()}) == len(made)
    assert made_of_recipes(2) == made


def test_no_verifier_is_led_into_its_own_error(made: dict[str, tuple[str, list[bytes]]]) -> None:
    """Linux 6.18.44 can crash while it verifies AND or OR of what was extended by its sign.

    (maybe_fork_scalars of kernel/bpf/verifier.c.) No OR then, and AND only of what was just loaded.
    """
    for name, (_, programs_of_recipe) in made.items():
        for code in programs_of_recipe:
            before = (0, 0)
            for operation, registers in struct.iter_unpack("<BB6x", code):
                kind, target = operation & 0xF0, registers & 0x0F
                if operation & 0x07 in (0x04, 0x07):
                    assert kind != 0x40, name
                    assert kind != 0x50 or before == (0x79, target), name
                before = operation, target


# --- From records to events


def of(number: int, **changes: Any) -> bytes:
    """A record of one of the programs, which reached nothing.

    changes: fields of its beginning; values: of its registers; at: bytes by offset.
    """
    program = PROGRAMS[number]
    fields: dict[str, Any] = {
        "kind": HIT,
        "program": number,
        "tid": 5,
        "nth": 1,
        "t_ns": 1000,
        "parts": 0,
        "own_tid": 5,
        "known": (1 << len(program.layout.values)) - 1,
        "sp": 0x7000,
        "ip": 0x1000,
    }
    values, at = changes.pop("values", {}), changes.pop("at", {})
    fields.update(changes)
    record = bytearray(program.layout.size)
    HIT_HEADER.pack_into(record, 0, *fields.values())
    for name, value in values.items():
        index = program.layout.values.index(name)
        struct.pack_into("<Q", record, VALUES + WORD * index, value)
    for offset, _ in (*program.layout.blocks, *program.layout.texts):
        BLOCK_HEADER.pack_into(record, offset, 0, NOT_REACHED)
    for offset, data in at.items():
        record[offset : offset + len(data)] = data
    return bytes(record)


def text(number: int, address: int, size: int, content: bytes = b"") -> dict[int, bytes]:
    """A text in the record of the entry. size: with its NUL, or -errno."""
    offset, _ = PROGRAMS[ENTRY].layout.texts[number]
    return {offset: BLOCK_HEADER.pack(address, size) + content}


def part(kind: int, number: int, status: int, content: bytes, **changes: Any) -> bytes:
    fields = {"shift": 10, "tid": 5, "nth": 1, "address": 0x6000, **changes}
    head = (kind, fields["shift"], number, fields["tid"], fields["nth"], fields["address"], status)
    return PART_HEADER.pack(*head) + content


Taken = tuple[list[Hit], list[tuple[int, int, int]]]


def taken(*records: bytes) -> Taken:
    """Events, and what was lost."""
    events: list[Hit] = []
    lost: list[tuple[int, int, int]] = []
    hits = Hits(PROGRAMS, events.append, lambda *gap: lost.append(gap), own_tids=False)
    for record in records:
        hits.take(record)
    return events, lost


# Where the two texts of the entry are: of `domain->name`, and of `to`.
NAME, TO = 0, 1
ROOM = PROGRAMS[ENTRY].layout.texts[TO][1]


def entry(**changes: Any) -> bytes:
    return of(ENTRY, **changes)


def test_registers_and_texts_of_a_record() -> None:
    record = entry(values={"rdi": 0x9000, "rsi": 0x6000}, at=text(TO, 0x6000, 4, b"abc\0"))
    [hit], lost = taken(record)
    assert lost == []
    assert (hit.program, hit.tid, hit.nth, hit.t_ns, hit.sp, hit.ip) == (
        *(ENTRY, 5, 1, 1000, 0x7000, 0x1000),
    )
    names = PROGRAMS[ENTRY].layout.values
    assert dict(zip(names, hit.values))["rsi"] == 0x6000
    assert hit.memory.string(0x6000) == b"abc"


def test_a_register_that_is_not_known_is_no_zero() -> None:
    [hit], _ = taken(entry(known=0))
    assert set(hit.values) == {None}


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (-errno.EFAULT, "the page was not in memory"),
        (-errno.ENOMEM, "the kernel said ENOMEM"),
        (LOST, "the kernel's buffer was full"),
        (NOT_REACHED, "no program recorded it"),
    ],
)
def test_what_was_not_read_is_unavailable_and_says_why(status: int, why: str) -> None:
    [hit], _ = taken(entry(at=text(TO, 0x6000, status)))
    with pytest.raises(Unavailable, match=why):
        hit.memory.string(0x6000)


def test_what_no_program_reads_is_unavailable() -> None:
    [hit], _ = taken(entry(at=text(TO, 0x6000, 4, b"abc\0")))
    with pytest.raises(Unavailable, match="no program recorded it"):
        hit.memory.string(0x6001)
    with pytest.raises(Unavailable, match="no program recorded it"):
        hit.memory.read(0x6000, 8)


def test_a_block_is_read_within_its_bounds_only() -> None:
    offset, size = PROGRAMS[ENTRY].layout.blocks[0]
    data = bytes(range(size))
    [hit], _ = taken(entry(at={offset: BLOCK_HEADER.pack(0x9000, 0) + data}))
    assert hit.memory.read(0x9000, size) == data
    assert hit.memory.read(0x9001, size - 1) == data[1:]
    for address, length in ((0x8FFF, 1), (0x9000, size + 1), (0x9001, size)):
        with pytest.raises(Unavailable):
            hit.memory.read(address, length)


def long_text(*parts: bytes) -> list[bytes]:
    """An entry whose second text goes on in parts."""
    beginning = text(TO, 0x6000, ROOM, b"a" * (ROOM - 1) + b"\0")
    return [entry(parts=len(parts), at=beginning), *parts]


def test_a_text_of_several_parts_is_joined() -> None:
    records = long_text(
        part(TEXT, TO, 1024, b"b" * 1023 + b"\0"), part(TEXT, TO, 3, b"cd\0", shift=12)
    )
    [hit], _ = taken(*records)
    assert hit.memory.string(0x6000) == b"a" * (ROOM - 1) + b"b" * 1023 + b"cd"
    # It is an event when all of it has come.
    assert taken(*records[:2]) == ([], [])


def test_parts_of_two_threads_are_told_apart() -> None:
    [first, end] = long_text(part(TEXT, TO, 3, b"cd\0"))
    other = entry(tid=6, parts=1, at=text(TO, 0x6000, ROOM, b"x" * (ROOM - 1) + b"\0"))
    records = (first, other, part(TEXT, TO, 3, b"yz\0", tid=6), end)
    events, _ = taken(*records)
    assert [(hit.tid, hit.memory.string(0x6000)[-2:]) for hit in events] == [
        (6, b"yz"),
        (5, b"cd"),
    ]


def test_a_text_that_goes_on_behind_its_last_part_is_unavailable() -> None:
    [hit], _ = taken(*long_text(part(TEXT, TO, 1024, b"b" * 1023 + b"\0")))
    with pytest.raises(Unavailable, match=f"longer than the {ROOM - 1 + 1023} bytes"):
        hit.memory.string(0x6000)


def test_a_text_whose_part_found_no_room_is_unavailable() -> None:
    [hit], _ = taken(*long_text(part(TEXT, TO, LOST, b"")))
    with pytest.raises(Unavailable, match="the kernel's buffer was full"):
        hit.memory.string(0x6000)


def test_bytes_of_several_parts_follow_each_other() -> None:
    parts = (
        part(BYTES, FREE, 16, b"0123456789abcdef"),
        part(BYTES, FREE, 4, b"wxyz", address=0x6010),
    )
    [hit], _ = taken(entry(parts=2), *parts)
    assert hit.memory.read(0x600E, 4) == b"efwx"
    assert hit.memory.bytes_from(0x6000) == (b"0123456789abcdefwxyz", True)
    with pytest.raises(Unavailable):
        hit.memory.read(0x6010, 5)


def test_a_gap_in_the_numbers_of_a_thread_is_a_loss() -> None:
    events, lost = taken(
        entry(nth=1), entry(tid=6, nth=1), entry(nth=4, t_ns=3000), entry(tid=6, nth=2)
    )
    assert [(hit.tid, hit.nth) for hit in events] == [(5, 1), (6, 1), (5, 4), (6, 2)]
    assert lost == [(5, 2, 3000)]


def test_what_was_lost_before_the_first_event_of_a_thread_is_a_loss() -> None:
    assert taken(entry(nth=3))[1] == [(5, 2, 1000)]


@pytest.mark.parametrize(
    "records",
    [
        [b""],
        [b"\xff" + bytes(100)],
        [entry()[:-1]],
        [entry() + b"\0"],
        [entry()[: VALUES - 1]],
        [entry(program=2)],
        [entry(program=RETURN)],
        [entry(parts=1 << 15)],
        # A part continues an event of its thread, and nothing comes between.
        [part(TEXT, TO, 3, b"cd\0")],
        [entry(parts=1), part(TEXT, TO, 3, b"cd\0", tid=6)],
        [entry(parts=1), entry(nth=2)],
        [entry(parts=1), part(TEXT, TO, 3, b"cd\0")[: CONTENT - 1]],
        [entry(parts=1), part(TEXT, TO, 4, b"cd\0")],
        [entry(parts=1), part(BYTES, FREE, -1, b"cd")],
        [entry(parts=1), part(PARAMETERS, FREE, 96, b"cd")],
        [entry(parts=1), part(PARAMETERS, FREE, 1 << 40, bytes(PARAMETERS_SIZE - CONTENT))],
        # The entry has no part with a layout of its own.
        [entry(parts=1), part(BLOCKS, 0, 0, bytes(64))],
    ],
)
def test_a_record_that_no_program_writes_is_damaged(records: list[bytes]) -> None:
    with pytest.raises(DamagedRecordError, match="a record is damaged: "):
        taken(*records)


def test_damaged_records_are_refused_or_harmless() -> None:
    dice = random.Random(1)
    sound = [*long_text(part(TEXT, TO, 3, b"cd\0")), of(RETURN, nth=2)]
    refused = 0
    for _ in range(2000):
        records = [bytearray(record) for record in sound]
        for _ in range(dice.randint(1, 4)):
            record = dice.choice(records)
            at = dice.randrange(min(len(record), dice.choice((64, 1 << 12))))
            record[at] = dice.choice((0, 0xFF, dice.randrange(256)))
        try:
            events, _ = taken(*map(bytes, records))
        except DamagedRecordError:
            refused += 1
            continue
        for hit in events:
            for address in (0x6000, 0x9000):
                try:
                    hit.memory.string(address)
                    hit.memory.read(address, 8)
                except Unavailable:
                    pass
    assert 100 < refused < 2000


# --- The spool


def framed(*records: bytes) -> bytes:
    return frames([memoryview(record) for record in records])


def test_frames_are_cut_to_what_is_used() -> None:
    room = part(TEXT, TO, 3, b"cd\0" + bytes(1021))
    nothing = part(BYTES, FREE, -errno.EFAULT, bytes(1024))
    whole = entry()
    assert [*records_of(framed(room, nothing, whole))] == [
        part(TEXT, TO, 3, b"cd\0"),
        part(BYTES, FREE, -errno.EFAULT, b""),
        whole,
    ]
    assert [*records_of(framed(whole, whole)[:-1])] == [whole]


def numbered(count: int) -> list[bytes]:
    return [bytes([HIT]) + struct.pack("<Q", number) for number in range(count)]


def test_records_and_marks_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three segments in memory and in files; and while some are read already."""
    records = numbered(40)
    frame = len(framed(records[0]))
    monkeypatch.setattr(spool, "_SEGMENT", 5 * frame)
    monkeypatch.setattr(spool, "_IN_MEMORY", 1)
    waiting = spool.Spool[str](tmp_path)
    wanted: list[bytes | str] = []
    got: list[bytes | str] = []
    for number, record in enumerate(records):
        waiting.write(framed(record))
        wanted.append(record)
        if number % 7 == 3:
            waiting.mark(f"mark {number}")
            wanted.append(f"mark {number}")
        if number == 20:
            reading = waiting.read()
            got += [next(reading) for _ in range(4)]
            got += reading
            assert got == wanted
            assert waiting.size == 0
    assert waiting.size == frame * 19 + 3 * len(framed(b"\0"))
    got += waiting.read()
    assert got == wanted
    assert waiting.size == waiting.stored == 0
    # What lies in files has no name, and nothing is left.
    assert [*tmp_path.iterdir()] == []
    waiting.close()


def test_what_lies_in_files_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 0)
    waiting = spool.Spool[str](tmp_path)
    replies = [b"%c%d" % (TEXT, number) + bytes(range(200)) * 50 for number in range(20)]
    for reply in replies:
        waiting.write(framed(reply))
    assert 0 < waiting.stored < waiting.size / 10
    assert [*waiting.read()] == replies
    assert waiting.size == waiting.stored == 0
    waiting.close()


def test_a_spool_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_IN_MEMORY", 0)
    waiting = spool.Spool[str](tmp_path / "none")
    with pytest.raises(TraceError, match="cannot keep what was recorded in /"):
        waiting.write(framed(entry()))
