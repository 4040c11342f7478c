"""Storms of calls, small ones."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.storms import STORMS, run
from tests.lab.conftest import bring_up
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")
CALLS = 400


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = bring_up()
    yield lab
    lab.down()


@pytest.mark.parametrize("name", ["loop", "errors", "small-spool"])
def test_no_call_is_missing(lab: Lab, name: str) -> None:
    found = run(name, lab, CALLS)
    assert (found.whole, found.dropped, found.switched_off) == (CALLS, 0, {})


@pytest.mark.parametrize("name", [name for name, storm in STORMS.items() if storm.loses])
def test_losses_are_reported_and_no_value_is_wrong(lab: Lab, name: str) -> None:
    found = run(name, lab, CALLS)
    assert found.dropped > 0
    assert found.whole < CALLS


def test_what_is_switched_off_is_reported(lab: Lab) -> None:
    found = run("max-load", lab, CALLS)
    [why] = found.switched_off
    assert why == "the probes held threads for more than 0.1 % of a second"
