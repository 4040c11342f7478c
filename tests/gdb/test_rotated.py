"""A recording in several files, made inside GDB."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.gdb.harness import ROOT, Daemon, Tracing, calls, check_ended, events, gdb_command, start
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.errors import BAD_INPUT, DONE, INCOMPLETE, TraceError
from virtrace.trace.reader import read_trace
from virtrace.trace.rotation import parts


@pytest.mark.parametrize(("name", "rotate"), [("t.jsonl", "30000"), ("t.jsonl.gz", "3000")])
def test_every_call_is_in_one_of_the_files(
    name: str, rotate: str, daemon: Daemon, tmp_path: Path
) -> None:
    output = tmp_path / name
    tracing = start(daemon, output, ROTATE=rotate)
    logged = []
    for count in range(12):
        # One call, which is in the file before the next one begins.
        logged += daemon.do("call vm1 vda")
        wait_until(partial(has_ended_calls, output, count + 1), "the call is in a file")
    status, printed = tracing.finish()
    assert status == DONE, printed
    assert_untraced_and_intact(daemon.pid)
    files = parts(output)
    assert len(files) > 2
    assert str(files[-1]) in printed
    told = []
    for file in files[:-1]:
        found = read_trace(file)
        assert found.problems == []
        assert found.footer is not None
        assert found.footer["reason"] == "rotated"
        # While calls come, the process is held; what came last may be written once it is not.
        assert not found.footer["detached"] or file == files[-2]
        assert found.footer["stopped_ns"]["total"] > 0
    check_ended(files[-1], "done")
    for file in files:
        found = read_trace(file)
        assert all(tree[-1].type == "exit" for tree in calls(found).values())
        told += [event.values["info"]["capacity"] for event in events(found, ROOT, "exit")]
    assert told == [int(line.split()[4]) for line in logged]


def has_ended_calls(output: Path, count: int) -> bool:
    try:
        return count == sum(len(events(read_trace(file), ROOT, "exit")) for file in parts(output))
    except TraceError:
        # The header of a new file is about to be written.
        return False


def test_many_threads_and_the_last_files(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    # The program does nothing but to meet probes.
    limits = {"MAX_BYTES": "1500000", "MAX_LOAD": "100"}
    tracing = start(daemon, output, ROTATE="40000", KEEP="2", **limits)
    daemon.ask("threads 6 300")
    status, printed = tracing.ended()
    assert status == DONE, printed
    assert len(daemon.answer()) == 1800
    assert_untraced_and_intact(daemon.pid)
    files = parts(output)
    assert files == sorted(tmp_path.iterdir())
    assert len(files) == 2
    # The limit is of all that was recorded.
    for file, reason in zip(files, ("rotated", "limit")):
        trace = read_trace(file)
        assert trace.footer is not None
        assert (trace.footer["reason"], trace.footer["dropped"]) == (reason, 0)
        assert trace.header["part"]["number"] > 3
        cut = set(trace.header["part"]["open"])
        assert len(trace.problems) == bool(cut)
        for call, tree in calls(trace).items():
            assert (tree[0].name == ROOT and tree[0].type == "enter") or call in cut
            kinds = [event.type for event in tree if event.type in ("enter", "exit", "lost")]
            if call not in cut:
                assert kinds.count("enter") == kinds.count("exit") + kinds.count("lost")


def test_a_number_that_is_taken_is_said_before_anything_is_touched(
    daemon: Daemon, tmp_path: Path
) -> None:
    (tmp_path / "t.000005.jsonl").write_text("precious")
    settings = {"PID": str(daemon.pid), "OUTPUT": str(tmp_path / "t.jsonl"), "ROTATE": "9"}
    tracing = Tracing(gdb_command("blockinfo"), settings)
    assert not tracing.is_on
    status, printed = tracing.ended()
    assert status == BAD_INPUT, printed
    assert "t.000005.jsonl already exists" in printed
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]
    assert_untraced_and_intact(daemon.pid)


def test_where_no_file_can_follow_the_trace_ends_clean(daemon: Daemon, tmp_path: Path) -> None:
    tracing = start(daemon, tmp_path / "t.jsonl", ROTATE="1")
    taken = tmp_path / "t.000002.jsonl"
    taken.write_text("precious")
    assert len(daemon.do("call vm1 vda 20")) == 20
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert "t.000002.jsonl already exists" in printed
    assert_untraced_and_intact(daemon.pid)
    assert check_ended(tmp_path / "t.000001.jsonl", "error").events
    assert taken.read_text() == "precious"
