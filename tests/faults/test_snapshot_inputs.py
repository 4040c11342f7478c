"""A few of the inputs and values of snapshots that full runs try thousands of."""

from __future__ import annotations

import os

import pytest

from tests.faults import snapshot_inputs, snapshot_values

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")


def test_mutated_inputs_are_read_or_refused_in_bounds() -> None:
    assert snapshot_inputs.run(60) == []


def test_values_are_those_that_others_say() -> None:
    assert snapshot_values.run(1) == []
