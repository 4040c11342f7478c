"""Scenarios that tests make, and how they are explained: the source of docs/scenarios.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tools.scenarios import KEPT, Answers, kept_in

# Names the file that `make scenarios` adds to what is kept.
MADE_IN = "VIRTRACE_SCENARIOS"


@cache
def kept() -> Answers:
    """The answers that docs/scenarios.md shows."""
    return kept_in(KEPT)


def assert_answers(
    trace: Path,
    cases: Sequence[Mapping[str, Any]],
    expected: Mapping[str, tuple[str, str]],
    release: str | None = None,
) -> None:
    """Each case in turn is that of a scenario, and docs/scenarios.md has the same answer.

    expected: subject and first cause, by scenario
    release: of libvirt, if the traced program is another one
    """
    found = [(" ".join(case["subject"]), case["causes"][0]["name"]) for case in cases]
    assert found == [*expected.values()], [case["answer"] for case in cases]
    with trace.open(encoding="utf-8") as lines:
        header = json.loads(next(lines))
    about = {
        "recipe": header["recipe"]["name"],
        "release": release or header["target"]["program"]["version"],
        "engine": header["tool"]["engine"]["name"],
    }
    for case, (scenario, (_, cause)) in zip(cases, expected.items()):
        made = {**about, "scenario": scenario, "explainer": case["explainer"], "cause": cause}
        if MADE_IN in os.environ:
            # Several processes add to it; one write of a line is whole.
            with open(os.environ[MADE_IN], "a", encoding="utf-8") as file:
                file.write(json.dumps(made) + "\n")
        else:
            _assert_kept(made)


def _assert_kept(made: Mapping[str, str]) -> None:
    answers = kept().get((made["recipe"], made["scenario"], made["explainer"]))
    assert answers is not None, f"run make scenarios: there is no row for {made}"
    # A newer release than those of the page may answer otherwise.
    if made["release"] in {release for each in kept().values() for release in each}:
        causes = {*answers.get(made["release"], {}).values()}
        assert causes == {made["cause"]}, f"run make scenarios: it has {causes} for {made}"
