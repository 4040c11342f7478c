"""Block jobs that end, wait, are held back, or cannot keep up with the guest, on all releases."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.lab.test_explainers import cases_of
from tests.lab.test_io_error import full
from tests.lab.test_qemu import RELEASES, lab_of
from tests.support.command import virtrace
from tests.support.frozen import freezable
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from virtrace.errors import DONE, Unavailable
from virtrace.image.model import Module
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.targets.qemu.jobs import job_layout
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

SIZE = 128 * MIB
# MiB per second: with it, a job of the whole disk is not done while it is looked at.
SLOW = 16
# QEMU goes on by so much at once.
STEP = 16 * MIB
# Of a disk that the guest writes to as a whole, again and again, much faster than it is copied.
SMALL = 32 * MIB
ASK = {"execute": "query-jobs"}
SOME = r'"current-progress":([6-9][0-9]|1[0-9]{2})[0-9]{6}'
MUCH = r'"current-progress":[4-9][0-9]{8}'
READY, PAUSED = '"status":"ready"', '"status":"paused"'
GUEST_WRITES = f'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write 0 {SMALL}"'


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


@pytest.fixture
def empty(lab: Lab) -> Iterator[Stage]:
    with staged(lab) as stage:
        yield stage
        lab.virsh("destroy", GUEST_NAME)


@pytest.fixture
def stage(empty: Stage) -> Stage:
    start(empty, SIZE)
    return empty


def start(stage: Stage, size: int) -> None:
    """Start a guest with a disk that is full of data."""
    file = stage.image("disk", size)
    with file.open("r+b") as image:
        image.write(os.urandom(MIB) * (size // MIB))
    stage.start(disk_xml("file", file_source(file), TARGET))


def copies(stage: Stage, *options: str, bandwidth: int = SLOW, folder: str = ".") -> Sequence[str]:
    to = str(stage.images / folder / "copy")
    limit = ("--bandwidth", str(bandwidth))
    job = ("blockcopy", GUEST_NAME, TARGET, to, "--format", "raw", "--transient-job")
    return (*job, *limit, *options)


def until(pattern: str) -> str:
    """Ask QEMU for its jobs until it says so."""
    command = shlex.join(["ask", "qemu-monitor-command", GUEST_NAME, json.dumps(ASK)])
    return f"until {command} | tr -d ' ' | grep -Eq {shlex.quote(pattern)}; do :; done"


def record(lab: Lab, output: Path, *lines: str) -> Trace:
    """Record while a shell does something, or for as long as a job that stands still needs."""
    script = "; ".join([f'ask() {{ {shlex.join(lab.virsh_command())} "$@"; }}', *lines])
    options = ("-p", lab.pid, "--domain", GUEST_NAME, "-o", output)
    how = ("--", "sh", "-c", script) if lines else ("--seconds", 6)
    done = virtrace("record", "job-progress", *options, *how)
    assert done.returncode == DONE, done.stdout + done.stderr
    trace = read_trace(output)
    assert trace.problems == []
    assert_as_qemu_answers(trace)
    return trace


def looks(trace: Trace) -> list[Event]:
    """How far the job was; libvirt makes the file of a copy by one of its own."""
    found = [event for event in trace.events if event.name == "job.standing"]
    return [event for event in found if event.values["type"] != "create"]


def assert_as_qemu_answers(trace: Trace) -> None:
    """What was read is between what QEMU answers to query-jobs before and after it."""
    answers: list[tuple[int, Mapping[str, Any]]] = []
    for event in trace.events:
        told = event.values["json"].get("return") if event.name == "qmp.reply" else None
        if isinstance(told, list):
            answers += [(event.t_ns, job) for job in told if "current-progress" in job]
    for look in looks(trace):
        values = look.values
        of_it = [(t_ns, job) for t_ns, job in answers if job["id"] == values["id"]]
        before = [job for t_ns, job in of_it if t_ns < look.t_ns]
        # An answer that comes later may have been made before.
        after = [job for t_ns, job in of_it if t_ns > look.t_ns][1:]
        for job in (*before[-1:], *after[:1]):
            assert values["type"] == job["type"]
        assert all(job["current-progress"] <= values["done"] for job in before[-1:])
        assert all(values["done"] <= job["current-progress"] for job in after[:1])
        assert all(job["total-progress"] <= values["total"] for job in before[-1:])
        assert all(values["total"] <= job["total-progress"] for job in after[:1])


def assert_told(lab: Lab, output: Path, scenario: str, cause: str) -> str:
    """Note the scenario for docs/scenarios.md, and return the answer."""
    cases = [case for case in cases_of(output) if case["explainer"] == "progress"]
    release = ".".join(map(str, lab.libvirt_version))
    assert_answers(output, cases, {scenario: (f"{GUEST_NAME} {TARGET}", cause)}, release)
    answer: str = cases[0]["answer"]
    return answer


def job_of(lab: Lab) -> str:
    """The id of the only job."""
    (job,) = lab.qmp(ASK, GUEST_NAME)["return"]
    return str(job["id"])


def test_a_copy_that_is_held_back(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    trace = record(lab, output, f"ask {shlex.join(copies(stage))}", until(SOME))
    first, *_, last = looks(trace)
    allowed = SLOW * MIB * (last.t_ns - first.t_ns) / 10**9
    assert 0 < last.values["done"] - first.values["done"] <= allowed + 2 * STEP
    assert last.values["total"] == SIZE
    answer = assert_told(lab, output, "a copy with a limit", "limited")
    assert f"limit of {SLOW}.000 MiB per second" in answer


def test_a_pull_whose_limit_is_not_known(stage: Stage, tmp_path: Path) -> None:
    """It was begun before the recording."""
    lab, output = stage.lab, tmp_path / "t.jsonl"
    options = ("--disk-only", "--no-metadata", "--diskspec", f"{TARGET},file={stage.images}/top")
    lab.virsh_checked("snapshot-create-as", GUEST_NAME, *options)
    lab.virsh_checked("blockpull", GUEST_NAME, TARGET, "--bandwidth", str(SLOW))
    trace = record(lab, output, until(SOME))
    assert {look.values["type"] for look in looks(trace)} == {"stream"}
    assert "The pull of vda goes on" in assert_told(lab, output, "a pull", "goes-on")


def test_a_copy_of_a_disk_that_is_written_to(empty: Stage, tmp_path: Path) -> None:
    lab, output = empty.lab, tmp_path / "t.jsonl"
    start(empty, SMALL)
    writes = shlex.join(["ask", "qemu-monitor-command", GUEST_NAME, "--hmp", GUEST_WRITES])
    trace = record(
        lab,
        output,
        f"ask {shlex.join(copies(empty, bandwidth=3 * SLOW))}",
        f"while {writes}; do :; done >/dev/null & writer=$!",
        until(MUCH),
        "kill $writer; wait $writer; true",
    )
    assert looks(trace)[-1].values["total"] > 2 * SMALL
    answer = assert_told(lab, output, "a copy, and a guest that writes to the disk", "endless")
    assert f"per second, its limit of {3 * SLOW}.0 MiB per second, and the guest writes" in answer


def test_a_commit_that_is_ready(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    options = ("--disk-only", "--no-metadata", "--diskspec", f"{TARGET},file={stage.images}/top")
    lab.virsh_checked("snapshot-create-as", GUEST_NAME, *options)
    trace = record(lab, output, f"ask blockcommit {GUEST_NAME} {TARGET} --active", until(READY))
    last = looks(trace)[-1].values
    (told,) = lab.qmp(ASK, GUEST_NAME)["return"]
    assert (last["id"], last["type"], last["status"]) == (told["id"], "commit", told["status"])
    assert (last["done"], last["total"]) == (told["current-progress"], told["total-progress"])
    assert "The commit of vda is ready" in assert_told(lab, output, "a commit, ready", "ready")


def test_a_job_that_is_paused(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    lab.virsh_checked(*copies(stage))
    job = job_of(lab)
    pause = json.dumps({"execute": "job-pause", "arguments": {"id": job}})
    asks = shlex.join(["ask", "qemu-monitor-command", GUEST_NAME, pause])
    trace = record(lab, output, asks, until(PAUSED))
    last = looks(trace)[-1].values
    (told,) = lab.qmp(ASK, GUEST_NAME)["return"]
    assert (last["status"], last["user_paused"]) == ("paused", True)
    assert (last["done"], last["total"]) == (told["current-progress"], told["total-progress"])
    assert_told(lab, output, "a copy that is paused", "paused")


def test_a_copy_to_storage_that_does_not_answer(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    with freezable(stage) as frozen:
        lab.virsh_checked(*copies(stage, folder="frozen"))
        frozen.run("fsfreeze --freeze .")
        try:
            record(lab, output)
        finally:
            frozen.run("fsfreeze --unfreeze .")
    answer = assert_told(lab, output, "a copy to storage that does not answer", "stands")
    assert "The copy of vda has made no progress for " in answer


def test_a_copy_that_ends(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    copy = copies(stage, "--wait", "--pivot", bandwidth=4 * SLOW)
    record(lab, output, f"ask {shlex.join(copy)}")
    assert_told(lab, output, "a copy that ends", "ended")


def test_a_copy_that_is_given_up(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    lab.virsh_checked(*copies(stage))
    record(lab, output, f"ask blockjob {GUEST_NAME} {TARGET} --abort")
    assert_told(lab, output, "a copy that is given up", "cancelled")


def test_a_copy_that_finds_no_space(stage: Stage, tmp_path: Path) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    with full(stage, 16 * MIB):
        lines = (f"ask {shlex.join(copies(stage, '--wait', folder='full'))}; true",)
        record(lab, output, *lines)
    answer = assert_told(lab, output, "a copy that finds no space", "failed")
    assert "No space left on device" in answer


def test_a_build_that_has_its_jobs_elsewhere(tmp_path: Path) -> None:
    stock, changed = Path("/usr/bin/qemu-system-x86_64"), tmp_path / "changed"
    whole = Module(str(stock), stock, 1 << 40, 2 << 40, 0, False)
    start = whole.elf.exported_function("progress_set_remaining")
    assert start is not None
    assert job_layout(whole).total > 0
    code = whole.elf.content(start, 64)
    assert code is not None
    content = stock.read_bytes()
    assert content.count(code) == 1
    changed.write_bytes(content.replace(code, code.replace(b"\x48\x03\x2b", b"\x48\x2b\x2b")))
    with pytest.raises(Unavailable, match="does not show where a job's progress is"):
        job_layout(Module(str(changed), changed, 1 << 40, 2 << 40, 0, False))
