"""How the tests of this folder trace, and read what came of it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.support.command import virtrace
from tests.support.paths import REPOSITORY
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Span
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import Trace, read_trace

SCRIPT = REPOSITORY / "gdb_scripts" / "trace_blockinfo.py"
DISKS = ("vda", "vdb", "vdc", "vdd")
Measured = TypeVar("Measured")


def record(
    lab: Lab, output: Path, *options: str, command: Sequence[str] = (), engine: str = "gdb"
) -> subprocess.CompletedProcess[str]:
    traced = ["--", *command] if command else []
    target = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
    return virtrace("record", "blockinfo", *target, *options, *traced)


def all_disks(lab: Lab) -> list[str]:
    """One command that asks for every disk in turn."""
    commands = "\n".join(f"domblkinfo vm1 {disk}" for disk in DISKS)
    return lab.virsh_command(commands.replace("\n", "; "))


def whole_trace(path: Path) -> Trace:
    trace = read_trace(path)
    assert trace.problems == []
    return trace


def calls_of(trace: Trace) -> list[Call]:
    builder = CallBuilder()
    calls = [call for event in trace.events if (call := builder.feed(event))]
    assert builder.finish() == []
    return calls


def exchanges(call: Call) -> list[Exchange]:
    return [node for node in call.nodes() if isinstance(node, Exchange)]


def as_measured(table: Mapping[tuple[int, ...], Measured], version: tuple[int, ...]) -> Measured:
    """What was measured on this version of libvirt, or on the last one before it in the table."""
    return table[max(measured for measured in table if measured <= version)]


def span(call: Call, name: str) -> Span:
    return next(node for node in call.nodes() if isinstance(node, Span) and node.name == name)


def printed_info(text: str) -> list[dict[str, int]]:
    """What virsh printed, in its order: one dict a disk."""
    numbers = re.findall(r"^(Capacity|Allocation|Physical): +(\d+)$", text, re.M)
    values = [(name.lower(), int(number)) for name, number in numbers]
    return [dict(values[i : i + 3]) for i in range(0, len(values), 3)]


def gdb_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **{f"VIRTRACE_{name}": value for name, value in variables.items()}}
