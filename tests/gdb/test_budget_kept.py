"""A trace that costs too much, or grows too large: it gives way, and what it has stays true."""

from __future__ import annotations

from pathlib import Path

from tests.gdb.harness import ROOT, Daemon, calls, check_ended, disks, events, start, trace
from tests.support.intact import assert_untraced_and_intact
from virtrace.errors import DONE
from virtrace.trace.format import SWITCHED_OFF
from virtrace.trace.reader import Trace, read_trace


def test_ordinary_calls_are_not_hindered(daemon: Daemon, tmp_path: Path) -> None:
    found, _ = trace(daemon, tmp_path / "t.jsonl", "threads 8 10")
    assert found.switched_off == []
    assert len(events(found, ROOT, "exit")) == 80
    assert found.footer is not None
    assert found.footer["stopped_ns"]["gdb"] > 0


def limited(daemon: Daemon, output: Path, command: str, **settings: str) -> tuple[Trace, list[str]]:
    """The trace, which may end by itself; and what the program answered."""
    tracing = start(daemon, output, **settings)
    logged = daemon.do(command)
    status, printed = tracing.finish()
    assert status == DONE, printed
    assert_untraced_and_intact(daemon.pid)
    return read_trace(output), logged


def test_what_a_call_pays_for_is_switched_off_and_the_rest_goes_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    """Lines cost most by far, and go first."""
    output = tmp_path / "t.jsonl"
    found, logged = limited(daemon, output, "threads 6 40", MAX_STOP_MS="4")
    assert {line.split()[3] for line in logged} == {"0"}
    assert len(found.switched_off) >= 1
    off = {(record["kind"], record["name"]): record["t_ns"] for record in found.switched_off}
    assert len(off) == len(found.switched_off)
    for (kind, name), t_ns in off.items():
        met = {"line": ("line",), "point": ("point",), "span": ("enter", "exit", "lost")}[kind]
        assert not [
            event
            for event in found.events
            if event.name == name and event.type in met and event.t_ns > t_ns
        ]
    # What was told of each call is what it answered, and each tree is one.
    told = {event.values["info"]["capacity"] for event in events(found, ROOT, "exit")}
    assert told <= {int(line.split()[4]) for line in logged}
    for call, tree in calls(found).items():
        inside = {event.span for event in tree if event.type == "enter"}
        assert all(event.parent in inside for event in tree if event.span != call)
        open_spans: list[int | None] = []
        for event in tree:
            if event.type == "enter":
                assert event.parent == (open_spans[-1] if open_spans else None)
                open_spans.append(event.span)
            elif event.type in ("exit", "lost"):
                assert event.span == open_spans.pop()
                if event.type == "lost":
                    assert event.values["why"] == SWITCHED_OFF
        assert open_spans == []


def test_once_nothing_is_left_the_trace_ends_and_says_so(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output, MAX_STOP_MS="0.001")
    assert len(daemon.do("call vm1 vda 3")) == 3
    status, printed = tracing.ended()
    assert status == DONE, printed
    assert_untraced_and_intact(daemon.pid)
    found = check_ended(output, "limit")
    assert found.switched_off[-1]["name"] == ROOT
    assert [event.values for event in events(found, ROOT, "lost")] == [{"why": SWITCHED_OFF}]
    assert "not traced from +" in printed
    assert f"{ROOT}: a call was held for more than 0.001 ms in total" in " ".join(printed.split())


def test_the_load_of_a_second_is_kept(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    found, logged = limited(daemon, output, "threads 4 100", MAX_LOAD="5")
    assert {line.split()[3] for line in logged} == {"0"}
    assert {record["why"] for record in found.switched_off} == {
        "threads were stopped for more than 5 % of a second"
    }


def test_the_trace_ends_after_so_many_events(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output, MAX_EVENTS="5")
    assert len(daemon.do("call vm1 vda 20")) == 20
    assert tracing.ended()[0] == DONE
    assert disks(check_ended(output, "limit"))[0] == "vda"
    assert_untraced_and_intact(daemon.pid)


def test_the_trace_ends_at_so_many_bytes(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(daemon, output, MAX_BYTES="30000")
    assert len(daemon.do("call vm1 vda 50")) == 50
    assert tracing.ended()[0] == DONE
    assert 0 < len(disks(check_ended(output, "limit"))) < 50
    assert_untraced_and_intact(daemon.pid)
