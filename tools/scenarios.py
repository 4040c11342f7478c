"""Keep what the tests were answered for their scenarios, and write docs/scenarios.md of that.

    make scenarios                    # all; what no test made is forgotten
    make scenarios ONLY='-k agents'   # these alone, beside what is kept

Refuses a scenario that both engines explain, but not alike, or whose cause is `unknown`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from virtrace.analysis.explain.registry import all_explainers

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "scenarios.md"
KEPT = REPOSITORY / "tests" / "data" / "scenarios.ndjson"
HEAD = """# Scenarios, and how they are explained

Each of these was made on real daemons, stripped, and recorded with the engine `uprobes` and again
with `gdb`; `virtrace explain` named the same cause both times. Where a cause is marked `*`,
`uprobes` alone recorded it: `gdb` traces neither QEMU beside a daemon nor a start from its
beginning. [explain.md](explain.md) describes the causes.

An empty cell: it was not made on that release. Whether libvirt reads QEMU's last event after the
command `quit` is a race, so that it has two rows.

`make scenarios` makes all of them, and this page; tests fail if one is answered otherwise.
"""
ENGINES = 2
# By recipe, scenario and explainer, then by release: the causes by engine.
Answers = dict[tuple[str, str, str], dict[str, dict[str, str]]]
TAIL = """## Causes that no scenario shows

Tests show these by events made by hand, and some on a real daemon, but not on each release. Some
need what the lab does not have: a guest that drives its balloon or keeps a device, a
processor that lacks a feature, cgroups of a system daemon, Open vSwitch, several sockets, pools
without a folder. Of the others, no scenario was made yet.

| explainer | causes |
|---|---|
"""


def kept_in(file: Path) -> Answers:
    """What is kept: a scenario a line."""
    return {
        (one["recipe"], one["scenario"], one["explainer"]): one["answers"]
        for one in _lines(file.read_text("utf-8"))
    }


def add(answers: Answers, made: Iterable[Mapping[str, str]]) -> None:
    """Add what tests made; the last answer counts."""
    for one in made:
        key = one["recipe"], one["scenario"], one["explainer"]
        releases = answers.setdefault(key, {})
        releases.setdefault(one["release"], {})[one["engine"]] = one["cause"]


def _lines(text: str) -> Iterator[Any]:
    return map(json.loads, text.splitlines())


def problems(answers: Answers) -> list[str]:
    """What keeps it from being an answer."""
    return [
        f"{recipe}: {scenario}: {release}: {causes}"
        for (recipe, scenario, _), releases in answers.items()
        for release, causes in releases.items()
        if len({*causes.values()}) != 1 or "unknown" in causes.values()
    ]


def by_number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def text_of(answers: Answers) -> str:
    """The file of what is kept. Recipes are in order, scenarios as they were made first."""
    lines = []
    for (recipe, scenario, explainer), releases in sorted(
        answers.items(), key=lambda each: each[0][0]
    ):
        in_order = {
            release: dict(sorted(releases[release].items()))
            for release in sorted(releases, key=by_number)
        }
        one = {"recipe": recipe, "scenario": scenario, "explainer": explainer, "answers": in_order}
        lines.append(json.dumps(one) + "\n")
    return "".join(lines)


def cell(causes: Mapping[str, str]) -> str:
    """The cause that was named on one release; empty if the scenario was not made there."""
    marked = "" if len(causes) == ENGINES else " *"
    return next((f"{cause}{marked}" for cause in causes.values()), "")


def table_of(scenarios: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[str]:
    releases = sorted({each for made in scenarios.values() for each in made}, key=by_number)
    rows = [f"| scenario | {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for scenario, made in scenarios.items():
        cells = [cell(made.get(release, {})) for release in releases]
        rows.append(f"| {scenario} | {' | '.join(cells)} |")
    return rows


def page_of(answers: Answers) -> str:
    """The page of what is kept."""
    parts = [HEAD]
    for recipe in sorted({recipe for recipe, _, _ in answers}):
        scenarios = {scenario: made for (of, scenario, _), made in answers.items() if of == recipe}
        parts.append("\n".join([f"## `{recipe}`", "", *table_of(scenarios), ""]))
    return "\n".join([*parts, TAIL + "".join(not_shown(answers))])


def not_shown(answers: Answers) -> Iterator[str]:
    """A row for each explainer, with its causes that no scenario shows."""
    for each in all_explainers():
        shown = {
            cause
            for (_, _, explainer), releases in answers.items()
            if explainer == each.name
            for causes in releases.values()
            for cause in causes.values()
        }
        names = [cause.name for cause in each.causes.causes if cause.name not in shown]
        # It says that none of the others holds.
        names.remove("unknown")
        if names:
            yield f"| `{each.name}` | {', '.join(names)} |\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("made", type=Path, help="what the tests made")
    parser.add_argument("--beside", action="store_true", help="keep what they did not make, too")
    options = parser.parse_args()
    answers = kept_in(KEPT) if options.beside else {}
    add(answers, _lines(options.made.read_text("utf-8")))
    wrong = problems(answers)
    if wrong:
        print("\n".join(wrong))
        return 1
    KEPT.write_text(text_of(answers), encoding="utf-8")
    PAGE.write_text(page_of(answers), encoding="utf-8")
    print(
        f"{PAGE.name}: {len(answers)} scenarios of {len({each for each, _, _ in answers})} recipes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
