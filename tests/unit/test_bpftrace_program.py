"""What goes into a program for bpftrace, and what a stranger's output can do to the import."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtrace import __version__
from virtrace.binary.pack import InRegister
from virtrace.binary.x86_64 import ABI
from virtrace.cli.main import main
from virtrace.engines.bpftrace import program
from virtrace.errors import TargetError, TraceError, VirtraceError
from virtrace.plan import file as document
from virtrace.plan.arguments import ByOperands, ByPlaces
from virtrace.plan.capture import Capture
from virtrace.plan.file import StoredPlan
from virtrace.plan.model import (
    AnySite,
    ExportedFunctions,
    Plan,
    ResolvedProbe,
    SpanSite,
    StaticProbeSite,
)
from virtrace.recipe import path
from virtrace.targets import LIBVIRT
from virtrace.trace.format import Header
from virtrace.trace.reader import read_trace

LIBRARY = "/usr/lib/libvirt.so.0"
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


def capture(text: str, **types: str) -> Capture:
    known = {name.rstrip("_"): LIBVIRT.type_named(ctype) for name, ctype in types.items()}
    return Capture(path.parse(text), known)


def span(
    file: str = LIBRARY,
    probe: str = "virDomainSave",
    to: str = "to",
) -> SpanSite:
    return SpanSite(
        probe,
        "libvirt.so.0",
        file,
        entry=0x1000,
        address=0x1000,
        arguments=ByPlaces({"domain": InRegister("rdi"), "to": InRegister("rsi")}, ABI),
        enter={
            "domain": capture("domain->name", domain="virDomain *"),
            to: capture("to", to="char *"),
        },
        exit={"result": capture("return", return_="int")},
        root=True,
    )


def plan(site: AnySite | None = None) -> StoredPlan:
    header: Header = {
        "type": "header",
        "format": "virtrace-trace",
        "version": 2,
        "started": "2026-01-01T00:00:00+00:00",
        "clock": {"source": "CLOCK_MONOTONIC", "start_ns": 0},
        "tool": {
            "virtrace": __version__,
            "engine": {"name": "gdb", "version": "13.1"},
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
        "virDomainSave",
        "virDomainSave",
        "span",
        "libvirt.so.0",
        "symbol",
        [site or span()],
        offset=0x1000,
    )
    return StoredPlan(Plan([probe], ExportedFunctions()), header)


def where(**files: str) -> program.Where:
    return program.Where("1234", files, {"libvirt.so.0": 0x7F0000000000})


def printed(events: list[str]) -> bytes:
    """What bpftrace prints of a program."""
    pieces = (f"plan {piece}" for piece in program.pieces_of_plan(plan()))
    lines = ["virtrace 1 1000 1700000000 77", *pieces, "planned", *events, "end 9"]
    said = ({"type": "printf", "data": line} for line in lines)
    return b"".join(json.dumps(one).encode() + b"\n" for one in said)


# One call, with all that it could read but the text of `to`, whose page was not there.
NAME = b"vm1".ljust(8, b"\0")[::-1].hex()
CALL = [
    f"w 10 5 0 7000 0 0 6000 {NAME}",
    f"w 20 5 0 6000 {NAME} 0 0",
    "e 0 77 5 0 1 2000 2 8000 7f0000001000 7000 9000 0 0 0 0",
    "r 0 77 5 0 2 3000 0 8008 7f0000002000 ffffffff",
]


def imported(data: bytes, folder: Path) -> int:
    file, trace = folder / "printed", folder / "trace.jsonl"
    file.write_bytes(data)
    trace.unlink(missing_ok=True)
    return main(["import", str(file), "-o", str(trace)])


def test_only_numbers_and_harmless_words_get_into_a_program() -> None:
    evil = 'x" ); system("touch /evil'
    text = program.text(plan(span(probe=evil, to=evil)), where())
    assert "system" not in text
    assert "evil" not in text
    # Every string is one of our own, but for the plan, of letters that mean nothing.
    for string in re.findall(r'"([^"]*)"', text):
        assert re.fullmatch(r"[\w %]*|plan [A-Za-z0-9+/=]+", string), string


@pytest.mark.parametrize("file", ["/a b", "/a;b", '/a"b', "/a*b", "/a{b", "/a:b", "/a\nb", "a"])
def test_odd_paths_are_refused(file: str) -> None:
    with pytest.raises(TargetError, match="cannot be given the path"):
        program.text(plan(span(file)), where())


@pytest.mark.parametrize("name", ["a b", "a}", "*", ""])
def test_odd_static_probes_are_refused(name: str) -> None:
    site = StaticProbeSite(
        *("probe", "libvirt.so.0", LIBRARY, "libvirt", name),
        addresses=[0x1000],
        semaphores=[],
        arguments=ByOperands(["to"], {0x1000: ["8@%rdi"]}),
        capture={"to": capture("to", to="char *")},
    )
    with pytest.raises(TargetError, match="static probe"):
        program.text(plan(site), where())


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


def test_what_was_not_printed_is_unavailable(tmp_path: Path) -> None:
    assert imported(printed(CALL), tmp_path) == 0
    enter, exit_ = read_trace(tmp_path / "trace.jsonl").events
    assert exit_.values == {"result": -1}
    assert "did not read it" in enter.values["to"]["unavailable"]


def test_a_lost_event_ends_the_call_and_is_told(tmp_path: Path) -> None:
    assert imported(printed([*CALL[:3], CALL[3].replace(" 2 3000", " 4 3000")]), tmp_path) == 4
    trace = read_trace(tmp_path / "trace.jsonl")
    assert [event.type for event in trace.events] == ["enter", "lost"]
    assert trace.footer is not None
    assert trace.footer["dropped"] == 2


def test_a_line_that_the_program_did_not_print_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, end = printed(CALL).splitlines(keepends=True)
    noise = b"Could not resolve symbol: /proc/self/exe\n"
    assert imported(b"".join([noise, *lines, noise, end]), tmp_path) == 4
    said = capsys.readouterr().err
    assert "were left out: 2 in all, the first of them line 1\n" in said
    assert [event.type for event in read_trace(tmp_path / "trace.jsonl").events] == [
        "enter",
        "exit",
    ]


def test_zeros_of_a_failed_read_are_no_values(tmp_path: Path) -> None:
    failed = json.dumps({"type": "helper_error", "helper": "probe_read_user", "line": 20}).encode()
    lines = printed(["w 20 5 0 9000 0 0", *CALL[2:]]).splitlines(keepends=True)
    assert imported(b"".join(lines), tmp_path) == 0
    enter, _ = read_trace(tmp_path / "trace.jsonl").events
    assert enter.values["to"] == ""
    at = next(index for index, line in enumerate(lines) if b'"w 20' in line)
    lines.insert(at, failed + b"\n")
    imported(b"".join(lines), tmp_path)
    enter, _ = read_trace(tmp_path / "trace.jsonl").events
    assert "was not in memory" in enter.values["to"]["unavailable"]


def test_a_stranger_cannot_break_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(1)
    sound = printed(CALL)
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(len(data))
            kind = dice.randrange(4)
            if kind == 0:
                data[at] = dice.randrange(256)
            elif kind == 1:
                del data[at : at + dice.randrange(40)]
            elif kind == 2:
                data[at:at] = dice.choice([b"-1", b"9" * 30, b"0x", b'"', b"{", b"\n", b" "])
            else:
                data[at:at] = data[at : at + 60]
        assert imported(bytes(data), tmp_path) in (0, 2, 3, 4)
    capsys.readouterr()


def leaves(value: Any, way: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*way, key)
        if isinstance(one, (dict, list)):
            yield from leaves(one, (*way, key))


def test_a_strangers_plan_is_refused_or_harmless(tmp_path: Path) -> None:
    dice = random.Random(2)
    sound = document.write(plan(), ABI)
    odd = [None, -1, 1 << 70, "x", [], {}, True, 0.5, {"pointer": 8}, [1, 2], "rdi", "->"]
    for _ in range(400):
        about = json.loads(sound)
        way = dice.choice([*leaves(about)])
        inner = about
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = dice.choice(odd)
        try:
            changed = document.read(json.dumps(about).encode())
            text = program.text(changed, where())
        except VirtraceError:
            continue
        assert "system" not in text
        pieces = (f"plan {piece}" for piece in program.pieces_of_plan(changed))
        lines = ["virtrace 1 1000 1700000000 77", *pieces, "planned", *CALL, "end 9"]
        said = ({"type": "printf", "data": line} for line in lines)
        data = b"".join(json.dumps(one).encode() + b"\n" for one in said)
        assert imported(data, tmp_path) in (0, 2, 3, 4)
