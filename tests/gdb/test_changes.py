"""A program that becomes another, or parts with a module, while it is traced."""

from __future__ import annotations

import signal
from pathlib import Path

from harness import Daemon, start
from test_ends import check_ended, disks

from support.intact import assert_untraced_and_intact
from virtrace.errors import INCOMPLETE, INTERRUPTED


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
    """Its probes are gone with it, and nothing of them comes back."""
    output = tmp_path / "t.jsonl"
    tracing = start(mortal, output)
    mortal.do("call vm1 vda")
    assert mortal.do("reload") == ["0"]
    assert len(mortal.do("call vm1 vdb")) == 1
    tracing.signal(signal.SIGINT)
    status, printed = tracing.ended()
    assert status == INTERRUPTED, printed
    assert disks(check_ended(output, "interrupt")) == ["vda", "vdb"]
    assert_untraced_and_intact(mortal.pid)
    assert len(mortal.do("call vm1 vda")) == 1
