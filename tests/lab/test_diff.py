"""``virtrace diff`` on real daemons: the same twice, after a write, of two builds and versions."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.lab.conftest import bring_up
from tests.lab.tracing import all_disks, record, whole_trace
from tests.support.command import SECONDS, virtrace
from virtrace.lab.daemon import Lab
from virtrace.report.difference_document import difference_schema


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """One whose disks may be written."""
    lab = bring_up()
    yield lab
    lab.down()


def traced(lab: Lab, output: Path) -> str:
    """A trace of a call for every disk."""
    done = record(lab, output, command=all_disks(lab))
    assert done.returncode == 0, done.stderr
    whole_trace(output)
    return str(output)


def compared(a: str, b: str, *, status: int) -> tuple[list[str], dict[str, Any]]:
    """The text, and the document, which says the same."""
    done = virtrace("diff", a, b, env={**os.environ, "COLUMNS": "400", "LC_ALL": "C.UTF-8"})
    assert (done.returncode, done.stderr) == (status, "")
    form = virtrace("diff", "--json", a, b)
    assert (form.returncode, form.stderr) == (status, "")
    document = json.loads(form.stdout)
    jsonschema_rs.Draft202012Validator(difference_schema()).validate(document)
    assert document["equal"] == (status == 0)
    return done.stdout.splitlines(), document


def reads(lab: Lab) -> int:
    """Requests that QEMU has counted of vda."""
    told = dict(
        line.split()[1:3]
        for line in lab.virsh_checked("domblkstat", "vm1", "vda").split("\n")
        if line.strip()
    )
    return int(told["rd_req"])


def test_the_same_calls_twice(stock_lab: Lab, tmp_path: Path) -> None:
    a, b = (traced(stock_lab, tmp_path / f"{name}.jsonl") for name in "ab")
    text, document = compared(a, b, status=0)
    assert text[0] == "Equal: 4 calls in both."
    assert document["same_daemon"]
    assert [pair["differences"] for pair in document["pairs"]] == [[]] * 4


def test_counters_grow_and_a_write_is_a_difference(own_lab: Lab, tmp_path: Path) -> None:
    first = traced(own_lab, tmp_path / "first.jsonl")
    before = reads(own_lab)
    # The firmware reads the boot sector again.
    own_lab.virsh_checked("reset", "vm1")
    deadline = time.monotonic() + SECONDS
    while reads(own_lab) == before:
        assert time.monotonic() < deadline
    second = traced(own_lab, tmp_path / "second.jsonl")
    text, document = compared(first, second, status=0)
    assert text[0] == "Equal: 4 calls in both, but for counters."
    [grew] = [line for line in text if line.startswith("  grew")]
    assert f"vm1 vda: rd_operations {before} -> {reads(own_lab)}, " in grew
    kinds = {each["kind"] for pair in document["pairs"] for each in pair["differences"]}
    assert kinds == {"counter"}

    written = 64 << 10
    own_lab.write("vm1", 1, 1 << 20, written, own_lab.disk_file("vdb"))
    third = traced(own_lab, tmp_path / "third.jsonl")
    text, document = compared(second, third, status=1)
    usage = own_lab.disk_file("vdb").stat().st_blocks * 512
    assert text[0] == (
        "vm1 vdb: nothing was written in A since QEMU opened the image, so the high-water mark is "
        "not used there: allocation 0 against 1.062 MiB, physical 2.000 GiB against "
        f"{usage >> 10}.000 KiB."
    )
    assert text[1] == "equal: 3 other calls"
    [pair] = [each for each in document["pairs"] if not each["equal"]]
    offsets = {
        (each["where"], each["path"]): (each["a"], each["b"])
        for each in pair["differences"]
        if each["path"].endswith(".wr_highest_offset")
    }
    assert set(offsets.values()) == {(0, (1 << 20) + written)}
    assert ("query-blockstats", ".parent.stats.wr_highest_offset") in offsets


@pytest.mark.matrix
def test_stripped_and_with_debug_info(stock_lab: Lab, debug_lab: Lab, tmp_path: Path) -> None:
    stripped = traced(stock_lab, tmp_path / "stripped.jsonl")
    whole = traced(debug_lab, tmp_path / "whole.jsonl")
    text, document = compared(stripped, whole, status=0)
    assert text[0].startswith("Equal: 4 calls in both")
    assert "B was traced with debug info, A without" in document["notes"]
    assert "only B has the source lines of qemuDomainGetBlockInfo" in document["notes"]
    unseen = {
        (each["kind"], each["where"], each["path"])
        for pair in document["pairs"]
        for each in pair["differences"]
        if each["kind"] != "counter"
    }
    assert unseen == {("unseen-a", "qemuDomainBlocksStatsGather", ".capacity")}


@pytest.mark.matrix
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another root")
def test_the_same_disk_and_the_same_write_on_two_versions(tmp_path: Path) -> None:
    traces = []
    for release in ("bullseye", "sid"):
        traces.append(str(tmp_path / f"{release}.jsonl"))
        done = virtrace("lab", "run", "last-sector", "--release", release, "-o", traces[-1])
        assert done.returncode == 0, done.stderr
    text, document = compared(*traces, status=1)
    assert text[0] == (
        "vm1 vdd: `parent` is missing in B, so the high-water mark is not used there: "
        "allocation 2.000 GiB against 4.000 KiB, physical the other way round."
    )
    programs = [document[side]["program"] for side in "ab"]
    assert programs == [{"name": "libvirt", "version": each} for each in ("7.0.0", "12.8.0")]
    [pair] = document["pairs"]
    assert [pair["explained"][side]["causes"] for side in "ab"] == [
        ["high-water-mark"],
        ["no-high-water-mark"],
    ]
    assert [(step["side"], step["name"]) for step in pair["steps"]] == [("b", "query-blockstats")]
