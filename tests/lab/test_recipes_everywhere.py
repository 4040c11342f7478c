"""Recipes with their explainers on every release of libvirt: what both engines see is the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.lab.test_catalogue import until
from tests.lab.test_explainers import Case, cases_of, first
from tests.lab.tracing import as_measured, whole_trace
from tests.support.command import VIRTRACE, virtrace
from tests.support.releases import lab_of_release
from tests.support.silent_agent import Answers, silent_agent
from tests.support.stages import staged
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, domain_xml, file_source
from virtrace.lab.stage import Stage
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace

ACPI = "<features><acpi/></features>"


def recorded(
    lab: Lab, engine: str, recipe: str, output: Path, *script: str
) -> tuple[list[Case], Trace, str]:
    """What is said of a trace while a shell ran these commands; the trace; what they printed."""
    done = virtrace(
        *("record", recipe, "-p", str(lab.pid), "--engine", engine, "-o", str(output)),
        *("--", "sh", "-c", "; ".join(script)),
        env={**os.environ, "LIBVIRT_DEFAULT_URI": lab.uri},
    )
    assert done.returncode == 0, done.stderr
    return cases_of(output), whole_trace(output), done.stdout + done.stderr


def causes(cases: list[Case]) -> list[tuple[str, str]]:
    """What each case is about, and its first cause."""
    return [(" ".join(case["subject"]), first(case)) for case in cases]


def assert_quoted(case: Case, printed: str) -> None:
    """The end of the answer is what the client was told."""
    end = case["answer"].rpartition(": ")[2].rstrip(".")
    assert end in " ".join(printed.split()), case["answer"]


@contextmanager
def further(stage: Stage, name: str, devices: str = "", machine: str = "pc") -> Iterator[None]:
    """Run one more guest, with ACPI."""
    xml = domain_xml(name, stage.lab.system.emulator, False, devices, ACPI)
    file = stage.folder / f"{name}.xml"
    file.write_text(xml.replace("machine='pc'", f"machine='{machine}'"))
    stage.lab.virsh_checked("create", str(file))
    try:
        yield
    finally:
        stage.lab.virsh("destroy", name)


# That both engines tell the same is tried on one release.
by_uprobes = pytest.mark.parametrize("engine", ["uprobes"], indirect=True)


class OnEachRelease:
    """One class for each release, as a class is what a worker is given at a time."""

    release: ClassVar[str | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def any_lab(cls, request: pytest.FixtureRequest) -> Iterator[Lab]:
        if cls.release is None:
            lab: Lab = request.getfixturevalue("stock_lab")
            yield lab
            return
        if os.geteuid() != 0:
            pytest.skip("only root can enter another root")
        with lab_of_release(cls.release) as lab:
            yield lab

    @pytest.fixture
    def any_stage(self, any_lab: Lab) -> Iterator[Stage]:
        """A place for vm2 and its files."""
        with staged(any_lab) as stage:
            yield stage

    def test_what_becomes_of_devices(self, any_stage: Stage, engine: str, tmp_path: Path) -> None:
        """Of a guest that has no system to let go of a PCI device; a reset does it in its place."""
        lab, stage = any_stage.lab, any_stage
        names = ("a.raw", "b.raw", "c.raw")
        disk, other, third = (stage.image(name, MIB) for name in names)
        scsi, card = stage.folder / "scsi.xml", stage.folder / "card.xml"
        scsi.write_text("<controller type='scsi' model='virtio-scsi'/>")
        card.write_text("<interface type='user'><model type='virtio'/></interface>")
        lab.define("vm2", stage.folder / "vm2.xml", "", ACPI)
        lab.virsh_checked("start", "vm2")
        more = disk_xml("file", file_source(third), "vdg")
        with further(stage, "vm3", more), further(stage, "vm4", machine="q35"):
            cases, trace, printed = recorded(
                *(lab, engine, "hotplug", tmp_path / "t.jsonl"),
                f"virsh attach-disk vm2 {disk} vde",
                f"virsh attach-disk vm2 {disk} vde",
                f"virsh attach-disk vm2 {stage.images / 'gone.raw'} vdf",
                f"virsh attach-disk vm2 {lab.disk_file('vdb')} vdf",
                f"virsh attach-device vm2 {scsi} --live",
                f"virsh attach-disk vm2 {other} sda --targetbus scsi",
                "virsh detach-disk vm2 sda",
                "virsh detach-device-alias vm2 no-such-alias --live",
                f"virsh attach-device vm1 {card} --live",
                f"virsh attach-device vm4 {card} --live",
                f"virsh attach-device vm2 {card} --config",
                # Each waits for 5 s in vain.
                "virsh detach-disk vm3 vdg & virsh detach-disk vm2 vde --live; wait",
                "virsh reset vm3",
                "while virsh domblklist vm3 | grep -q vdg; do :; done",
                # It waits for the job in which libvirt closes the image, and tells of the removal.
                "virsh dommemstat vm3",
            )
        [late] = [case for case in cases if case["subject"] == ["vm3", "disk vdg"]]
        cases.remove(late)
        assert causes(cases) == [
            ("vm2 disk vde", "attached"),
            ("vm2 disk vde", "taken"),
            ("vm2 disk vdf", "missing-file"),
            ("vm2 disk vdf", "locked"),
            ("vm2 controller", "attached"),
            ("vm2 disk sda", "attached"),
            ("vm2 disk sda", "released"),
            ("vm2 no-such-alias", "not-there"),
            ("vm1 interface", "no-hotplug"),
            ("vm4 interface", "no-slot"),
            ("vm2 interface", "not-asked"),
            ("vm2 disk vde", "unanswered"),
        ]
        for at in (1, 3, 7, 8, 9):
            assert_quoted(cases[at], printed)
        assert first(late) == "released-late"
        assert late["facts"][-1]["name"] == "QEMU: DEVICE_DELETED"
        assert late["facts"][-1]["value"] > 5_000_000_000
        # libvirt says that it is detached; it is not, as libvirt and QEMU say when they are asked.
        assert "still there" in cases[-1]["answer"]
        assert str(disk) in lab.virsh_checked("domblklist", "vm2")
        [here] = [each["qdev"] for each in lab.qmp({"execute": "query-block"}, "vm2")["return"]]
        events = [each for each in trace.events if each.name.startswith("device.")]
        told = [(each.name, each.values["alias"]) for each in events]
        assert [*dict.fromkeys(told)] == [
            ("device.added", "virtio-disk4"),
            ("device.added", "scsi0"),
            ("device.added", "scsi0-0-0-0"),
            ("device.removed", "scsi0-0-0-0"),
            ("device.removed", "virtio-disk6"),
        ]
        assert here.startswith("/machine/peripheral/virtio-disk4")

    def test_what_becomes_of_snapshots(self, any_stage: Stage, engine: str, tmp_path: Path) -> None:
        lab, stage = any_stage.lab, any_stage
        image = stage.image("vda.qcow2", MIB, "qcow2")
        stage.start(disk_xml("file", file_source(image), "vda", "type='qcow2'"))
        new = {name: stage.images / f"{name}.qcow2" for name in ("ext", "mem", "other")}
        memory = stage.images / "mem.save"
        take = "virsh snapshot-create-as vm2"
        disk = "--disk-only --diskspec vda,file="
        cases, trace, printed = recorded(
            *(lab, engine, "snapshot-disk", tmp_path / "t.jsonl"),
            f"{take} ext {disk}{new['ext']}",
            f"{take} again {disk}{image}",
            f"{take} ext {disk}{new['other']}",
            f"{take} quiet --quiesce {disk}{new['other']}",
            f"{take} nowhere {disk}{stage.images / 'none' / 'x.qcow2'}",
            f"{take} denied {disk}{stage.folder / 'x.qcow2'}",
            "virsh snapshot-create-as vm1 raw",
            f"{take} int",
            f"virsh blockcopy vm2 vda {stage.images / 'copy.qcow2'} --transient-job --wait",
            f"{take} busy {disk}{new['other']}",
            "virsh blockjob vm2 vda --abort",
            f"{take} mem --memspec file={memory} --diskspec vda,file={new['mem']}",
            "virsh domblklist vm2",
            "virsh snapshot-revert vm2 int",
            "virsh snapshot-revert vm2 ext",
            "virsh snapshot-delete vm2 int",
            "virsh snapshot-delete vm2 ext",
            "virsh snapshot-delete vm2 mem --metadata",
            "virsh destroy vm2",
            f"{take} off",
            "virsh snapshot-delete vm2 off",
        )
        reverted_int, reverted_ext, deleted_ext = as_measured(
            {
                (7, 0, 0): ("not-in-image", "external", "external"),
                (9, 0, 0): ("reverted-anew", "external", "merged"),
                (11, 3, 0): ("reverted-anew", "reverted", "external"),
            },
            lab.libvirt_version,
        )
        assert causes(cases) == [
            ("vm2 ext", "taken-external"),
            ("vm2 again", "file-exists"),
            ("vm2 ext", "name-taken"),
            ("vm2 quiet", "no-agent"),
            ("vm2 nowhere", "missing-file"),
            ("vm2 denied", "no-permission"),
            ("vm1 raw", "raw-image"),
            ("vm2 int", "taken-internal"),
            ("vm2 busy", "has-job"),
            ("vm2 mem", "taken-external"),
            ("vm2 int", reverted_int),
            ("vm2 ext", reverted_ext),
            ("vm2 int", "deleted"),
            ("vm2 ext", deleted_ext),
            ("vm2 mem", "record-only"),
            ("vm2 off", "taken-without-qemu"),
            ("vm2 off", "deleted"),
        ]
        for case in cases:
            # In 7.0.0, no probe sees the whole message of an error of the system.
            if " not " in case["answer"] and "system error: " not in case["answer"]:
                assert_quoted(case, printed)
        facts = [{fact["name"]: fact for fact in case["facts"]} for case in cases]
        assert facts[0]["a disk uses"]["value"] == str(new["ext"])
        assert facts[0]["a disk uses"]["meaning"] == f"over {image}"
        assert facts[9]["a disk uses"]["value"] == str(new["mem"])
        assert facts[9]["a disk uses"]["meaning"] == f"over {new['ext']}"
        # Of the guest as it was after that, virsh says the same.
        assert re.search(rf"^ vda +{new['mem']}$", printed, re.M)
        assert ["guest paused" in fact for fact in facts[:10]].count(True) == 2
        for number, at in enumerate((7, 9)):
            stops, resumes = (
                [each.t_ns for each in trace.events if is_event(each, name)]
                for name in ("STOP", "RESUME")
            )
            took = resumes[number] - stops[number]
            assert facts[at]["guest paused"]["value"] == took

    def test_what_becomes_of_backups(self, any_stage: Stage, engine: str, tmp_path: Path) -> None:
        """In 7.0.0, a guest has to be allowed to have one."""
        lab, stage = any_stage.lab, any_stage
        allow = lab.libvirt_version < (9, 0)
        image = stage.image("vda.qcow2", MIB, "qcow2")
        disk = disk_xml("file", file_source(image), "vda", "type='qcow2'")
        stage.start(disk, MAY_BACK_UP if allow else "")
        stage.write(0, 65536)
        (stage.images / "denied").mkdir(mode=0)

        def backup(name: str, more: str = "", file: Path | None = None) -> str:
            file = file or stage.images / f"{name}.qcow2"
            kind = "scratch" if "<server" in more else "target"
            mode = "pull" if kind == "scratch" else "push"
            disks = (
                f"<disks><disk name='vda' backup='yes' type='file'><{kind} file='{file}'/>"
                "</disk></disks>"
            )
            xml = stage.folder / f"{name}.xml"
            xml.write_text(f"<domainbackup mode='{mode}'>{more}{disks}</domainbackup>")
            return f"virsh backup-begin vm2 {xml}"

        first_, second = (stage.folder / f"{name}.xml" for name in ("cp1", "cp2"))
        for file in (first_, second):
            file.write_text(f"<domaincheckpoint><name>{file.stem}</name></domaincheckpoint>")
        full = backup("full")
        socket = stage.images / "nbd.sock"
        pull = backup("pull", f"<server transport='unix' socket='{socket}'/>")
        over = "until virsh domjobinfo vm2 | grep -q None; do :; done"
        bitmap = {"node": "libvirt-1-format", "name": "cp1"}
        remove = {"execute": "block-dirty-bitmap-remove", "arguments": bitmap}
        cases, _, printed = recorded(
            *(lab, engine, "backup", tmp_path / "t.jsonl"),
            backup("none", "<incremental>none</incremental>"),
            backup("x", file=stage.images / "denied" / "x.qcow2"),
            backup("y", file=stage.images / "gone" / "y.qcow2"),
            f"{full} {first_}; {over}",
            full,
            f"{backup('since', '<incremental>cp1</incremental>')} {second}; {over}",
            f"{pull}; virsh domjobabort vm2; {over}",
            "virsh domjobabort vm2",
            f"virsh qemu-monitor-command vm2 '{json.dumps(remove)}'",
            backup("again", "<incremental>cp1</incremental>"),
            *["virsh checkpoint-create-as vm2 cp3"] * 2,
            "virsh checkpoint-list vm2",
            "virsh checkpoint-delete vm2 cp3",
            "virsh checkpoint-delete vm2 cp1",
            "virsh checkpoint-delete vm2 cp1 --metadata",
            "virsh backup-begin vm1",
            f"rm {stage.images / 'pull.qcow2'}; {pull}; virsh destroy vm2",
            "virsh backup-begin vm2",
        )
        assert causes(cases) == [
            ("vm2 incremental backup since none", "no-checkpoint"),
            ("vm2 full backup", "no-permission"),
            ("vm2 full backup", "missing-file"),
            ("vm2 full backup", "done"),
            ("vm2 full backup", "file-exists"),
            ("vm2 incremental backup since cp1", "done"),
            ("vm2 full backup, to be pulled", "pull-ended"),
            ("vm2 job", "nothing-to-end"),
            ("vm2 incremental backup since cp1", "no-bitmap"),
            ("vm2 checkpoint cp3", "checkpoint-made"),
            ("vm2 checkpoint cp3", "name-taken"),
            ("vm2 checkpoint cp3", "checkpoint-deleted"),
            ("vm2 checkpoint cp1", "no-bitmap"),
            ("vm2 checkpoint cp1", "record-only"),
            # The folder of vm1's disks is root's.
            ("vm1 full backup", "not-supported" if allow else "no-permission"),
            ("vm2 full backup, to be pulled", "guest-ended"),
            ("vm2 full backup", "not-running"),
        ]
        for at in (0, 4, 7, 8, 10, 12, 16):
            assert_quoted(cases[at], printed)
        # What is complete is the same as the disk, which nobody has written to since.
        stage.qemu_img("compare", str(image), str(stage.images / "full.qcow2"))
        [copied] = [fact for fact in cases[3]["facts"] if fact["name"].startswith("job ")]
        assert copied["value"] == MIB
        [served] = [fact for fact in cases[6]["facts"] if fact["name"] == "served at"]
        assert served["value"] == str(socket)
        assert re.findall(r"^ (cp\d) ", printed, re.M) == ["cp1", "cp2", "cp3"]

    def test_what_agents_answer(self, any_stage: Stage, engine: str, tmp_path: Path) -> None:
        lab, output = any_stage.lab, tmp_path / "open.jsonl"
        answers: Answers = {
            "guest-ping": {"return": {"a": 1}},
            "guest-fsfreeze-status": {"error": {"class": "CommandNotFound", "desc": "not allowed"}},
            "guest-get-time": None,
        }
        ask = "virsh qemu-agent-command vm4 --timeout 1"
        channel = f"<channel type='unix'>{AGENT}</channel>"
        with further(any_stage, "vm3", channel), silent_agent(lab, "vm4", answers):
            cases, trace, printed = recorded(
                *(lab, engine, "guest-agent", tmp_path / "t.jsonl"),
                "virsh domfsinfo vm1",
                "virsh domfsinfo vm3",
                *[f"{ask} '{json.dumps({'execute': 'guest-ping'})}'"] * 2,
                f"{ask} '{json.dumps({'execute': 'guest-fsfreeze-status'})}'",
                f"{ask} '{json.dumps({'execute': 'guest-info'})}'",
                f"{ask} '{json.dumps({'execute': 'guest-get-time'})}'",
            )
        with silent_agent(lab, "vm5") as agent:
            command = lab.virsh_command("domfsinfo", "vm5")
            options = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
            with subprocess.Popen(
                [*VIRTRACE, "record", "guest-agent", *options, "--", *command],
                stdout=subprocess.DEVNULL,
            ) as running:
                agent.asked()
                until(output, "guest-get-fsinfo")
                running.send_signal(signal.SIGINT)
                until(output, '"type":"footer"')
                # What was asked goes on, until it is known that nobody answers.
                agent.hang_up()
        assert causes(cases) == [
            ("vm1 DomainGetFSInfo", "not-configured"),
            ("vm3 DomainGetFSInfo", "not-connected"),
            ("vm4 guest-ping", "answered"),
            ("vm4 guest-fsfreeze-status", "refused"),
            ("vm4 guest-info", "silent"),
            ("vm4 guest-get-time", "gone"),
        ]
        for at in (0, 1, 3, 4):
            assert_quoted(cases[at], printed)
        assert len(cases[2]["calls"]) == 2
        assert "not allowed" in cases[3]["answer"]
        # What virsh printed of the agent's answer is in the trace.
        assert printed.count('{"return":{"a":1}}') >= 2
        texts = [each.values["json"] for each in trace.events if each.name == "agent.command"]
        assert texts.count({"return": {"a": 1}}) == 2
        # libvirt counts in whole milliseconds.
        assert 0.998 <= waited(cases[4]) < 30
        assert causes(cases_of(output)) == [("vm5 guest-get-fsinfo", "waiting")]


AGENT = "<target type='virtio' name='org.qemu.guest_agent.0'/>"


def waited(case: Case) -> float:
    """For how long libvirt waited, s."""
    [(number, unit)] = re.findall(r"gave up after ([\d.]+) (m?s)", case["answer"])
    return float(number) / {"s": 1, "ms": 1000}[unit]


MAY_BACK_UP = """
  <qemu:capabilities xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:add capability='incremental-backup'/>
  </qemu:capabilities>"""


def is_event(event: Event, name: str) -> bool:
    return event.name == "qmp.event" and event.values["json"]["event"] == name


class TestHost(OnEachRelease):
    pass


@by_uprobes
@pytest.mark.matrix
class TestBullseye(OnEachRelease):
    release = "bullseye"


@by_uprobes
@pytest.mark.matrix
class TestTrixie(OnEachRelease):
    release = "trixie"


@by_uprobes
@pytest.mark.matrix
class TestSid(OnEachRelease):
    release = "sid"
