"""Scenarios of causes that the other tests do not meet, on all releases of libvirt."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.test_catalogue import until
from tests.lab.test_explainers import cases_of
from tests.lab.test_io_error import boot_disk, full, until_failed
from tests.lab.test_recipes_everywhere import MAY_BACK_UP, recorded, recording_beside
from tests.lab.tracing import as_measured
from tests.support.command import SECONDS, VIRTRACE
from tests.support.hanging import qemu_of, stalled_migration
from tests.support.releases import on_each_release
from tests.support.scenarios import assert_answers
from tests.support.stages import staged
from virtrace.errors import INTERRUPTED
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import Stage

pytestmark = [
    pytest.mark.scenarios,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes such files and devices"),
]


def qcow2_guest(stage: Stage) -> Path:
    """Start vm2, which may have backups also with 7.0.0."""
    image = stage.image("vda.qcow2", MIB, "qcow2")
    disk = disk_xml("file", file_source(image), "vda", "type='qcow2'")
    stage.start(disk, MAY_BACK_UP if stage.lab.libvirt_version < (9, 0) else "")
    return image


@on_each_release
def test_calls_that_had_not_returned(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """As QEMU does not answer before the trace ends."""
    with staged(any_lab) as stage:
        qcow2_guest(stage)
        other = stage.image("b.raw", MIB)
        snapshot = f"snapshot-create-as vm2 s --disk-only --diskspec vda,file={stage.images}/s"
        # What is asked, and the subject of the answer.
        unfinished = {
            "blockinfo": ("domblkinfo vm2 vda", "vm2 vda"),
            "blockjob": ("blockpull vm2 vda", "vm2 vda"),
            "hotplug": (f"attach-disk vm2 {other} vdb", "vm2 disk vdb"),
            "backup": ("checkpoint-create-as vm2 c", "vm2 checkpoint c"),
            "snapshot-disk": (snapshot, "vm2 s"),
        }
        for recipe, (asked, subject) in unfinished.items():
            output = tmp_path / f"{recipe}.jsonl"
            options = ("-p", str(any_lab.pid), "--engine", engine, "-o", str(output))
            with any_lab.stalled("vm2"):
                line = [*VIRTRACE, "record", recipe, *options, "--", *any_lab.virsh_command(asked)]
                running = subprocess.Popen(line, stdout=subprocess.DEVNULL)
                until(output, '"name":"qmp.send","span"')
                running.send_signal(signal.SIGINT)
                until(output, '"type":"footer"')
            assert running.wait(SECONDS) == INTERRUPTED
            scenario = {"QEMU does not answer before the trace ends": (subject, "incomplete")}
            assert_answers(output, cases_of(output), scenario)


@on_each_release
def test_further_errors(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage:
        qcow2_guest(stage)
        denied, qemu = stage.folder / "denied.qcow2", qemu_of(any_lab, "vm2")
        cases, _, _ = recorded(
            *(any_lab, engine, "errors", output),
            "virsh domfsinfo vm1",
            "virsh blkiotune vm1 --weight 500",
            f"virsh snapshot-create-as vm2 s --disk-only --diskspec vda,file={denied}",
            f"kill -STOP {qemu}; virsh domblkinfo vm2 vda & asks=$!",
            "until virsh domcontrol vm2 | grep occupied; do :; done",
            f"kill -KILL {qemu}; wait $asks",
            "until virsh domstate vm2 | grep 'shut off'; do :; done",
            "virsh suspend vm2",
        )
    scenarios = {
        "the agent is asked of a guest without one": ("error 74 (argument unsupported)", "agent"),
        "what a daemon of a user cannot do": ("error 67 (config unsupported)", "unsupported"),
        "QEMU may not write to the folder of a snapshot": ("error 38 (system error)", "denied"),
        "a guest that is shut off is suspended": ("error 55 (operation invalid)", "not-running"),
        "QEMU is killed while it should answer": ("error 38 (system error)", "monitor-broken"),
    }
    assert_answers(output, cases, scenarios)


def further_disks(stage: Stage) -> str:
    """Devices, and images, each of which is written in another way when the guest runs."""
    device = stage.block_device(MIB)
    half, whole = stage.image("half.raw", 2 * MIB), stage.image("whole.raw", MIB)
    whole.write_bytes(b"\1" * MIB)
    plain = stage.image("plain.qcow2", MIB, "qcow2")
    return "".join(
        [
            disk_xml("block", f"<source dev='{device}'/>", "vda"),
            disk_xml("file", file_source(half), "vdb"),
            disk_xml("file", file_source(whole), "vdc"),
            disk_xml("file", file_source(plain), "vdd", "type='qcow2'"),
        ]
    )


@on_each_release
def test_further_disks(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    before, after, sizes = (tmp_path / f"{name}.jsonl" for name in ("before", "after", "sizes"))
    statistics, disks = "virsh domstats --block vm2", ("vda", "vdb", "vdc", "vdd")
    with staged(any_lab) as stage:
        stage.start(further_disks(stage))
        [unwritten, *_], _, _ = recorded(any_lab, engine, "domstats", before, statistics)
        for disk, offset in enumerate((65536, 0, MIB - 65536, 0)):
            any_lab.qemu_io("vm2", disk, f"write {offset} {MIB if disk == 1 else 65536}")
            any_lab.qemu_io("vm2", disk, "flush")
        cases, _, _ = recorded(any_lab, engine, "domstats", after, statistics)
        asked = [f"virsh domblkinfo vm2 {disk}" for disk in disks]
        infos, _, _ = recorded(any_lab, engine, "blockinfo", sizes, *asked)
    scenario = {"a device, not written": ("vm2 vda", "device-unwritten")}
    assert_answers(before, [unwritten], scenario)
    marks, causes = as_measured(
        {
            (7, 0, 0): (
                ("mark-on-device", "mark-equals-usage", "mark-equals-usage", "mark"),
                ("device-high-water-mark", "mark-equals-usage", "fully-allocated", "qcow2"),
            ),
            (11, 3, 0): (
                ("device-unwritten", "no-mark", "no-mark", "mark"),
                (
                    "no-high-water-mark-on-device",
                    "no-high-water-mark",
                    "fully-allocated",
                    "qcow2",
                ),
            ),
        },
        any_lab.libvirt_version,
    )
    for output, found, names in ((after, cases, marks), (sizes, infos, causes)):
        scenarios = {
            "a device, written in its middle": ("vm2 vda", names[0]),
            "a sparse image, its first half written": ("vm2 vdb", names[1]),
            "a fully allocated image, written at its end": ("vm2 vdc", names[2]),
            "a qcow2 image without a backing file, written": ("vm2 vdd", names[3]),
        }
        of_disks = [case for case in found if case["explainer"] in ("statistics", "disk-sizes")]
        assert_answers(output, of_disks, scenarios)


@on_each_release
def test_further_backups_and_snapshots(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """One that is served until its guest ends, another one meanwhile, and files without room."""
    output, taken = tmp_path / "t.jsonl", tmp_path / "s.jsonl"
    with staged(any_lab) as stage, full(stage) as folder:
        qcow2_guest(stage)
        no_room, pull = stage.folder / "no-room.xml", stage.folder / "pull.xml"
        disk = "<disk name='vda' backup='yes' type='file'><{0} file='{1}'/></disk>"
        target = disk.format("target", folder / "backup.qcow2")
        no_room.write_text(f"<domainbackup><disks>{target}</disks></domainbackup>")
        scratch = disk.format("scratch", stage.images / "scratch.qcow2")
        server = f"<server transport='unix' socket='{stage.images / 'pull.sock'}'/>"
        pull.write_text(
            f"<domainbackup mode='pull'>{server}<disks>{scratch}</disks></domainbackup>"
        )
        cases, _, _ = recorded(
            *(any_lab, engine, "backup", output),
            f"virsh backup-begin vm2 {no_room}",
            f"virsh backup-begin vm2 {pull}",
            f"virsh backup-begin vm2 {pull}",
        )
        any_lab.virsh_checked("domjobabort", "vm2")
        snapshot = f"snapshot-create-as vm2 s --disk-only --diskspec vda,file={folder}/s"
        snapshots, _, _ = recorded(any_lab, engine, "snapshot-disk", taken, f"virsh {snapshot}")
    scenarios = {
        "the file of a backup finds no space": ("vm2 full backup", "no-space"),
        "a backup that a client can pull": ("vm2 full backup, to be pulled", "serving"),
        "a backup while another one runs": ("vm2 full backup, to be pulled", "other-job"),
    }
    assert_answers(output, cases, scenarios)
    assert_answers(taken, snapshots, {"its new file finds no space": ("vm2 s", "no-space")})


DRIVE = """
    <disk type='file' device='cdrom'><source file='{}'/><target dev='hda' bus='ide'/></disk>"""


@on_each_release
def test_further_devices(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage:
        old, new, closed = (stage.image(name, MIB) for name in ("old.iso", "new.iso", "closed.raw"))
        os.chown(closed, 0, 0)
        closed.chmod(0)
        stage.start(DRIVE.format(old))
        cases, _, printed = recorded(
            *(any_lab, engine, "hotplug", output),
            f"virsh change-media vm2 hda {new} --update --live",
            "virsh domblklist vm2",
            f"virsh attach-disk vm2 {closed} vdb",
            "virsh destroy vm2",
            f"virsh attach-disk vm2 {old} vdb --live",
        )
    assert str(new) in printed
    scenarios = {
        "the medium of a drive is changed": ("vm2 disk hda", "changed"),
        "a disk whose file QEMU may not open": ("vm2 disk vdb", "no-permission"),
        "a disk for a guest that is shut off": ("vm2 disk vdb", "not-running"),
    }
    assert_answers(output, cases, scenarios)


@on_each_release
def test_a_pool_that_is_busy(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """While a volume is copied, which takes a second or more."""
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage, ExitStack() as stack:
        pool = stage.images / "pool"
        pool.mkdir()
        os.chown(pool, any_lab.system.uid, any_lab.system.gid)
        any_lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
        stack.callback(any_lab.virsh, "pool-destroy", "pool")
        any_lab.virsh_checked("vol-create-as", "pool", "large", "1G", "--allocation", "0")
        cases, _, _ = recorded(
            *(any_lab, engine, "pool-refresh", output),
            "virsh vol-clone --pool pool large copy & copies=$!",
            f"until [ -e {pool}/copy ]; do :; done",
            "virsh pool-refresh pool; wait $copies",
        )
    assert_answers(output, cases, {"a volume of the pool is being copied": ("pool", "busy")})


WATCHDOG = "<watchdog model='ib700' action='pause'/>"
# Its time of 0 s.
EXPIRES = "virsh qemu-monitor-command vm2 --hmp 'o/b 0x443 0xf'"


@on_each_release
def test_further_ends(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """A watchdog, and an image without room, pause a guest."""
    expired, failed = tmp_path / "w.jsonl", tmp_path / "f.jsonl"
    with staged(any_lab) as stage:
        stage.start(WATCHDOG)
        paused = "until virsh domstate --reason vm2 | grep -q paused; do :; done"
        [watchdog], _, _ = recorded(any_lab, engine, "guest-end", expired, EXPIRES, paused)
    with staged(any_lab) as stage, full(stage) as folder:
        boot_disk(stage, folder / "boot.raw")
        disk = disk_xml("file", file_source(folder / "boot.raw"), "vda")
        any_lab.define("vm2", stage.folder / "vm2.xml", disk)
        stage.virsh("start", "--paused", "vm2")
        *_, script = until_failed(any_lab)
        cases, _, _ = recorded(any_lab, engine, "guest-end", failed, script)
    assert_answers(expired, [watchdog], {"its watchdog expires": ("vm2", "watchdog")})
    scenario = {"its image finds no space": ("vm2", "io-error")}
    assert_answers(failed, cases, scenario)


@on_each_release
def test_further_migrations(any_lab: Lab, elsewhere: Lab, engine: str, tmp_path: Path) -> None:
    """One that libvirt refuses; and one that has not ended, recorded on both hosts."""
    refused = tmp_path / "refused.jsonl"
    with staged(any_lab) as stage:
        stage.start(disk_xml("file", file_source(stage.image("vda.raw", MIB)), "vda"))
        asked = f"virsh migrate vm2 '{elsewhere.uri}' --live"
        cases, _, _ = recorded(any_lab, engine, "migration", refused, asked)
    scenario = {"a migration with a disk that is not shared": ("vm2", "unsafe")}
    assert_answers(refused, cases, scenario)
    source, target = tmp_path / "source.jsonl", tmp_path / "target.jsonl"
    with ExitStack() as after:
        at_source = recording_beside(elsewhere, engine, "migration", source)
        with at_source, recording_beside(any_lab, engine, "migration", target):
            after.enter_context(stalled_migration(elsewhere, any_lab, "vm3"))
            until(source, '"name":"virDomainMigratePerform3Params","span"')
    scenario = {"a guest that is being sent as the trace ends": ("vm3", "incomplete")}
    assert_answers(source, cases_of(source), scenario)
    scenario = {"a guest that is being received as the trace ends": ("vm3", "receiving")}
    assert_answers(target, cases_of(target), scenario)


@on_each_release
def test_further_block_jobs(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """One whose copy finds no space, one that takes seconds, and another one meanwhile."""
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage, full(stage, MIB) as folder:
        image = stage.image("vda.qcow2", 8 * MIB, "qcow2")
        stage.start(disk_xml("file", file_source(image), "vda", "type='qcow2'"))
        stage.write(0, 8 * MIB)
        copy = "virsh blockcopy vm2 vda {} --transient-job"
        cases, _, printed = recorded(
            *(any_lab, engine, "blockjob", output),
            f"{copy.format(folder / 'copy.qcow2')} --wait",
            f"{copy.format(stage.images / 'copy.qcow2')} --bandwidth 1",
            "virsh blockpull vm2 vda",
        )
    scenarios = {
        "a copy that finds no space": ("vm2 vda", "failed"),
        "a copy that runs as the trace ends": ("vm2 vda", "running"),
        "a pull while a copy runs": ("vm2 vda", "refused"),
    }
    found = {case["causes"][0]["name"]: case for case in cases}
    assert_answers(output, [found[cause] for _, cause in scenarios.values()], scenarios)
    assert "already in active block job" in printed


@on_each_release
def test_further_volumes(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage, ExitStack() as stack:
        pool = stage.images / "pool"
        pool.mkdir()
        os.chown(pool, any_lab.system.uid, any_lab.system.gid)
        stage.qemu_img(
            *("create", "-q", "-f", "qcow2", "-o", "preallocation=full"),
            *(str(pool / "more.qcow2"), str(MIB)),
        )
        (pool / "none.raw").touch()
        os.truncate(pool / "none.raw", MIB)
        any_lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
        stack.callback(any_lab.virsh, "pool-destroy", "pool")
        asked = [f"virsh vol-info --pool pool {name}" for name in ("none.raw", "more.qcow2")]
        cases, _, _ = recorded(any_lab, engine, "numbers", output, *asked)
    scenarios = {
        "a volume that is never written": ("pool none.raw", "nothing-written"),
        "a qcow2 volume that is allocated as a whole": ("pool more.qcow2", "more"),
    }
    assert_answers(output, cases, scenarios)


@on_each_release
def test_errors_of_calls_that_wait(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    """One for another one, in vain; the client of that is killed. And a file that is gone."""
    output = tmp_path / "t.jsonl"
    with staged(any_lab) as stage:
        qcow2_guest(stage)
        qemu = qemu_of(any_lab, "vm2")
        cases, _, _ = recorded(
            *(any_lab, engine, "errors", output),
            f"kill -STOP {qemu}; virsh domblkinfo vm2 vda & asks=$!",
            "until virsh domcontrol vm2 | grep occupied; do :; done",
            "virsh domblkstat vm2 vda",
            f"kill -KILL $asks; virsh uri; kill -CONT {qemu}",
            f"virsh attach-disk vm2 {stage.images / 'gone.raw'} vdb",
        )
    scenarios = {
        "a call waits for another one in vain": ("error 68 (operation timeout)", "lock-timeout"),
        "a disk is attached whose file does not exist": ("error 38 (system error)", "missing-file"),
        "a client is killed": ("error 38 (system error)", "client-gone"),
    }
    assert_answers(output, cases, scenarios)
