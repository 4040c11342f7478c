"""The source lines of the driver's method: those that GDB's own `next` walks through."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.tracing import DISKS, calls_of, record, span, whole_trace
from tests.support import intact
from tests.support.cases import explain
from tests.support.command import SECONDS
from virtrace.analysis.decision import CAPACITY, OFFSET, STAT, USAGE
from virtrace.lab.daemon import Lab
from virtrace.trace.format import Event

pytestmark = pytest.mark.matrix

# Every disk, and one that the guest does not have.
ASKED = (*DISKS, "vdz")
METHOD = "qemuDomainGetBlockInfo"
# What libvirt 9.0.0 takes at which line. Line 10934 is without code of its own in this build:
# what it sets is seen after 10923, the condition that it belongs to.
SET_AT = {
    "capacity": {10937: CAPACITY},
    "allocation": {10903: USAGE, 10907: USAGE, 10909: OFFSET, 10926: USAGE},
    "physical": {10923: USAGE, 10929: STAT, 10931: USAGE},
}
NEXT = Path(intact.__file__).with_name("gdb_next.py")


def lines_of(path: Path) -> list[list[Event]]:
    """The line events of each call, in their order."""
    trace = whole_trace(path)
    return [
        [event for event in trace.events if event.type == "line" and event.call == call.id]
        for call in calls_of(trace)
    ]


def walked_by_gdb(lab: Lab, folder: Path) -> list[list[int]]:
    written = folder / "lines"
    ready, ready_for_gdb = os.pipe()
    with subprocess.Popen(
        ["gdb", "-nx", "-batch", "-p", str(lab.pid), "-x", NEXT],
        env={
            **os.environ,
            "GDB_LINES": str(written),
            "GDB_READY": str(ready_for_gdb),
            "GDB_CALLS": str(len(ASKED)),
            "DEBUGINFOD_URLS": "",
        },
        pass_fds=[ready_for_gdb],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as gdb:
        os.close(ready_for_gdb)
        with open(ready, "rb") as file:
            assert file.readline() == b"ready\n"
        for disk in ASKED:
            lab.virsh("domblkinfo", "vm1", disk)
        assert gdb.wait(SECONDS) == 0
    return [json.loads(line) for line in written.read_text().splitlines()]


def recorded(lab: Lab, output: Path, disks: Sequence[str]) -> Path:
    """The trace of a domblkinfo of each of the disks."""
    commands = "; ".join(f"domblkinfo vm1 {disk}" for disk in disks)
    done = record(lab, output, command=lab.virsh_command(commands))
    assert done.returncode == 0, done.stderr
    return output


def test_the_lines_that_next_walks_through(debug_lab: Lab, tmp_path: Path) -> None:
    output = recorded(debug_lab, tmp_path / "trace.jsonl", ASKED)
    traced = lines_of(output)
    walked = walked_by_gdb(debug_lab, tmp_path)
    assert [[event.values["line"] for event in events] for events in traced] == walked
    assert min(map(len, walked)) > 8
    assert {event.values["file"] for events in traced for event in events} == {
        "src/qemu/qemu_driver.c"
    }


def test_what_changed_from_line_to_line_adds_up(debug_lab: Lab, tmp_path: Path) -> None:
    output = recorded(debug_lab, tmp_path / "trace.jsonl", DISKS)
    for call, events in zip(calls_of(whole_trace(output)), lines_of(output)):
        known: dict[str, int] = {}
        for event in events:
            for name, change in event.values["changed"].items():
                # What virDomainGetBlockInfo hands in is zeroed.
                assert change.get("from") == known.get(name)
                assert name in known or change["to"] == 0
                known[name] = change["to"]
        assert (span(call, METHOD).returned or {})["info"] == known


def test_explain_sees_the_branches_of_the_decision_table(debug_lab: Lab, tmp_path: Path) -> None:
    """For every disk: the line that a number was set at, and what it was set to."""
    output = recorded(debug_lab, tmp_path / "trace.jsonl", DISKS)
    trace = whole_trace(output)
    branches = []
    for one in explain(calls_of(trace), trace.header["probes"]):
        decision = one.case.decision
        assert decision is not None
        assert not one.contradicts
        decided = {
            "capacity": (CAPACITY, one.case.block.number("capacity")),
            "allocation": (decision.allocation, decision.allocation_bytes),
            "physical": (decision.physical, decision.physical_bytes),
        }
        for lineage in one.lineages:
            source, value = decided[lineage.number]
            [seen] = lineage.rule.seen
            assert seen.old == 0
            assert seen.now.value == lineage.answer.value
            assert value in (None, seen.now.value)
            if seen.changed:
                assert seen.after.number is not None
                assert SET_AT[lineage.number][seen.after.number] == source
                branches.append(seen.after.number)
    # All but those that no disk of the guest takes: QEMU told no offset, or the look failed.
    assert set(branches) == {10937, 10907, 10909, 10926, 10923, 10929}
    # And the one number that is 0 is not changed.
    assert len(branches) == 3 * len(DISKS) - 1


def test_the_text_of_the_lines(debug_lab: Lab, tmp_path: Path) -> None:
    """Where a file of the right name is not the right version, there is none."""
    output, source = tmp_path / "trace.jsonl", tmp_path / "src" / "qemu" / "qemu_driver.c"
    source.parent.mkdir(parents=True)
    # Such as line 10836 of the build: that is where debug info says that it is declared.
    lines = [f"text of line {number}" for number in range(1, 20_001)]
    commands = debug_lab.virsh_command("domblkinfo", "vm1", "vdd")
    for declaration, expected in ((f"{METHOD}(virDomainPtr dom,", True), ("other(", False)):
        lines[10835] = declaration
        source.write_text("\n".join(lines))
        output.unlink(missing_ok=True)
        done = record(debug_lab, output, "--source", str(tmp_path), command=commands)
        assert done.returncode == 0, done.stderr
        [events] = lines_of(output)
        texts = [(event.values["line"], event.values.get("text")) for event in events]
        assert texts == [(line, f"text of line {line}" if expected else None) for line, _ in texts]
