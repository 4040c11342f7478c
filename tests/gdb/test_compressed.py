"""Compressed traces, written by the Python that GDB embeds."""

from __future__ import annotations

import gzip
import signal
from pathlib import Path

from tests.gdb.harness import Daemon, Tracing, calls, gdb_command, start, trace
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.errors import BAD_INPUT, DONE
from virtrace.trace.reader import read_trace


def test_gzip(daemon: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl.gz"
    found, _ = trace(daemon, output, "call vm1 vda", "call vm1 vdb")
    assert len(calls(found)) == 2
    assert gzip.decompress(output.read_bytes()).count(b"\n") == len(found.events) + 2


def test_a_killed_gdb_leaves_what_it_wrote(mortal: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl.gz"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda")
    wait_until(lambda: output.stat().st_size > 0, "the header")
    wait_until(lambda: len(calls(read_trace(output))) == 1, "the call is in the file")
    before = read_trace(output)
    tracing.signal(signal.SIGKILL)
    tracing.ended()
    after = read_trace(output)
    assert after.events[: len(before.events)] == before.events
    assert after.problems == ["no footer: the run was cut short, or is still running"]


def test_zstandard_is_written_or_said_to_be_missing(daemon: Daemon, tmp_path: Path) -> None:
    """A GDB can embed another Python than the one that has the package."""
    output = tmp_path / "t.jsonl.zst"
    settings = {"PID": str(daemon.pid), "OUTPUT": str(output)}
    tracing = Tracing(gdb_command("blockinfo"), settings)
    if tracing.is_on:
        daemon.do("call vm1 vda")
        status, printed = tracing.finish()
        assert status == DONE, printed
        assert len(calls(read_trace(output))) == 1
    else:
        status, printed = tracing.ended()
        assert status == BAD_INPUT, printed
        assert "the package zstandard, which is needed to write t.jsonl.zst" in printed
        assert not output.exists()
    assert_untraced_and_intact(daemon.pid)
