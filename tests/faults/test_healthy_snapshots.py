"""Snapshots of a busy daemon, some."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.healthy_snapshots import left_unharmed, snapshots, storm
from tests.lab.conftest import bring_up
from tests.support.command import ENVIRONMENT, VIRTRACE
from tests.support.intact import assert_untraced_and_intact

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
TIMES, KILLS = 20, 40


@pytest.mark.parametrize("registers", [False, True], ids=["no stop", "registers"])
def test_a_busy_daemon_never_hangs(tmp_path: Path, *, registers: bool) -> None:
    lab = bring_up()
    try:
        with left_unharmed(lab), storm(lab, tmp_path):
            seen = snapshots(lab, TIMES, registers=registers)
    finally:
        lab.down()
    assert seen.wrong == []
    assert seen.first["busy"] > TIMES / 2
    assert seen.calls > 0
    assert (seen.stops != []) == registers


def test_snapshots_that_are_killed_leave_the_daemon_as_it_was(tmp_path: Path) -> None:
    """At moments all over the look, among them some at which a thread is stopped."""
    lab = bring_up()
    try:
        command = [*VIRTRACE, "snapshot", "--registers", "-p", str(lab.pid)]
        with left_unharmed(lab), storm(lab, tmp_path):
            for number in range(KILLS):
                process = subprocess.Popen(
                    command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
                )
                with suppress(subprocess.TimeoutExpired):
                    process.wait(number / KILLS)
                process.kill()
                process.wait()
                assert_untraced_and_intact(lab.pid)
    finally:
        lab.down()
