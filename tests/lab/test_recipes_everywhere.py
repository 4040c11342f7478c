"""Recipes with their explainers on every release of libvirt: what both engines see is the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_catalogue import until
from tests.lab.test_explainers import Case, cases_of
from tests.lab.tracing import as_measured, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.documented import assert_shown
from tests.support.mounts import mounted
from tests.support.releases import lab_of_release
from tests.support.scenarios import assert_answers
from tests.support.silent_agent import Answers, silent_agent
from tests.support.stages import staged
from virtrace.errors import INTERRUPTED
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
        # A loop in it that waits in vain outlives nothing.
        *("--", "timeout", str(SECONDS - 10), "sh", "-c", "; ".join(script)),
        env={**os.environ, "LIBVIRT_DEFAULT_URI": lab.uri},
    )
    assert done.returncode == 0, done.stderr
    return cases_of(output), whole_trace(output), done.stdout + done.stderr


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


@contextmanager
def recording_beside(lab: Lab, engine: str, recipe: str, output: Path) -> Iterator[None]:
    """Record a daemon meanwhile."""
    options = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
    running = subprocess.Popen([*VIRTRACE, "record", recipe, *options], stdout=subprocess.DEVNULL)
    try:
        until(output, '"type":"header"')
        yield
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == INTERRUPTED
    finally:
        running.kill()
        running.wait()


# That both engines tell the same is tried on one release with the other tests.
mostly_by_uprobes = pytest.mark.parametrize(
    "engine", [pytest.param("gdb", marks=pytest.mark.scenarios), "uprobes"], indirect=True
)


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

    @pytest.fixture
    def elsewhere(self, any_lab: Lab) -> Iterator[Lab]:
        """The same libvirt on another host, as far as it can tell, whose folder both see."""
        lab = bring_up(hostname="elsewhere", release=any_lab.release)
        with ExitStack() as stack:
            stack.callback(lab.down)
            if any_lab.release is not None:
                Path(f"/proc/{any_lab.pid}/root{lab.folder}").mkdir()
                stack.enter_context(mounted(any_lab.pid, lab.folder, "--bind", str(lab.folder)))
            yield lab

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
        scenarios = {
            "a disk is attached": ("vm2 disk vde", "attached"),
            "another one with the same name": ("vm2 disk vde", "taken"),
            "a disk whose file does not exist": ("vm2 disk vdf", "missing-file"),
            "a disk of another guest that runs": ("vm2 disk vdf", "locked"),
            "a SCSI controller is attached": ("vm2 controller", "attached"),
            "a SCSI disk is attached": ("vm2 disk sda", "attached"),
            "the SCSI disk is detached": ("vm2 disk sda", "released"),
            "a device is detached that the guest does not have": ("vm2 no-such-alias", "not-there"),
            "an interface for a guest without ACPI": ("vm1 interface", "no-hotplug"),
            "an interface for a guest of q35 without a free port": ("vm4 interface", "no-slot"),
            "an interface for the definition alone": ("vm2 interface", "not-asked"),
            "a disk is detached, and the guest does not let go of it": (
                "vm2 disk vde",
                "unanswered",
            ),
            "a disk is detached, and the guest lets go of it in its reset, later": (
                "vm3 disk vdg",
                "released-late",
            ),
        }
        assert_answers(tmp_path / "t.jsonl", [*cases, late], scenarios)
        if lab.release is None:
            assert_shown("explain.md", "hotplug.jsonl", tmp_path / "t.jsonl")
        for at in (1, 3, 7, 8, 9):
            assert_quoted(cases[at], printed)
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
        scenarios = {
            "an external snapshot": ("vm2 ext", "taken-external"),
            "its new file is there already": ("vm2 again", "file-exists"),
            "another snapshot has its name": ("vm2 ext", "name-taken"),
            "--quiesce, and the guest has no agent": ("vm2 quiet", "no-agent"),
            "the folder of its new file does not exist": ("vm2 nowhere", "missing-file"),
            "QEMU may not write to the folder of its new file": ("vm2 denied", "no-permission"),
            "an internal snapshot of raw disks": ("vm1 raw", "raw-image"),
            "an internal snapshot": ("vm2 int", "taken-internal"),
            "a block job runs on the disk": ("vm2 busy", "has-job"),
            "an external snapshot with the memory": ("vm2 mem", "taken-external"),
            "an internal snapshot is reverted to": ("vm2 int", reverted_int),
            "an external snapshot is reverted to": ("vm2 ext", reverted_ext),
            "an internal snapshot is deleted": ("vm2 int", "deleted"),
            "an external snapshot is deleted": ("vm2 ext", deleted_ext),
            "libvirt's record of a snapshot is deleted": ("vm2 mem", "record-only"),
            "a snapshot of a guest that is shut off": ("vm2 off", "taken-without-qemu"),
            "that snapshot is deleted": ("vm2 off", "deleted"),
        }
        assert_answers(tmp_path / "t.jsonl", cases, scenarios)
        if lab.release is None:
            assert_shown("explain.md", "snapshot.jsonl", tmp_path / "t.jsonl")
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
        since_cp1, pulled = "vm2 incremental backup since cp1", "vm2 full backup, to be pulled"
        scenarios = {
            "a backup since a checkpoint that does not exist": (
                "vm2 incremental backup since none",
                "no-checkpoint",
            ),
            "QEMU may not write to the backup's folder": ("vm2 full backup", "no-permission"),
            "the backup's folder does not exist": ("vm2 full backup", "missing-file"),
            "a full backup": ("vm2 full backup", "done"),
            "a full backup whose file exists already": ("vm2 full backup", "file-exists"),
            "a backup since a checkpoint": (since_cp1, "done"),
            "a backup to be pulled, which a client ends": (pulled, "pull-ended"),
            "an end of a backup where there is none": ("vm2 job", "nothing-to-end"),
            "a backup since a checkpoint whose bitmap was removed": (since_cp1, "no-bitmap"),
            "a checkpoint": ("vm2 checkpoint cp3", "checkpoint-made"),
            "a checkpoint with the name of another": ("vm2 checkpoint cp3", "name-taken"),
            "a checkpoint is deleted": ("vm2 checkpoint cp3", "checkpoint-deleted"),
            "a checkpoint is deleted whose bitmap was removed": ("vm2 checkpoint cp1", "no-bitmap"),
            "libvirt's record of a checkpoint is deleted": ("vm2 checkpoint cp1", "record-only"),
            # In 7.0.0, this guest is not allowed to have one.
            "a backup beside images that are in root's folder": (
                "vm1 full backup",
                "not-supported" if allow else "no-permission",
            ),
            "a guest is destroyed while its backup is to be pulled": (pulled, "guest-ended"),
            "a backup of a guest that is shut off": ("vm2 full backup", "not-running"),
        }
        assert_answers(tmp_path / "t.jsonl", cases, scenarios)
        if lab.release is None:
            assert_shown("explain.md", "backup.jsonl", tmp_path / "t.jsonl")
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
        scenarios = {
            "a guest without a channel for an agent": ("vm1 DomainGetFSInfo", "not-configured"),
            "a guest in which no agent runs": ("vm3 DomainGetFSInfo", "not-connected"),
            "an agent that answers": ("vm4 guest-ping", "answered"),
            "an agent that refuses a command": ("vm4 guest-fsfreeze-status", "refused"),
            "an agent that is silent": ("vm4 guest-info", "silent"),
            "an agent that ends before it answers": ("vm4 guest-get-time", "gone"),
        }
        assert_answers(tmp_path / "t.jsonl", cases, scenarios)
        if lab.release is None:
            assert_shown("explain.md", "agent.jsonl", tmp_path / "t.jsonl")
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
        scenario = {"an agent that had not answered": ("vm5 guest-get-fsinfo", "waiting")}
        assert_answers(output, cases_of(output), scenario)

    def test_what_becomes_of_migrations(
        self, any_stage: Stage, elsewhere: Lab, engine: str, tmp_path: Path
    ) -> None:
        """Recorded on both hosts. The QEMU that sends is stopped where something happens then."""
        here, there, folder = any_stage.lab, elsewhere, any_stage.folder
        guest = folder / "vm2.xml"
        guest.write_text(domain_xml("vm2", here.system.emulator, False, ""))
        socket, virsh = there.folder / "run" / "migration.sock", "virsh -c"
        start = f"{virsh} '{here.uri}' create {guest}"
        end = f"{virsh} '{there.uri}' destroy vm2"
        to = f"{virsh} '{here.uri}' migrate vm2 '{there.uri}' --live --migrateuri"
        at_source, at_target = tmp_path / "source.jsonl", tmp_path / "target.jsonl"
        qemu = "{}/run/libvirt/qemu/run/vm2.pid"
        sender, receiver = (qemu.format(lab.folder) for lab in (here, there))

        def held(number: int) -> str:
            """Begin one whose sender is stopped, before it sends: the trace's number-th."""
            performs = f"grep -c '^..type.:.enter.*Perform3' {at_source}"
            return (
                f"rm -f {socket}; {to} unix://{socket} --bandwidth 1 & client=$!; "
                f"until [ -s {receiver} ]; do :; done; sender=$(cat {sender}); kill -STOP $sender; "
                f"until [ $({performs}) = {number} ]; do :; done"
            )

        goes_on = "kill -CONT $sender; wait $client"
        gone = f"while {virsh} '{there.uri}' domstate vm2; do :; done"
        with recording_beside(here, engine, "migration", at_source):
            arriving, _, printed = recorded(
                *(there, engine, "migration", at_target),
                start,
                f"{to} unix://{socket}",
                f"{virsh} '{there.uri}' domjobinfo vm2 --completed",
                start,
                f"{to} unix://{socket}",
                end,
                f"{to} unix://{there.folder}/none/x.sock",
                f"{virsh} '{here.uri}' migrate vm2 '{here.uri}' --live",
                # Its memory is more than fits into the socket of a receiver that does not read.
                f"{held(2)}; receiver=$(cat {receiver}); kill -STOP $receiver; kill -CONT $sender; "
                f"{virsh} '{here.uri}' domjobabort vm2; kill -CONT $receiver; wait $client",
                f"{held(3)}; kill -KILL $(cat {receiver}); {goes_on}",
                f"{held(4)}; kill -KILL $client; {gone}; {goes_on}",
                f"until {virsh} '{here.uri}' domjobinfo vm2 | grep -q None; do :; done",
                f"{to} unix://{socket} --p2p",
                end,
            )
        leaving = cases_of(at_source)
        at_end = {
            "a guest that arrives": ("vm2", "arrived"),
            "a guest of a name that is taken": ("vm2", "name-taken"),
            "an address that QEMU cannot listen at": ("vm2", "no-listener"),
            "a migration that is cancelled, where it would arrive": ("vm2", "given-up-there"),
            "a QEMU that ends before the guest has arrived": ("vm2", "qemu-ended"),
            "a virsh migrate that is killed": ("vm2", "connection-lost"),
            "a guest that arrives, peer to peer": ("vm2", "arrived"),
        }
        assert_answers(at_target, arriving, at_end)
        at_begin = {
            "a guest that leaves": ("vm2", "moved"),
            "another host that refuses the guest's name": ("vm2", "refused-there"),
            "another host that cannot listen": ("vm2", "refused-there"),
            "a migration to the same host, that leaves": ("vm2", "refused-there"),
            "a migration to the same host": ("vm2", "same-host"),
            "a migration that is cancelled": ("vm2", "cancelled"),
            "a QEMU that ended on the other host": ("vm2", "unreachable"),
            "another host that gave up with its client": ("vm2", "unreachable"),
            "a guest that leaves, peer to peer": ("vm2", "moved"),
        }
        assert_answers(at_source, leaving, at_begin)
        for case in (*arriving[1:3], *leaving[4:6]):
            assert_quoted(case, printed)

    def test_who_gets_events(self, any_stage: Stage, engine: str, tmp_path: Path) -> None:
        lab, output = any_stage.lab, tmp_path / "t.jsonl"
        shown = tmp_path / "shown"
        pause = "virsh 'suspend vm1; resume vm1'"

        def listen(number: int, *words: str) -> str:
            """Register a client; it has begun when the trace has its registration."""
            begun = f"grep -c '^..type.:.exit.*RegisterAny' {output}"
            event = f"virsh event --loop {' '.join(words)}"
            return f"{event} >>{shown} & p{number}=$!; until [ $({begun}) = {number} ]; do :; done"

        # More than a socket holds, for a client that does not read, and is closed with the rest;
        # not by GDB, as it takes long.
        many = "; ".join(f"desc vm1 --title {number}" for number in range(300 * (engine != "gdb")))
        cases, _, _ = recorded(
            *(lab, engine, "events", output),
            pause,
            listen(1, "--event lifecycle --domain vm1"),
            listen(2, "--event reboot"),
            pause,
            f"until [ $(grep -c lifecycle {shown}) = 2 ]; do :; done; kill $p1; wait $p1",
            listen(3, "--event metadata-change"),
            f"kill -STOP $p3; virsh '{many or 'uri'}' >/dev/null",
            pause,
            # What comes after is taken up after the end of the two.
            "kill -KILL $p2 $p3; wait; virsh uri",
        )
        [lifecycle, reboot] = [case["facts"] for case in cases[2:4]]
        suspended, resumed = (
            f"lifecycle event ({words})" for words in ("suspended, paused", "resumed, unpaused")
        )
        described = [case for case in cases if "metadata" in case["subject"][1]]
        assert {case["causes"][0]["name"] for case in described} == (
            {"sent", "closed"} if many else set()
        )
        others = [case for case in cases if case not in described]
        paused, unpaused = f"vm1 {suspended}", f"vm1 {resumed}"
        answers = {
            "a pause, with nobody registered": (paused, "nobody"),
            "a resume, with nobody registered": (unpaused, "nobody"),
            "a pause, for a client that is registered": (paused, "sent"),
            "a resume, for a client that is registered": (unpaused, "sent"),
            "a pause, with clients that are registered for others": (paused, "not-asked"),
            "a resume, with clients that are registered for others": (unpaused, "not-asked"),
        }
        assert_answers(output, others, answers)
        # virsh shows what it was sent, and nothing else.
        assert re.findall(r"event '(\w+)' for domain 'vm1': (\w+) (\w+)", shown.read_text()) == [
            ("lifecycle", "Suspended", "Paused"),
            ("lifecycle", "Resumed", "Unpaused"),
        ]
        for facts in (lifecycle, reboot):
            assert [fact["meaning"] for fact in facts[1:2]] == [
                "registered for reboot of all guests"
            ]
            assert facts[-1]["value"] == 2


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


class _WithMigrationsApart(OnEachRelease):
    """Its migrations take long, and are in the run of all scenarios alone."""

    @pytest.mark.scenarios
    def test_what_becomes_of_migrations(
        self, any_stage: Stage, elsewhere: Lab, engine: str, tmp_path: Path
    ) -> None:
        super().test_what_becomes_of_migrations(any_stage, elsewhere, engine, tmp_path)


@mostly_by_uprobes
@pytest.mark.matrix
class TestBullseye(_WithMigrationsApart):
    release = "bullseye"


@mostly_by_uprobes
@pytest.mark.scenarios
class TestTrixie(OnEachRelease):
    release = "trixie"


@mostly_by_uprobes
@pytest.mark.matrix
class TestSid(_WithMigrationsApart):
    release = "sid"
