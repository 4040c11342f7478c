"""The blockinfo recipe, on every way that the compiler and the packager treat the same source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import ROOT, Daemon, calls, events, trace, values
from tests.support.block_stats import COUNTERS
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace

METHOD = "qemuDomainGetBlockInfo"
GATHER = "qemuDomainBlocksStatsGather"
GET_ALL = "qemuMonitorGetAllBlockStatsInfo"
CAPACITY = "qemuMonitorBlockStatsUpdateCapacityBlockdev"
QUERY = "qemuMonitorJSONQueryBlockstats"
EXPORTED = {ROOT, GET_ALL, CAPACITY, QUERY}
POINTS = ["qmp.send", "qmp.reply"]


def info_and_stats(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What program/driver.c makes of its n-th call."""
    info = {
        "capacity": number * 1000 + 1,
        "allocation": number * 1000 + 2,
        "physical": number * 1000 + 3,
    }
    stats = {name: number * 100 + i for i, name in enumerate(COUNTERS, 1)}
    return info, {
        **stats,
        "capacity": info["capacity"],
        "physical": info["physical"],
        "wr_highest_offset": 2**64 - 1 - number,
        "wr_highest_offset_valid": bool(number & 1),
        "write_threshold": number * 100 + 9,
    }


def levels(found: Trace) -> dict[str, str]:
    return {probe["name"]: probe["level"] for probe in found.header["probes"]}


def why(found: Trace, name: str) -> str:
    (reason,) = (probe["why"] for probe in found.header["probes"] if probe["name"] == name)
    return str(reason)


def shape(found: Trace) -> list[str]:
    """The tree of the only call: kinds and names, indented."""
    (tree,) = calls(found).values()
    depth = 0
    lines = []
    for event in tree:
        depth -= event.type == "exit"
        lines.append(f"{'  ' * depth}{event.type} {event.name}")
        depth += event.type == "enter"
    assert depth == 0
    return lines


FULL = [
    f"enter {ROOT}",
    f"  enter {METHOD}",
    f"    enter {GATHER}",
    f"      enter {GET_ALL}",
    f"        enter {QUERY}",
    "          point qmp.send",
    "          point qmp.reply",
    f"        exit {QUERY}",
    f"      exit {GET_ALL}",
    f"      enter {CAPACITY}",
    "        point qmp.send",
    "        point qmp.reply",
    f"      exit {CAPACITY}",
    f"    exit {GATHER}",
    f"  exit {METHOD}",
    f"exit {ROOT}",
]


def without(tree: list[str], *names: str) -> list[str]:
    """The tree as it is when these functions are not traced."""
    lines: list[str] = []
    depth = 0
    for line in tree:
        kind, name = line.split()
        if name not in names:
            depth -= kind == "exit"
            lines.append(f"{'  ' * depth}{kind} {name}")
            depth += kind == "enter"
    return lines


@pytest.mark.parametrize("variant", ["optimized", "plain", "cloned"])
def test_with_debug_info_the_whole_chain_has_the_values_of_the_program(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    found, [[logged]] = trace(daemons(variant), tmp_path / "t.jsonl", "call vm1 vda")
    tid, domain, disk, result, capacity, allocation, physical, number = logged.split()
    info, stats = info_and_stats(int(number))
    assert [int(capacity), int(allocation), int(physical)] == list(info.values())
    assert (domain, disk, result) == ("vm1", "vda", "0")

    assert shape(found) == FULL
    assert {event.tid for event in found.events if event.name != "qmp.reply"} == {int(tid)}
    assert {event.tid for event in events(found, "qmp.reply")}.isdisjoint({int(tid)})
    arguments = {"domain": "vm1", "disk": "vda", "flags": 7}
    assert values(found, ROOT, "enter") == arguments
    assert values(found, METHOD, "enter") == arguments
    assert values(found, ROOT, "exit") == {"result": 0, "info": info}
    assert values(found, METHOD, "exit") == {"result": 0, "info": info}
    assert values(found, GATHER, "enter") == {"disk": "vda", "capacity": True}
    assert values(found, GATHER, "exit") == {"result": 0, "stats": stats}
    assert values(found, GET_ALL, "exit") == {"result": 3}
    monitor = values(found, GET_ALL, "enter")["mon"]
    assert values(found, QUERY, "enter") == {"mon": monitor}
    for event in [*events(found, "qmp.send"), *events(found, "qmp.reply")]:
        assert event.values["mon"] == monitor
    described = {*EXPORTED, METHOD, GATHER}
    assert {name for name, level in levels(found).items() if level == "dwarf"} >= described
    assert {levels(found)[name] for name in POINTS} == {"usdt"}
    assert why(found, "qemuMonitorJSONQueryBlock") == (
        "this build of libvirt_driver_qemu.so has no such function"
    )


def test_the_clone_is_one(daemons: Callable[[str], Daemon], tmp_path: Path) -> None:
    """Else the test above would not show that a clone's own registers are read."""
    recipe = tmp_path / "driver.yaml"
    recipe.write_text(
        "virtrace: 1\nname: driver\nabout: a\ntry: t\nspans:\n"
        "- {function: qemuDomainBlocksStatsGather, module: libvirt_driver_qemu.so, root: true,\n"
        "   enter: {driver: driver, vm: vm, disk: path, capacity: capacity}}\n"
    )
    answers: dict[str, dict[str, Any]] = {}
    for variant in ("cloned", "optimized", "plain"):
        found, _ = trace(daemons(variant), tmp_path / variant, "call vm1 vda", recipe=str(recipe))
        answers[variant] = values(found, GATHER, "enter")
    assert answers["cloned"]["driver"] == {"unavailable": "optimized out"}
    assert answers["optimized"]["driver"].startswith("0x")
    assert answers["plain"]["driver"].startswith("0x")
    for answer in answers.values():
        assert (answer["disk"], answer["capacity"]) == ("vda", True)
        assert answer["vm"].startswith("0x7")


def test_an_inlined_function_is_missing_and_nothing_else(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    found, [[logged]] = trace(daemons("inlined"), tmp_path / "t.jsonl", "call vm1 vda")
    assert levels(found)[GATHER] == "missing"
    assert why(found, GATHER) == f"the compiler inlined it into {METHOD}"
    assert shape(found) == without(FULL, GATHER)
    info, _ = info_and_stats(int(logged.split()[-1]))
    assert values(found, METHOD, "exit") == {"result": 0, "info": info}


@pytest.mark.parametrize("variant", ["stripped", "old_object"])
def test_stripped_the_exported_and_the_static_probes_remain(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    found, [[logged]] = trace(daemons(variant), tmp_path / "t.jsonl", "call vm1 vda")
    number = int(logged.split()[-1])
    info, _ = info_and_stats(number)
    level = levels(found)
    assert {name for name in level if level[name] == "symbol"} >= EXPORTED
    assert {level[name] for name in POINTS} == {"usdt"}
    for name in (METHOD, GATHER):
        assert level[name] == "missing"
        assert why(found, name).startswith(
            "static function, and there is no debug info for libvirt_driver_qemu.so"
        )
    assert shape(found) == without(FULL, METHOD, GATHER)
    assert values(found, ROOT, "enter") == {"domain": "vm1", "disk": "vda", "flags": 7}
    assert values(found, ROOT, "exit") == {"result": 0, "info": info}
    for event in events(found, "qmp.reply"):
        assert event.values["json"]["return"] == [{"n": number}]


def test_a_struct_that_fits_no_known_layout_is_unavailable(
    daemons: Callable[[str], Daemon], tmp_path: Path
) -> None:
    found, [[logged]] = trace(daemons("strange_object"), tmp_path / "t.jsonl", "call vm1 vda")
    info, _ = info_and_stats(int(logged.split()[-1]))
    assert values(found, ROOT, "enter") == {
        "domain": {"unavailable": "0 of 2 known layouts of virDomain fit the memory there"},
        "disk": "vda",
        "flags": 7,
    }
    assert values(found, ROOT, "exit") == {"result": 0, "info": info}


@pytest.mark.parametrize("variant", ["optimized", "plain", "cloned", "stripped"])
def test_a_failing_call_tells_its_error(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    found, _ = trace(
        daemons(variant), tmp_path / "t.jsonl", "call vm1 missing", "call vm1 unreadable"
    )
    first, second = calls(found).values()
    for tree in (first, second):
        assert tree[-1].name == ROOT
        assert tree[-1].values == {
            "result": -1,
            "info": {"capacity": 0, "allocation": 0, "physical": 0},
        }
        assert [event.name for event in tree if event.type == "point"][1:] == ["error"]
    (raised,) = events(found, "error.raised")
    assert raised.values["code"] == 8
    assert raised.values["domain"] == 10
    assert raised.values["function"] == GATHER
    assert raised.values["file"].endswith("driver.c")
    assert raised.values["line"] > 0
    (system,) = events(found, "error.system")
    assert (system.values["errno"], system.values["function"]) == (13, GATHER)
    assert [event.values for event in events(found, "error")] == [
        {"code": 8, "message": "invalid argument: invalid path missing not assigned to domain"},
        {"code": 38, "message": "cannot stat unreadable"},
    ]
    for event in events(found, GATHER, "exit"):
        assert event.values["result"] == -1
        assert is_unavailable(event.values["stats"])


def test_a_reply_of_10_mib_is_whole(daemon: Daemon, tmp_path: Path) -> None:
    size = 10 << 20
    commands = (f"pad {size}", "call vm1 vda", "pad 0")
    # On a busy machine GDB takes longer than it may hold a call by default.
    found, _ = trace(daemon, tmp_path / "t.jsonl", *commands, MAX_STOP_MS="60000")
    replies = events(found, "qmp.reply")
    assert len(replies) == 2
    for reply in replies:
        assert reply.values["json"]["padding"] == "p" * size
        assert reply.values["text"].startswith('{"return":')
        assert reply.values["text"].endswith(f'"id":"{reply.values["json"]["id"]}"}}')


def test_what_the_header_says_of_the_target(daemon: Daemon, tmp_path: Path) -> None:
    found, _ = trace(daemon, tmp_path / "t.jsonl", "call vm1 vda")
    target = found.header["target"]
    assert target["pid"] == daemon.pid
    assert target["program"]["version"] == "9.0.0"
    assert [Path(module["path"]).name for module in target["modules"]] == [
        "libvirt.so.0.9000.0",
        "libvirt_driver_qemu.so",
    ]
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    for module in target["modules"]:
        assert any(
            line.startswith(f"{int(module['base'], 16):x}-") and line.endswith(module["path"])
            for line in maps.splitlines()
        )
    assert found.footer is not None
    hits = found.footer["hits"]
    assert hits == {
        **dict.fromkeys(hits, 0),
        **dict.fromkeys([ROOT, METHOD, GATHER, GET_ALL, QUERY, CAPACITY], 1),
        **dict.fromkeys(POINTS, 2),
    }


def test_the_static_probes_are_asleep_again(daemon: Daemon, tmp_path: Path) -> None:
    assert daemon.do("semaphores") == ["0"]
    _, answers = trace(daemon, tmp_path / "t.jsonl", "semaphores")
    assert answers == [["2"]]
    assert daemon.do("semaphores") == ["0"]
