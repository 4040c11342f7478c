"""Why sizes of disks are what they are, on all releases: the scenarios of the lab."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.test_scenarios import CAUSES, DECIDED
from tests.lab.tracing import as_measured, whole_trace
from tests.support.command import virtrace
from tests.support.releases import RELEASES, lab_of, on_each_release
from tests.support.scenarios import assert_answers
from virtrace.lab.daemon import Lab
from virtrace.lab.scenarios import SCENARIOS, Scenario

# test_scenarios.py has them on one release with the other tests, and looks closer.
pytestmark = pytest.mark.scenarios


def scenarios_on(lab: Lab) -> Iterator[Scenario]:
    """Those of one disk; `stopped` would end the guest of the others."""
    for scenario in SCENARIOS.values():
        is_over = scenario.until and lab.libvirt_version >= scenario.until
        if len(scenario.disks) == 1 and not is_over:
            yield scenario


def assert_explained(lab: Lab, scenario: Scenario, output: Path, *options: str) -> None:
    """options: of `record`."""
    stage = scenario.set_up(lab)
    try:
        line = ("record", *options, "--host-facts", "-p", lab.pid, "-o", output)
        done = virtrace(*line, "--", *lab.virsh_command(*scenario.commands[0]))
    finally:
        stage.clear()
    assert done.returncode == 0, done.stderr
    whole_trace(output)
    cases = json.loads(virtrace("explain", "--json", output).stdout)["cases"]
    [causes] = CAUSES[scenario.name]
    cause = DECIDED.get(scenario.name) or as_measured(causes, lab.libvirt_version)[0]
    assert_answers(output, cases, {scenario.about: (" ".join(scenario.disks[0]), cause)})


@on_each_release
def test_why_sizes_are_what_they_are(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    for each in scenarios_on(any_lab):
        output = tmp_path / f"{each.name}.jsonl"
        assert_explained(any_lab, each, output, "blockinfo", "--engine", engine)


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with lab_of(request) as lab:
        yield lab


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")
def test_why_sizes_are_what_they_are_with_qemus_part(lab: Lab, tmp_path: Path) -> None:
    """What QEMU read is below its answer, and changes no cause."""
    for each in scenarios_on(lab):
        if each.name.startswith("stopped"):
            # No QEMU runs that could be traced.
            continue
        guest = ("--domain", each.disks[0][0])
        assert_explained(lab, each, tmp_path / f"{each.name}.jsonl", "qemu-query", *guest)
