"""Recipes with their explainers on every release of libvirt: what both engines see is the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.lab.test_explainers import Case, cases_of, first
from tests.lab.tracing import whole_trace
from tests.support.command import virtrace
from tests.support.intact import assert_untraced_and_intact
from tests.support.stages import staged
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, domain_xml, file_source
from virtrace.lab.stage import Stage
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
        folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
        lab = Lab(folder, release=cls.release)
        try:
            lab.up()
            yield lab
            assert_untraced_and_intact(lab.pid)
        finally:
            lab.down()

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


class TestHost(OnEachRelease):
    pass


@pytest.mark.matrix
class TestBullseye(OnEachRelease):
    release = "bullseye"


@pytest.mark.matrix
class TestTrixie(OnEachRelease):
    release = "trixie"


@pytest.mark.matrix
class TestSid(OnEachRelease):
    release = "sid"
