"""Traces of libvirt 9.0.0 with debug info: the whole chain, against GDB, QMP and virsh."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab.tracing import (
    DISKS,
    SCRIPT,
    all_disks,
    calls_of,
    gdb_environment,
    printed_info,
    record,
    span,
    whole_trace,
)
from tests.support.block_stats import COUNTERS, FIELDS
from tests.support.command import SECONDS
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Span
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.matrix

CHAIN = [
    "virDomainGetBlockInfo",
    "qemuDomainGetBlockInfo",
    "qemuDomainBlocksStatsGather",
    "qemuMonitorGetAllBlockStatsInfo",
    "qemuMonitorJSONQueryBlockstats",
    "qemuMonitorJSONQueryBlockstats",
    "qemuMonitorBlockStatsUpdateCapacityBlockdev",
]


def returned(call: Call, name: str) -> dict[str, Any]:
    values = span(call, name).returned
    assert values is not None
    return values


def decide(disk: str, stats: dict[str, Any], file: Path) -> dict[str, int]:
    """Libvirt's table of a running guest, for disks in files."""
    usage = stats["physical"]
    by_offset = stats["wr_highest_offset_valid"] and disk != "vda"  # vda is the qcow2
    allocation = stats["wr_highest_offset"] if by_offset else usage
    physical = usage
    if usage == 0 or allocation in (0, usage):
        allocation = allocation or usage
        physical = file.stat().st_size
    return {"capacity": stats["capacity"], "allocation": allocation, "physical": physical}


def test_the_whole_chain(debug_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(debug_lab, output, command=all_disks(debug_lab))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert trace.header["target"]["program"]["version"] == "9.0.0"
    levels = {probe["name"]: probe["level"] for probe in trace.header["probes"]}
    assert levels.pop("qemuMonitorBlockStatsUpdateCapacity") == "missing"
    assert levels.pop("qmp.send") == levels.pop("qmp.reply") == "usdt"
    assert set(levels.values()) == {"dwarf"}
    assert "unavailable" not in json.dumps([event.to_record() for event in trace.events])

    calls = calls_of(trace)
    printed = printed_info(done.stdout)
    direct = debug_lab.qmp({"execute": "query-blockstats"})["return"]
    nodes = debug_lab.qmp({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
    images = {node["node-name"]: node["image"] for node in nodes["return"]}
    assert len(calls) == len(printed) == len(direct) == len(DISKS)
    for disk, call, numbers, device in zip(DISKS, calls, printed, direct):
        assert [node.name for node in call.nodes() if isinstance(node, Span)] == CHAIN
        for name in CHAIN[:2]:
            assert span(call, name).arguments == {"domain": "vm1", "disk": disk, "flags": 0}
            assert returned(call, name) == {"result": 0, "info": numbers}
        assert span(call, CHAIN[2]).arguments == {"disk": disk, "capacity": True}
        stats = returned(call, CHAIN[2])["stats"]
        # Every field of the struct, and what QEMU says of it when asked directly.
        assert list(stats) == FIELDS
        assert {field: stats[field] for field in COUNTERS} == {
            field: device["stats"][name] for field, name in COUNTERS.items()
        }
        assert stats["wr_highest_offset"] == device["parent"]["stats"]["wr_highest_offset"]
        assert stats["wr_highest_offset_valid"] is True
        image = images[device["node-name"]]
        assert stats["capacity"] == image["virtual-size"]
        assert stats["physical"] == image["actual-size"]
        # And the answer follows from it.
        assert decide(disk, stats, debug_lab.disk_file(disk)) == numbers
        # The QMP conversation hangs where it was held.
        talk = [node for node in call.nodes() if isinstance(node, Exchange)]
        assert [exchange.reply is not None for exchange in talk] == [True] * 3


def parsed(text: str) -> dict[str, Any]:
    """GDB's `$1 = {rd_req = 1, ..., wr_highest_offset_valid = true}`."""
    words = {"true": True, "false": False}
    return {
        name: words[value] if value in words else int(value)
        for name, value in re.findall(r"(\w+) = (\w+)[,}]", text)
    }


def test_gdb_prints_the_same_of_the_same_call(debug_lab: Lab, tmp_path: Path) -> None:
    output, printed = tmp_path / "trace.jsonl", tmp_path / "printed.jsonl"
    environment = gdb_environment(OUTPUT=str(output), CALLS=str(len(DISKS)))
    beside = Path(__file__).with_name("gdb_print.py")
    with subprocess.Popen(
        ["gdb", "-nx", "-batch", "-x", str(beside), "-x", str(SCRIPT), "-p", str(debug_lab.pid)],
        env={**environment, "GDB_PRINT": str(printed)},
        stdout=subprocess.PIPE,
        text=True,
    ) as gdb:
        assert gdb.stdout is not None
        assert any("Ctrl-C" in line for line in gdb.stdout)
        for disk in DISKS:
            assert debug_lab.virsh("domblkinfo", "vm1", disk).returncode == 0
        gdb.communicate(timeout=SECONDS)
    assert gdb.returncode == 0
    calls = calls_of(whole_trace(output))
    by_gdb = [json.loads(line) for line in printed.read_text().splitlines()]
    assert len(by_gdb) == 3 * len(DISKS)
    compared = 0
    for i, call in enumerate(calls):
        gather, driver, api = by_gdb[3 * i : 3 * i + 3]
        for said in (gather, driver, api):
            traced = returned(call, said["function"])
            assert traced["result"] == said["result"]
            for name in ("stats", "info"):
                if name in said:
                    assert parsed(said[name]) == traced[name]
                    compared += len(traced[name])
    assert compared == len(DISKS) * (len(FIELDS) + 3 + 3)


def test_eight_clients_at_once(debug_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    clients = [
        subprocess.list2cmdline(
            debug_lab.virsh_command("; ".join([f"domblkinfo vm1 {DISKS[i % 4]}"] * 50))
        )
        + f" > {tmp_path}/client-{i}"
        for i in range(8)
    ]
    done = record(debug_lab, output, command=["sh", "-c", " & ".join(clients) + " & wait"])
    assert done.returncode == 0, done.stderr
    calls = calls_of(whole_trace(output))
    assert len(calls) == 400
    answers = [printed_info((tmp_path / f"client-{i}").read_text()) for i in range(8)]
    assert [len(answer) for answer in answers] == [50] * 8
    for call in calls:
        assert call.complete
        assert [node.name for node in call.nodes() if isinstance(node, Span)] == CHAIN
        disk = call.root.arguments["disk"]
        assert span(call, CHAIN[2]).arguments["disk"] == disk
        numbers = answers[DISKS.index(disk)][0]
        assert returned(call, CHAIN[1])["info"] == returned(call, CHAIN[0])["info"] == numbers


def test_a_call_that_fails(debug_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(debug_lab, output, command=debug_lab.virsh_command("domblkinfo", "vm1", "vdz"))
    assert done.returncode == 0, done.stderr
    [call] = calls_of(whole_trace(output))
    [error] = call.errors()
    assert f"error: {error.values['message']}\n" in done.stderr
    assert returned(call, "qemuDomainGetBlockInfo")["result"] == -1
