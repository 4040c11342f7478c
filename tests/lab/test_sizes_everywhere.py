"""Why sizes of disks are what they are, on all releases: the scenarios of the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.test_scenarios import CAUSES, DECIDED
from tests.lab.tracing import as_measured, record, whole_trace
from tests.support.command import virtrace
from tests.support.releases import on_each_release
from tests.support.scenarios import assert_answers
from virtrace.lab.daemon import Lab
from virtrace.lab.scenarios import SCENARIOS

# test_scenarios.py has them on one release with the other tests, and looks closer.
pytestmark = pytest.mark.scenarios


@on_each_release
def test_why_sizes_are_what_they_are(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    version = any_lab.libvirt_version
    for name, scenario in SCENARIOS.items():
        # Of `disks`, each has a scenario of its own; `stopped` would end the guest of the others.
        if len(scenario.disks) > 1 or (scenario.until and version >= scenario.until):
            continue
        output = tmp_path / f"{name}.jsonl"
        stage = scenario.set_up(any_lab)
        try:
            command = any_lab.virsh_command(*scenario.commands[0])
            done = record(any_lab, output, "--host-facts", command=command, engine=engine)
        finally:
            stage.clear()
        assert done.returncode == 0, done.stderr
        whole_trace(output)
        cases = json.loads(virtrace("explain", "--json", output).stdout)["cases"]
        [causes] = CAUSES[name]
        cause = DECIDED.get(name) or as_measured(causes, version)[0]
        assert_answers(output, cases, {scenario.about: (" ".join(scenario.disks[0]), cause)})
