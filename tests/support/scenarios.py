"""Scenarios that tests made, and how they were explained: the source of docs/scenarios.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Names the file that `make scenarios` makes the page of.
KEPT_IN = "VIRTRACE_SCENARIOS"


def assert_answers(
    trace: Path,
    cases: Sequence[Mapping[str, Any]],
    expected: Mapping[str, tuple[str, str]],
    release: str | None = None,
) -> None:
    """Each case in turn is that of a scenario.

    expected: subject and first cause, by scenario
    release: of libvirt, if the traced program is another one
    """
    found = [(" ".join(case["subject"]), case["causes"][0]["name"]) for case in cases]
    assert found == [*expected.values()], [case["answer"] for case in cases]
    if KEPT_IN not in os.environ:
        return
    with trace.open(encoding="utf-8") as lines:
        header = json.loads(next(lines))
    about = {
        "recipe": header["recipe"]["name"],
        "release": release or header["target"]["program"]["version"],
        "engine": header["tool"]["engine"]["name"],
    }
    # Several processes add to it; one write of a line is whole.
    with open(os.environ[KEPT_IN], "a", encoding="utf-8") as kept:
        for scenario, (_, cause) in expected.items():
            kept.write(json.dumps({**about, "scenario": scenario, "cause": cause}) + "\n")
            kept.flush()
