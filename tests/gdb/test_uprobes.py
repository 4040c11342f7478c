"""The same program traced by the kernel's probes: what GDB's breakpoints see of it, and more."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import Daemon, events, running, trace
from tests.gdb.test_lines import CALLS, METHOD, lines_of, walked_by_gdb
from tests.support.command import VIRTRACE, virtrace
from tests.support.waiting import PATIENCE
from virtrace.recipe import catalogue
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")


def by_uprobes(daemon: Daemon, output: Path, *commands: str, recipe: str = "blockinfo") -> Trace:
    """What of these commands a recording has."""
    line = [*VIRTRACE, "record", recipe, "-p", str(daemon.pid), "--engine", "uprobes"]
    with subprocess.Popen(
        [*line, "-o", str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as recording:
        assert recording.stdout is not None
        printed = b""
        while b"to end" not in printed:
            assert select.select([recording.stdout], [], [], PATIENCE)[0], printed
            data = os.read(recording.stdout.fileno(), 1 << 16)
            assert data, recording.communicate()[1]
            printed += data
        for command in commands:
            daemon.do(command)
        recording.send_signal(signal.SIGINT)
        _, said = recording.communicate(timeout=PATIENCE)
        assert recording.returncode == 130, said
    found = read_trace(output)
    assert found.problems == []
    return found


@pytest.mark.parametrize("variant", ["optimized", "plain", "cloned", "inlined", "stripped"])
def test_it_tells_what_gdb_tells(
    build: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    recipe = tmp_path / "without_lines.yaml"
    shipped = catalogue.file_of("blockinfo").read_text()
    recipe.write_text(re.sub(r"\n +lines: .*", "", shipped))
    ours, theirs = tmp_path / "uprobes.jsonl", tmp_path / "gdb.jsonl"
    # Of two programs: each counts its own calls.
    with running(build(variant)) as daemon:
        trace(daemon, theirs, *CALLS, recipe=str(recipe))
    with running(build(variant)) as daemon:
        by_uprobes(daemon, ours, *CALLS, recipe=str(recipe))
    compared = virtrace("diff", str(ours), str(theirs))
    assert compared.returncode == 0, compared.stdout


@pytest.mark.parametrize("variant", ["optimized", "plain", "cloned"])
def test_the_lines_that_next_walks_through(
    build: Callable[[str], Path], tmp_path: Path, variant: str
) -> None:
    """But for those that the kernel sets no probe at, which the header names."""
    with running(build(variant)) as daemon:
        found = by_uprobes(daemon, tmp_path / "t.jsonl", *CALLS)
        walked = walked_by_gdb(daemon, tmp_path / "lines")
    [method] = [probe for probe in found.header["probes"] if probe["name"] == METHOD]
    refused = {int(lack.removeprefix("line ")) for lack in method["lacks"]}
    assert len(refused) == (variant != "plain")
    expected = [[line for line in lines if line not in refused] for lines in walked]
    # Where a function has a prologue, its first statement is the brace, which GDB passes over.
    if variant == "plain":
        expected = [[lines_of(found)[0][0], *lines] for lines in expected]
    assert lines_of(found) == expected
    with running(build(variant)) as daemon:
        gdb, _ = trace(daemon, tmp_path / "gdb.jsonl", *CALLS)
    assert changes(found) == changes(gdb)


def changes(found: Trace) -> list[tuple[int | None, str, Any]]:
    """What variables became, call by call, wherever that was seen first."""
    return [
        (event.call, name, change["to"])
        for event in events(found, METHOD, "line")
        for name, change in event.values["changed"].items()
    ]


@pytest.mark.parametrize("calls", range(1, 9))
def test_what_comes_after_the_last_call_is_left_out(
    daemon: Daemon, tmp_path: Path, calls: int
) -> None:
    """Wherever the last call ends in what is decoded at once: records of others follow."""
    asked = ["pad 5000", *["call vm1 vda"] * 40, "pad 0"]
    command = f"printf '%s\\n' {shlex.join(asked)} >/proc/{daemon.pid}/fd/0"
    output = tmp_path / "t.jsonl"
    line = ("record", "blockinfo", "-p", str(daemon.pid), "--engine", "uprobes", "-o", output)
    done = virtrace(*line, "--calls", str(calls), "--", "sh", "-c", command)
    for _ in asked:
        daemon.answer()
    assert done.returncode == 0, done.stderr
    found = read_trace(output)
    assert found.problems == []
    assert len(events(found, "virDomainGetBlockInfo")) == 2 * calls


@pytest.mark.parametrize("size", [0, 255, 256, 1300, 5000, 100_000, 10 << 20])
def test_a_reply_of_any_size_is_whole(daemon: Daemon, tmp_path: Path, size: int) -> None:
    found = by_uprobes(
        daemon, tmp_path / "t.jsonl", f"pad {size}", "call vm1 vda", "pad 0", "call vm1 vda"
    )
    replies = events(found, "qmp.reply")
    assert len(replies) == 4
    for reply in replies[:2]:
        assert reply.values["json"].get("padding", "") == "p" * size
        assert reply.values["text"].endswith(f'"id":"{reply.values["json"]["id"]}"}}')
    assert found.footer is not None
    assert found.footer["dropped"] == 0
