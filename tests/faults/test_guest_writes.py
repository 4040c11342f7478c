"""Traces of a guest that writes all the time."""

from __future__ import annotations

import os

import pytest

from tests.faults.guest_writes import run

pytestmark = [
    pytest.mark.guests,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes"),
]


def test_a_guest_that_writes_is_not_harmed() -> None:
    run(None, 200, 50, 2048, print)
