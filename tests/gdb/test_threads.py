"""Calls that nest, jump, fork, and run at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.harness import ROOT, Daemon, calls, events, start, trace
from tests.gdb.test_chain import FULL, GATHER, info_and_stats
from virtrace.trace.format import Event
from virtrace.trace.reader import read_trace

HEAD = "virtrace: 1\nname: threads\nabout: a\ntry: t\nspans:\n"
RECURSE = (
    HEAD
    + """
- prototype: int virTestRecurse(int depth)
  module: libvirt.so.0
  root: true
  enter: {depth: depth}
  exit: {depth: depth, result: return}
"""
)
JUMP = (
    HEAD
    + """
- prototype: int virTestJump(int number, void *leave)
  module: libvirt.so.0
  root: true
  enter: {number: number}
  exit: {result: return}
- prototype: int virTestJumpInner(int number, void *leave)
  module: libvirt.so.0
  enter: {number: number}
  exit: {result: return}
"""
)
THREADS, TIMES = 8, 50


def check_tree(tree: list[Event]) -> tuple[str, ...]:
    """The log line, but for its thread, that this call's events stand for."""
    assert Counter(f"{event.type} {event.name}" for event in tree) == Counter(
        line.strip() for line in FULL
    )
    opened: list[Event] = []
    for event in tree:
        if event.name == "qmp.reply":
            continue
        if event.type == "exit":
            enter = opened.pop()
            assert (enter.span, enter.name, enter.tid) == (event.span, event.name, event.tid)
        assert event.parent == (opened[-1].span if opened else None)
        if event.type == "enter":
            opened.append(event)
    assert opened == []

    first, last = tree[0], tree[-1]
    assert (first.type, last.type, first.name) == ("enter", "exit", ROOT)
    number = last.values["info"]["capacity"] // 1000
    info, stats = info_and_stats(number)
    assert last.values == {"result": 0, "info": info}
    by_name = {f"{event.type} {event.name}": event for event in tree}
    assert by_name[f"exit {GATHER}"].values == {"result": 0, "stats": stats}
    assert by_name[f"enter {GATHER}"].values == {"disk": first.values["disk"], "capacity": True}
    replies = {event.values["json"]["id"]: event for event in tree if event.name == "qmp.reply"}
    sent = {event.values["json"]["id"]: event for event in tree if event.name == "qmp.send"}
    assert set(sent) == set(replies)
    for name, send in sent.items():
        reply = replies[name]
        assert reply.parent == send.parent
        assert reply.values["mon"] == send.values["mon"]
        assert send.values["json"]["arguments"] == {"n": number}
        assert reply.values["json"]["return"] == [{"n": number}]
    return (
        str(first.tid),
        first.values["domain"],
        first.values["disk"],
        "0",
        *(str(value) for value in info.values()),
        str(number),
    )


def test_many_threads_at_once_give_as_many_trees_none_mixed_up(
    daemon: Daemon, tmp_path: Path
) -> None:
    # The program does nothing but to meet probes.
    settings = {"MAX_LOAD": "100"}
    found, [logged] = trace(daemon, tmp_path / "t.jsonl", f"threads {THREADS} {TIMES}", **settings)
    assert len(logged) == THREADS * TIMES
    told = [" ".join(check_tree(tree)) for tree in calls(found).values()]
    assert sorted(told) == sorted(logged)
    assert len({line.split()[0] for line in told}) == THREADS


@pytest.mark.parametrize("variant", ["optimized", "plain", "stripped"])
def test_recursion_is_a_tree_of_itself(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECURSE)
    found, answers = trace(
        daemons(variant), tmp_path / "t.jsonl", "recurse 30", "recurse 0", recipe=str(recipe)
    )
    assert answers == [["130"], ["100"]]
    deep, shallow = calls(found).values()
    assert [event.values["depth"] for event in deep] == [*range(30, -1, -1), *range(31)]
    assert [event.values["result"] for event in deep[31:]] == list(range(100, 131))
    assert [event.parent for event in deep[1:31]] == [event.span for event in deep[:30]]
    assert [event.span for event in deep[31:]] == [event.span for event in deep[30::-1]]
    assert [event.values for event in shallow] == [{"depth": 0}, {"depth": 0, "result": 100}]


@pytest.mark.parametrize("variant", ["optimized", "plain", "stripped"])
def test_a_call_left_by_longjmp_is_lost_and_the_next_is_its_own(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    """The next call of the same line has the same return address and stack pointer."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(JUMP)
    found, [answer] = trace(daemons(variant), tmp_path / "t.jsonl", "jump", recipe=str(recipe))
    assert answer == ["left", "12", "left", "32"]
    trees = [[(event.type, event.name) for event in tree] for tree in calls(found).values()]
    outer, inner = "virTestJump", "virTestJumpInner"
    lost = [("enter", outer), ("enter", inner), ("lost", inner), ("lost", outer)]
    whole = [("enter", outer), ("enter", inner), ("exit", inner), ("exit", outer)]
    assert trees == [lost, whole, lost, whole]
    results = [event.values["result"] for event in events(found, outer, "exit")]
    assert results == [12, 32]
    assert [event.values["number"] for event in events(found, outer, "enter")] == [0, 10, 20, 30]


def test_a_forked_child_runs_free_of_breakpoints(daemon: Daemon, tmp_path: Path) -> None:
    tracing = start(daemon, tmp_path / "t.jsonl")
    answers = [daemon.do(each) for each in ("fork", "call vm1 vda", "fork", "call vm1 vdb")]
    status, printed = tracing.finish()
    assert (status, answers[0], answers[2]) == (0, ["status 0"], ["status 0"])
    # GDB has a line of its own for each.
    assert "child process" not in printed
    enters = events(read_trace(tmp_path / "t.jsonl"), ROOT, "enter")
    assert [event.values["disk"] for event in enters] == ["vda", "vdb"]


def test_a_filter_leaves_all_other_calls_out(daemon: Daemon, tmp_path: Path) -> None:
    found, [_, [logged], _, _] = trace(
        daemon,
        tmp_path / "t.jsonl",
        *("call vm1 vda 3", "call vm1 vdb", "threads 3 4", "call vm1 missing"),
        WHERE="disk=vdb domain=vm1",
    )
    trees = list(calls(found).values())
    # Thread 1 has the same names.
    assert len(trees) == 1 + 4
    told = [" ".join(check_tree(tree)) for tree in trees]
    assert told[0] == logged
    assert {(tree[0].values["domain"], tree[0].values["disk"]) for tree in trees} == {
        ("vm1", "vdb")
    }
