"""By uprobes where debug info describes the daemon: the same values as by breakpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.tracing import all_disks, record, whole_trace
from tests.support.command import virtrace
from virtrace.lab.daemon import Lab

GATHER = "qemuDomainBlocksStatsGather"

pytestmark = pytest.mark.matrix


def test_both_engines_tell_the_same(own_files_debug_lab: Lab, tmp_path: Path) -> None:
    lab = own_files_debug_lab
    uprobes, breakpoints = tmp_path / "uprobes.jsonl", tmp_path / "breakpoints.jsonl"
    assert record(lab, breakpoints, command=all_disks(lab)).returncode == 0
    done = record(lab, uprobes, "--engine", "bpftrace", command=all_disks(lab))
    assert done.returncode == 0, done.stderr
    known = [
        [event.values for event in whole_trace(file).events if event.name == GATHER]
        for file in (uprobes, breakpoints)
    ]
    # What is proven of none where it is stripped.
    assert all("unavailable" not in str(values) for values in known[0])
    assert [values.keys() for values in known[0]] == [values.keys() for values in known[1]]
    compared = virtrace("diff", str(uprobes), str(breakpoints))
    assert compared.returncode == 0, compared.stdout
