"""Requests to a guest's disk fail, on all releases: which, with what error, and what was done."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from errno import EIO, ENOSPC, ETIMEDOUT
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from tests.lab.test_explainers import cases_of
from tests.lab.test_qemu import BACKUP, RELEASES, lab_of, writing_boot_sector
from tests.lab.test_qemu_returns import backing_up
from tests.support.command import virtrace
from tests.support.mounts import mounted
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from tests.support.waiting import wait_until
from virtrace.analysis.explain.ioerrors import ErrorCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.analysis.values.meaning import meaning
from virtrace.errors import DONE, Unavailable
from virtrace.image.model import Module
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import GIB, MIB, SECTOR, disk_xml, file_source
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.report.explanation import fill_text
from virtrace.targets.qemu.blocks import backend_layout
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

# The page with the boot sector fits.
FULL = 4096
CLUSTER = 1 << 16


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


@pytest.fixture
def stage(lab: Lab) -> Iterator[Stage]:
    with staged(lab) as stage:
        yield stage


def inside(lab: Lab, script: str) -> None:
    """Run a script where the daemon sees its mounts."""
    space = f"--mount=/proc/{lab.pid}/ns/mnt"
    subprocess.run(["nsenter", space, "sh", "-ec", script], check=True)


def place(lab: Lab, file: Path) -> str:
    return os.readlink(f"/proc/{lab.pid}/root").rstrip("/") + str(file)


@contextmanager
def full(stage: Stage, size: int = FULL) -> Iterator[Path]:
    """A folder on a small file system."""
    lab, folder = stage.lab, stage.images / "full"
    folder.mkdir()
    options = ("-t", "tmpfs", "-o", f"size={size},uid={lab.system.uid}", "tmpfs")
    with mounted(lab.pid, folder, *options):
        yield folder
        lab.virsh("destroy", GUEST_NAME)


def boot_disk(stage: Stage, file: Path) -> None:
    """Make an image with a boot sector that writes to the end of its disk."""
    lab, sector = stage.lab, stage.images / "sector"
    sector.write_bytes(writing_boot_sector((GIB - BACKUP) // SECTOR, BACKUP // SECTOR))
    at = shlex.quote(place(lab, file))
    made = f"cat {shlex.quote(place(lab, sector))} >{at}; truncate -s {GIB} {at}"
    inside(lab, f"{made}; chown {lab.system.uid}:{lab.system.gid} {at}")


def start(stage: Stage, disks: str, more: str = "") -> None:
    stage.lab.define(GUEST_NAME, stage.folder / "vm2.xml", disks, more)
    stage.virsh("start", "--paused", GUEST_NAME)


def until_failed(lab: Lab) -> Sequence[str]:
    """A command that lets the guest run, and ends when it has written, or is paused."""
    virsh = shlex.join(lab.virsh_command())
    asks = json.dumps({"execute": "query-blockstats"})
    counts = f"{virsh} qemu-monitor-command {GUEST_NAME} '{asks}'"
    written = f"{counts} | grep -Eq '\"(failed_)?wr_operations\": ?[1-9]'"
    paused = f"{virsh} domstate --reason {GUEST_NAME} | grep -q 'I/O error'"
    line = f"{virsh} resume {GUEST_NAME}; until {written} || {paused}; do sleep 0.1; done"
    return ["sh", "-c", line]


def record(lab: Lab, domain: str, output: Path, *command: str) -> Trace:
    options = ("-p", lab.pid, "--domain", domain, "-o", output)
    done = virtrace("record", "io-error", *options, "--", *command)
    assert done.returncode == DONE, done.stdout + done.stderr
    trace = read_trace(output)
    assert trace.problems == []
    return trace


def named(trace: Trace, name: str) -> list[Event]:
    return [event for event in trace.events if event.name == name]


def explained(output: Path, trace: Trace) -> list[Explanation[ErrorCase]]:
    found = list(explain_trace(trace, "trace"))
    assert not any(each.contradicts for each in found)
    assert len(cases_of(output)) == len(found)
    return found


def answer(explanation: Explanation[ErrorCase]) -> tuple[str, str]:
    """The first cause, and what it says."""
    cause = explanation.findings[0].cause
    return cause.name, fill_text(cause.says, explanation.case)


def assert_told(lab: Lab, output: Path, scenario: str) -> None:
    """Note the scenario for docs/scenarios.md."""
    case, *_ = cases_of(output)
    told = {scenario: (" ".join(case["subject"]), case["causes"][0]["name"])}
    assert_answers(output, [case], told, ".".join(map(str, lab.libvirt_version)))


def state(lab: Lab) -> str:
    return lab.virsh_checked("domstate", "--reason", GUEST_NAME).strip()


def policies_by_qmp(lab: Lab, device: str) -> tuple[str, str]:
    """What QEMU itself says of a device: for reads, for writes."""
    found = [
        lab.qmp(
            {"execute": "qom-get", "arguments": {"path": device, "property": name}}, GUEST_NAME
        )["return"]
        for name in ("rerror", "werror")
    ]
    return found[0], found[1]


WRITE = f"a write of {BACKUP:,} bytes at {GIB - BACKUP:,} by the guest"
FULL_SCENARIOS = {
    None: "an image finds no space; no policy is chosen",
    "enospace": "an image finds no space; the policy is enospace",
    "stop": "an image finds no space; the policy is stop",
    "report": "an image finds no space; the policy is report",
    "ignore": "an image finds no space; the policy is ignore",
}
EIO_SCENARIOS = {
    "enospc": "a device reports an error; the policy is enospace",
    "stop": "a device reports an error; the policy is stop",
    "report": "a device reports an error; the policy is report",
    "ignore": "a device reports an error; the policy is ignore",
}
# By libvirt's word for the policy: QEMU's, the action, what is said.
POLICIES = {
    None: ("enospc", 2, "QEMU paused the guest, as its policy is enospc."),
    "enospace": ("enospc", 2, "QEMU paused the guest, as its policy is enospc."),
    "stop": ("stop", 2, "QEMU paused the guest, as its policy is stop."),
    "report": ("report", 1, "QEMU reported it to the guest, as its policy is report."),
    "ignore": ("ignore", 0, "QEMU told the guest that it did not fail, as its policy is ignore."),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_full_file_system(stage: Stage, tmp_path: Path, policy: str | None) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    word, action, done = POLICIES[policy]
    with full(stage) as folder:
        file = folder / "boot.raw"
        boot_disk(stage, file)
        driver = "type='raw'" + (f" error_policy='{policy}'" if policy else "")
        start(stage, disk_xml("file", file_source(file), TARGET, driver))
        trace = record(lab, GUEST_NAME, output, *until_failed(lab))
        is_paused = state(lab) == "paused (I/O error)"
        by_qmp = policies_by_qmp(lab, "/machine/peripheral/virtio-disk0")
    assert is_paused is (action == 2)
    (decision,) = named(trace, "device.error")
    values = decision.values
    assert (values["action"], values["error"], values["is_read"]) == (action, ENOSPC, False)
    words = [
        meaning(decision.name, decision.role, name, values[name])
        for name in ("on_read_error", "on_write_error")
    ]
    assert words[1] == word
    if policy is not None:
        assert by_qmp[1] == word
        assert by_qmp[0] in (words[0], "auto")
    for event in named(trace, "write.failed"):
        failed = tuple(event.values[name] for name in ("offset", "bytes", "result"))
        assert failed == (GIB - BACKUP, BACKUP, -ENOSPC)
    (sent,) = named(trace, "device.error.sent")
    assert sent.t_ns > decision.t_ns
    assert values["node"] == named(trace, "write.failed")[-1].values["node"]
    assert [event.values["state"] for event in named(trace, "guest.paused")] == [3] * is_paused
    (explanation,) = explained(output, trace)
    assert answer(explanation) == (
        "full",
        f"The image of vda is on a file system or device that is full: {WRITE} through virtio-blk "
        f"failed with ENOSPC (no space left on device); {done}",
    )
    assert explanation.case.subject[:2] == (GUEST_NAME, TARGET)
    assert_told(lab, output, FULL_SCENARIOS[policy])


def blkdebug(stage: Stage, event: str, policy: str) -> tuple[str, str]:
    """A guest whose disk is a node that fails: its definition beside libvirt's disks."""
    file = stage.images / "boot.raw"
    boot_disk(stage, file)
    below = {"driver": "file", "filename": str(file), "node-name": "below"}
    node: dict[str, object] = {"driver": "blkdebug", "node-name": "failing", "image": below}
    node["inject-error"] = [{"event": "none", "iotype": event, "errno": EIO}]
    device = f"virtio-blk-pci,drive=failing,id=disk,addr=0x1e,bootindex=1,werror={policy}"
    values = ("-blockdev", json.dumps(node), "-device", f"{device},rerror={policy}")
    arguments = "".join(f"<qemu:arg value={quoteattr(value)}/>" for value in values)
    space = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
    return "", f"<qemu:commandline {space}>{arguments}</qemu:commandline>"


@pytest.mark.parametrize("policy", EIO_SCENARIOS)
def test_a_device_with_an_error(stage: Stage, tmp_path: Path, policy: str) -> None:
    lab, output = stage.lab, tmp_path / "t.jsonl"
    start(stage, *blkdebug(stage, "write", policy))
    trace = record(lab, GUEST_NAME, output, *until_failed(lab))
    (decision,) = named(trace, "device.error")
    assert (decision.values["error"], decision.values["node"]) == (EIO, "failing")
    done = {
        "enospc": "QEMU reported it to the guest, as its policy is enospc.",
        **{str(one): said for one, (_, _, said) in POLICIES.items() if one != "enospace"},
    }[policy]
    (explanation,) = explained(output, trace)
    assert answer(explanation) == (
        "device",
        f"The storage of node failing reports an error: {WRITE} failed with EIO "
        f"(input/output error); {done}",
    )
    assert (state(lab) == "paused (I/O error)") is (policy == "stop")
    by_qmp = policies_by_qmp(lab, "/machine/peripheral/disk")
    names = ("on_read_error", "on_write_error")
    words = [meaning(decision.name, decision.role, name, decision.values[name]) for name in names]
    assert tuple(words) == by_qmp == (policy, policy)
    assert_told(lab, output, EIO_SCENARIOS[policy])


def test_an_image_that_was_made_immutable(stage: Stage, tmp_path: Path) -> None:
    lab, output, file = stage.lab, tmp_path / "t.jsonl", stage.images / "boot.raw"
    boot_disk(stage, file)
    start(stage, disk_xml("file", file_source(file), TARGET, "type='raw' error_policy='stop'"))
    subprocess.run(["chattr", "+i", str(file)], check=True)
    try:
        trace = record(lab, GUEST_NAME, output, *until_failed(lab))
    finally:
        subprocess.run(["chattr", "-i", str(file)], check=True)
    (explanation,) = explained(output, trace)
    assert answer(explanation) == (
        "not-permitted",
        f"QEMU may not do this to the image of vda: {WRITE} through virtio-blk failed with EPERM "
        "(operation not permitted); QEMU paused the guest, as its policy is stop.",
    )
    assert_told(lab, output, "an image was made immutable")
    # It goes on with the same request.
    lab.virsh_checked("resume", GUEST_NAME)
    wait_until(lambda: state(lab).startswith("running"), "the guest runs")


def test_qcow2_finds_no_space(stage: Stage, tmp_path: Path) -> None:
    """The guest's write fails, as qcow2 cannot let its file grow."""
    lab, output = stage.lab, tmp_path / "t.jsonl"
    with full(stage, MIB) as folder:
        raw, image = stage.images / "boot.raw", stage.images / "boot.qcow2"
        boot_disk(stage, raw)
        stage.qemu_img("convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
        inside(
            lab,
            f"cp --preserve {place(lab, image)} {place(lab, folder)}; "
            f"dd if=/dev/zero of={place(lab, folder / 'rest')} bs=4k 2>/dev/null || true",
        )
        source = file_source(folder / image.name)
        start(stage, disk_xml("file", source, TARGET, "type='qcow2'"))
        trace = record(lab, GUEST_NAME, output, *until_failed(lab))
        assert state(lab) == "paused (I/O error)"
    explanation, flush = explained(output, trace)
    assert answer(explanation) == (
        "full",
        f"The image of vda is on a file system or device that is full: {WRITE} through virtio-blk, "
        "for which qcow2 wrote its own tables, failed with ENOSPC (no space left on device); "
        "QEMU paused the guest, as its policy is enospc.",
    )
    # QEMU flushes all disks when it pauses a guest: there qcow2 tries again.
    name, said = answer(flush)
    assert name == "full"
    assert (
        "full: a flush by QEMU's main thread, for which qcow2 wrote its own tables, failed" in said
    )
    inner, outer = explanation.case.first.events
    noted = {event.values["node"]: event.values for event in named(trace, "mark.standing")}
    layers = [noted[event.values["node"]]["layer"] for event in (inner, outer)]
    assert layers == ["storage", "format"]
    assert (outer.values["offset"], outer.values["bytes"]) == (GIB - BACKUP, BACKUP)
    assert_told(lab, output, "qcow2 finds no space for its file to grow")


def test_a_block_job_finds_no_space(stage: Stage, tmp_path: Path) -> None:
    lab, output, file = stage.lab, tmp_path / "t.jsonl", stage.images / "boot.raw"
    with full(stage) as folder:
        boot_disk(stage, file)
        start(stage, disk_xml("file", file_source(file), TARGET))
        options = ("--format", "raw", "--transient-job", "--wait")
        copy = ("blockcopy", GUEST_NAME, TARGET, str(folder / "copy.raw"), *options)
        line = shlex.join(lab.virsh_command(*copy))
        trace = record(lab, GUEST_NAME, output, "sh", "-c", f"{line}; true")
        # The guest's own disk is as before.
        assert state(lab) == "paused (user)"
    assert named(trace, "device.error") == []
    decisions = named(trace, "job.error")
    jobs = {str(event.values["job"]) for event in decisions}
    assert len(jobs) == 1
    (job,) = jobs
    assert job.startswith("copy-vda-")
    explanation, *_ = explained(output, trace)
    name, said = answer(explanation)
    assert name == "full"
    failed = explanation.case.first.outer.values
    assert failed["result"] == -ENOSPC
    assert said == (
        f"The image of node {explanation.case.node} is on a file system or device that is full: "
        f"a write of {failed['bytes']:,} bytes at {failed['offset']:,} by the block job {job} "
        f"failed with ENOSPC (no space left on device); the block job {job} failed, as the job's "
        "policy is report."
    )
    assert_told(lab, output, "a block job finds no space for its copy")


def test_a_command_of_the_monitor_fails(lab: Lab, tmp_path: Path) -> None:
    """Nothing decides by a policy."""
    injected = {
        "driver": "blkdebug",
        "node-name": "failing",
        "image": {"driver": "null-co", "size": GIB, "node-name": "below"},
        "inject-error": [
            {"event": "none", "iotype": kind, "errno": errno}
            for kind, errno in (("write", EIO), ("read", ETIMEDOUT), ("flush", ENOSPC))
        ],
    }
    assert "return" in lab.qmp({"execute": "blockdev-add", "arguments": injected})
    virsh = shlex.join(lab.virsh_command("qemu-monitor-command", "vm1", "--hmp"))
    commands = (f"write {MIB} 4096", f"read {2 * MIB} 512", "flush")
    line = "; ".join(f"{virsh} 'qemu-io failing \"{command}\"'" for command in commands)
    output = tmp_path / "t.jsonl"
    try:
        trace = record(lab, "vm1", output, "sh", "-c", line)
    finally:
        lab.qmp({"execute": "blockdev-del", "arguments": {"node-name": "failing"}})
    where = "no policy of a disk or a job decided: the error went to where it came from."
    by = "by QEMU's main thread failed with"
    assert [answer(each) for each in explained(output, trace)] == [
        (
            "device",
            f"The storage of node failing reports an error: a write of 4,096 bytes at {MIB:,} {by} "
            f"EIO (input/output error); {where}",
        ),
        (
            "failed",
            f"node failing: a read of 512 bytes at {2 * MIB:,} {by} "
            f"ETIMEDOUT (connection timed out); {where}",
        ),
        (
            "full",
            "The image of node failing is on a file system or device that is full: a flush "
            f"{by} ENOSPC (no space left on device); {where}",
        ),
    ]


def test_requests_that_do_not_fail_leave_no_record(lab: Lab, tmp_path: Path) -> None:
    virsh = shlex.join(lab.virsh_command("qemu-monitor-command", "vm1", "--hmp"))
    backend = "/machine/peripheral/virtio-disk1/virtio-backend"
    line = f"for i in $(seq 0 19); do {virsh} 'qemu-io -d {backend} \"write 0 4096\"'; done"
    trace = record(lab, "vm1", tmp_path / "t.jsonl", "sh", "-c", line)
    assert {event.name for event in trace.events} == {"mark.standing"}
    assert trace.footer is not None
    assert trace.footer["hits"]["write.failed"] == 0
    assert trace.footer["dropped"] == 0
    assert list(explain_trace(trace, "trace")) == []


JOBS, CLUSTERS = 16, 256


def test_what_fails_among_many_in_flight(lab: Lab, tmp_path: Path) -> None:
    """Jobs copy at once; in every other one, one write fails."""
    fails = {}
    for job in range(JOBS):
        size = {"size": CLUSTER * CLUSTERS}
        slow: dict[str, object] = {"driver": "null-co", "latency-ns": 200_000, **size}
        target = {**slow, "node-name": f"to{job}"}
        if job % 2:
            fails[f"to{job}"] = CLUSTER * (3 * job + 7)
            failing = {"event": "none", "iotype": "write", "errno": 64 + job}
            failing["sector"] = fails[f"to{job}"] // SECTOR
            target = {"driver": "blkdebug", "node-name": f"to{job}", "inject-error": [failing]}
            target["image"] = {**slow, "node-name": f"below{job}"}
        for node in ({**slow, "node-name": f"from{job}"}, target):
            assert "return" in lab.qmp({"execute": "blockdev-add", "arguments": node})
    output = tmp_path / "t.jsonl"
    nodes = [(f"from{job}", f"to{job}") for job in range(JOBS)]
    trace = record(lab, "vm1", output, *backing_up(lab, nodes))
    assert trace.footer is not None
    assert trace.footer["dropped"] == 0
    found = {
        str(event.values["node"]): tuple(event.values[name] for name in ("offset", "bytes"))
        for event in named(trace, "write.failed")
    }
    assert found == {node: (offset, CLUSTER) for node, offset in fails.items()}
    # Each by its own job, as each error is another one.
    told = [(each.case.node, answer(each)[1]) for each in explained(output, trace)]
    assert sorted(node for node, _ in told) == sorted(fails)
    for name, said in told:
        assert f"by the block job {name.replace('to', 'copy')} failed with" in said


def test_a_build_that_keeps_its_policy_elsewhere(tmp_path: Path) -> None:
    """The code by which QEMU decides reads the policy, or it is none."""
    stock = Path("/usr/bin/qemu-system-x86_64")
    layout = backend_layout(Module(str(stock), stock, 1 << 40, 2 << 40, 0, False))
    reads = b"\x8b\x87" + layout.on_write_error.to_bytes(4, "little") + b"\x40\x84\xf6"
    code = stock.read_bytes()
    assert code.count(reads) >= 2
    changed = tmp_path / "changed"
    changed.write_bytes(code.replace(reads, reads[:2] + b"\x28" + reads[3:], 1))
    with pytest.raises(Unavailable, match="does not show where a disk keeps its policy"):
        backend_layout(Module(str(changed), changed, 1 << 40, 2 << 40, 0, False))


FAILING = """\
virtrace: 1
name: failing
about: Calls that fail.
try: none
points:
  - name: sizes
    module: libvirt.so.0
    prototype: >-
      int virDomainGetBlockInfo(virDomainPtr domain, const char *disk, void *info,
      unsigned int flags)
    at: return
    when: {fails: return}
    anywhere: true
    capture: {domain: domain->name, flags: flags, result: return}
"""


def test_calls_of_a_daemon_that_fail(lab: Lab, tmp_path: Path) -> None:
    """There the kernel finds the return."""
    recipe, output = tmp_path / "failing.yaml", tmp_path / "t.jsonl"
    recipe.write_text(FAILING)
    virsh = shlex.join(lab.virsh_command("domblkinfo", "vm1"))
    line = f"{virsh} vdb; {virsh} nothing; {virsh} vdb"
    done = virtrace("record", recipe, "-p", lab.pid, "-o", output, "--", "sh", "-c", line)
    assert done.returncode == DONE, done.stderr
    trace = read_trace(output)
    (event,) = trace.events
    assert event.values == {"domain": "vm1", "flags": 0, "result": -1}
    assert trace.footer is not None
    assert (trace.footer["hits"], trace.footer["dropped"]) == ({"sizes": 1}, 0)
