"""A trace whose live view goes nowhere: it is whole, and `record` says that nobody saw it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.harness import Daemon
from tests.support.acting import ROOT_ONLY
from tests.support.waiting import PATIENCE
from virtrace.trace.reader import read_trace


@pytest.mark.parametrize("engine", ["gdb", pytest.param("uprobes", marks=ROOT_ONLY)])
@pytest.mark.parametrize(
    ("place", "why"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")]
)
def test_nobody_saw_it(
    daemons: Callable[[str], Daemon], tmp_path: Path, engine: str, place: str, why: str
) -> None:
    daemon = daemons("stripped")
    trace = tmp_path / "t.jsonl"
    record = f'"$0" -m virtrace.cli.main record blockinfo --engine {engine} -p {daemon.pid}'
    done = subprocess.run(
        ["sh", "-c", f"exec {record} -o {trace} --host-facts -- true >{place}", sys.executable],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stderr == (
        "virtrace: this trace was not shown while it was recorded: standard output cannot be "
        f"written: {why}\ntry: virtrace show {trace}\n"
    )
    assert done.returncode == 0
    assert read_trace(trace).problems == []
