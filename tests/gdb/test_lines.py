"""Source lines of functions: those that GDB's own `next` walks through in the same program."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gdb.harness import Daemon, Lines, events, trace, values
from tests.support import intact
from tests.support.waiting import PATIENCE
from virtrace.trace.reader import Trace

METHOD = "qemuDomainGetBlockInfo"
NEXT = Path(intact.__file__).with_name("gdb_next.py")
CALLS = ("call vm1 vda", "call vm2 missing")


def lines_of(found: Trace) -> list[list[int]]:
    """The numbers of the lines of each call."""
    by_call: dict[int | None, list[int]] = {}
    for event in events(found, METHOD, "line"):
        by_call.setdefault(event.call, []).append(event.values["line"])
    return list(by_call.values())


def walked_by_gdb(daemon: Daemon, written: Path) -> list[list[int]]:
    ready, ready_for_gdb = os.pipe()
    environment = {
        "GDB_LINES": str(written),
        "GDB_READY": str(ready_for_gdb),
        "GDB_CALLS": str(len(CALLS)),
    }
    with subprocess.Popen(
        ["gdb", "-nx", "-batch", "-p", str(daemon.pid), "-x", NEXT],
        env={**os.environ, **environment},
        pass_fds=[ready_for_gdb],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as gdb:
        os.close(ready_for_gdb)
        assert Lines(ready).next() == "ready"
        os.close(ready)
        for command in CALLS:
            daemon.do(command)
        assert gdb.wait(PATIENCE) == 0
    return [json.loads(line) for line in written.read_text().splitlines()]


@pytest.mark.parametrize("variant", ["optimized", "plain", "cloned", "inlined"])
def test_the_lines_that_next_walks_through(
    daemons: Callable[[str], Daemon], tmp_path: Path, variant: str
) -> None:
    daemon = daemons(variant)
    found, _ = trace(daemon, tmp_path / "t.jsonl", *CALLS)
    walked = walked_by_gdb(daemon, tmp_path / "lines")
    assert lines_of(found) == walked
    assert min(map(len, walked)) > 2


def test_what_changed_from_line_to_line(daemon: Daemon, tmp_path: Path) -> None:
    found, _ = trace(daemon, tmp_path / "t.jsonl", "call vm1 vda")
    known: dict[str, Any] = {}
    for event in events(found, METHOD, "line"):
        for name, change in event.values["changed"].items():
            assert change.get("from") == known.get(name)
            known[name] = change["to"]
    # The last of the three is assigned behind the beginning of the last line.
    assert known.items() <= values(found, METHOD, "exit")["info"].items()
    assert {"capacity", "allocation"} <= {*known}
