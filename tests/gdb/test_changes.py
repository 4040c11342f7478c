"""A program that becomes another, or parts with a module, while it is traced."""

from __future__ import annotations

from pathlib import Path

from tests.gdb.harness import Daemon, check_ended, disks, start
from tests.support.intact import assert_untraced_and_intact
from virtrace.errors import INCOMPLETE


def test_it_becomes_another_program(mortal: Daemon, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda")
    mortal.do("exec")
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert disks(check_ended(output, "target-exit")) == ["vda"]
    assert_untraced_and_intact(mortal.pid)
    assert len(mortal.do("call vm1 vdb")) == 1


def test_a_module_is_unloaded_and_loaded_again(mortal: Daemon, tmp_path: Path) -> None:
    """Its probes are gone with it, so that what comes later would be missing."""
    output = tmp_path / "t.jsonl"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda")
    assert mortal.do("reload") == ["0"]
    status, printed = tracing.ended()
    assert status == INCOMPLETE, printed
    assert "virtrace: the daemon unloaded libvirt_driver_qemu.so, which was traced" in printed
    assert disks(check_ended(output, "error")) == ["vda"]
    assert len(mortal.do("call vm1 vdb")) == 1
    assert_untraced_and_intact(mortal.pid)
