"""Returns of QEMU's functions, at their `ret` instructions, with many coroutines in flight."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_qemu import RELEASES, lab_of
from tests.support.command import VIRTRACE, virtrace
from tests.support.hanging import qemu_of
from tests.support.intact import assert_untraced_and_intact
from virtrace.errors import DONE
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

JOBS, CLUSTER, WRITES = 16, 65536, 4096

WRITING = """\
virtrace: 1
name: writing
about: Writes of QEMU, and what became of them.
try: none
points:
  - name: begun
    of: qemu
    module: qemu-system-x86_64
    prototype: int bdrv_co_pwritev_part(void *child, long offset, long bytes)
    anywhere: true
    capture: {child: child, offset: offset}
  - name: done
    of: qemu
    module: qemu-system-x86_64
    prototype: int bdrv_co_pwritev_part(void *child, long offset, long bytes)
    at: return
    anywhere: true
    capture: {child: child, offset: offset, bytes: bytes, result: return}
  # It ends in a function of the block driver.
  - name: size
    of: qemu
    module: qemu-system-x86_64
    prototype: void *bdrv_get_specific_stats(void *bs)
    at: return
    anywhere: true
    optional: true
    capture: {result: return}
"""


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


def record(lab: Lab, recipe: Path, output: Path, *command: str) -> Trace:
    options = ("-p", lab.pid, "--domain", "vm1", "-o", output)
    done = virtrace("record", recipe, *options, "--", *command)
    assert done.returncode == DONE, done.stdout + done.stderr
    trace = read_trace(output)
    assert trace.problems == []
    assert trace.footer is not None
    assert trace.footer["dropped"] == 0
    return trace


def copying(lab: Lab, slow_ns: int = 200_000) -> list[str]:
    """A command that copies disks without content to others, cluster by cluster, all at once.

    slow_ns: how long a write to the last one takes.
    """
    nodes = [(f"from{job}-{slow_ns}", f"to{job}-{slow_ns}") for job in range(JOBS)]
    for name in chain(*nodes):
        latency = slow_ns if name == nodes[-1][1] else 200_000
        node = {"driver": "null-co", "node-name": name, "latency-ns": latency}
        node["size"] = CLUSTER * WRITES // JOBS
        assert "return" in lab.qmp({"execute": "blockdev-add", "arguments": node})
    return backing_up(lab, nodes)


def backing_up(lab: Lab, nodes: Sequence[tuple[str, str]]) -> list[str]:
    """A command that backs up each first node to its second, all at once, until all have ended."""
    actions = []
    for job, (source, target) in enumerate(nodes):
        data: dict[str, Any] = {"job-id": f"copy{job}", "device": source, "target": target}
        data["sync"] = "full"
        if lab.release != "bullseye":
            # QEMU 5.2 writes single clusters anyway.
            data["x-perf"] = {"max-chunk": CLUSTER}
        actions.append({"type": "blockdev-backup", "data": data})
    begin = json.dumps({"execute": "transaction", "arguments": {"actions": actions}})
    asks = shlex.join(lab.virsh_command("qemu-monitor-command", "vm1"))
    goes_on = f"""{asks} '{{"execute": "query-jobs"}}' | grep -q '"copy'"""
    return ["sh", "-c", f"{asks} {shlex.quote(begin)}; while {goes_on}; do sleep 0.1; done"]


def test_each_return_of_many_coroutines_is_paired(lab: Lab, tmp_path: Path) -> None:
    recipe = tmp_path / "writing.yaml"
    recipe.write_text(WRITING)
    qemu = qemu_of(lab)
    trace = record(lab, recipe, tmp_path / "t.jsonl", *copying(lab))
    assert qemu_of(lab) == qemu
    assert_untraced_and_intact(qemu)
    begun = [event for event in trace.events if event.name == "begun"]
    done = [event for event in trace.events if event.name == "done"]
    assert len(begun) == len(done) == WRITES
    # What a return has of its entry.
    places, returned = (
        Counter((event.values["child"], event.values["offset"]) for event in some)
        for some in (begun, done)
    )
    assert places == returned
    assert {(event.values["bytes"], event.values["result"]) for event in done} == {(CLUSTER, 0)}
    in_flight = most = 0
    for event in trace.events:
        in_flight += 1 if event.name == "begun" else -1
        most = max(most, in_flight)
    assert most >= 8
    size = next(probe for probe in trace.header["probes"] if probe["name"] == "size")
    assert size["level"] == "missing"
    assert "not every end of the function is known" in str(size["why"])


OVER = """\
virtrace: 1
name: long
about: Writes of QEMU that take long.
try: none
points:
  - name: long
    of: qemu
    module: qemu-system-x86_64
    prototype: int bdrv_co_pwritev_part(void *child, long offset, long bytes)
    at: return
    when: {over: 200ms}
    anywhere: true
    capture: {child: child, offset: offset, bytes: bytes, result: return, stack: stack()}
"""
LIMIT_NS = 200_000_000
# The two traces meet each write a few instructions apart, where the thread may have to wait.
APART_NS = 100_000_000


def test_only_calls_that_take_longer_are_recorded(lab: Lab, tmp_path: Path) -> None:
    """Beside a trace of all of them."""
    all_of_them, long = tmp_path / "all.yaml", tmp_path / "long.yaml"
    all_of_them.write_text(WRITING)
    long.write_text(OVER)
    options = ("-p", str(lab.pid), "--domain", "vm1", "-o", str(tmp_path / "long.jsonl"))
    within = [*VIRTRACE, "record", str(long), *options, "--", *copying(lab, slow_ns=2 * LIMIT_NS)]
    trace = record(lab, all_of_them, tmp_path / "all.jsonl", *within)
    begun: dict[tuple[object, object], int] = {}
    took: dict[tuple[object, object], int] = {}
    for event in trace.events:
        place = (event.values["child"], event.values["offset"])
        if event.name == "begun":
            begun[place] = event.t_ns
        else:
            took[place] = event.t_ns - begun[place]
    recorded = read_trace(tmp_path / "long.jsonl")
    assert recorded.footer is not None
    assert recorded.footer["hits"] == {"long": len(recorded.events)}
    assert recorded.footer["dropped"] == 0
    since = recorded.header["clock"]["start_ns"] - trace.header["clock"]["start_ns"]
    found = set()
    for event in recorded.events:
        place = (event.values["child"], event.values["offset"])
        assert place not in found
        found.add(place)
        ns = event.values["took_ns"]
        assert isinstance(ns, int)
        assert ns > LIMIT_NS
        assert abs(ns - took[place]) < APART_NS
        assert abs(event.t_ns + since - begun[place] - took[place]) < APART_NS
        assert (event.values["bytes"], event.values["result"]) == (CLUSTER, 0)
        assert "bdrv_co_pwritev_part" in str(event.values["stack"])
    assert {place for place, ns in took.items() if ns > LIMIT_NS + APART_NS} <= found
    # At least those of one disk, and not all.
    assert WRITES // JOBS <= len(found) < WRITES
