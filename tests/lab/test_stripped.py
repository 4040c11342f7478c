"""The chain through a stripped driver, value by value against virsh and QEMU."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.tracing import (
    DISKS,
    all_disks,
    calls_of,
    printed_info,
    record,
    span,
    whole_trace,
)
from tests.support.block_stats import COUNTERS
from virtrace.lab.daemon import Lab
from virtrace.trace.format import is_unavailable

API, METHOD, GATHER = (
    "virDomainGetBlockInfo",
    "qemuDomainGetBlockInfo",
    "qemuDomainBlocksStatsGather",
)
GET_ALL = "qemuMonitorGetAllBlockStatsInfo"
ROUNDS = 20
# What cannot be proven of a function that the compiler was free to change.
UNPROVEN = {(GATHER, "capacity")}


def stats_of(device: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """Struct _qemuBlockStats as it follows from what QEMU says when it is asked directly."""
    stats = {field: device["stats"][name] for field, name in COUNTERS.items()}
    parent = device.get("parent")
    stats["capacity"] = image["virtual-size"]
    stats["physical"] = image["actual-size"]
    stats["wr_highest_offset"] = parent["stats"]["wr_highest_offset"] if parent else 0
    stats["wr_highest_offset_valid"] = parent is not None
    stats["write_threshold"] = 0
    return stats


def values(prefix: Any, found: Any, expected: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Every single value: where it stands, what was traced, what is right."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            inner = found.get(name) if isinstance(found, dict) else found
            yield from values((*prefix, name), inner, value)
    else:
        yield prefix, found, expected


def test_every_value_is_right_or_unavailable(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    devices = stock_lab.qmp({"execute": "query-blockstats"})["return"]
    nodes = stock_lab.qmp({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
    images = {node["node-name"]: node["image"] for node in nodes["return"]}
    output = tmp_path / "trace.jsonl"
    command = all_disks(stock_lab)
    command[-1] = "; ".join([command[-1]] * ROUNDS)
    # Apart from the live trees, which would stand between its lines.
    answers = tmp_path / "printed"
    asked = f"{subprocess.list2cmdline(command)} > {answers}"
    done = record(stock_lab, output, command=["sh", "-c", asked], engine=engine)
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    levels = {probe["name"]: probe["level"] for probe in trace.header["probes"]}
    assert levels[METHOD] == levels[GATHER] == "inferred"

    printed = printed_info(answers.read_text())
    calls = calls_of(trace)
    assert len(calls) == len(printed) == ROUNDS * len(DISKS)
    judged: Counter[str] = Counter()
    unavailable: set[tuple[str, str]] = set()
    wrong: list[Any] = []
    for i, (call, info) in enumerate(zip(calls, printed)):
        disk = i % len(DISKS)
        entry = {"domain": "vm1", "disk": DISKS[disk], "flags": 0}
        returned = {"result": 0, "info": info}
        # It hands on what qemuMonitorGetAllBlockStatsInfo, which is exported, returned.
        got = span(call, GET_ALL).returned
        assert got is not None
        device = devices[disk]
        gathered = {
            "result": got["result"],
            "stats": stats_of(device, images[device["node-name"]]),
        }
        gather_entry = {"disk": DISKS[disk], "capacity": True}
        for name, expected in (
            (API, (entry, returned)),
            (METHOD, (entry, returned)),
            (GATHER, (gather_entry, gathered)),
        ):
            traced = span(call, name)
            for found, right in zip((traced.arguments, traced.returned), expected):
                for where, value, wanted in values((name,), found, right):
                    if is_unavailable(value):
                        unavailable.add(where)
                        judged["unavailable"] += 1
                    elif type(value) is type(wanted) and value == wanted:
                        judged["equal"] += 1
                    else:
                        wrong.append((i, *where, value, wanted))
    assert wrong == []
    assert unavailable <= UNPROVEN
    assert judged["equal"] >= 2000
    assert sum(judged.values()) == ROUNDS * len(DISKS) * (7 + 7 + 16)
