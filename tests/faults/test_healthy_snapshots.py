"""Snapshots of a busy daemon, some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.healthy_snapshots import left_unharmed, snapshots, storm
from tests.lab.conftest import bring_up

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
TIMES = 20


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
