"""Write docs/scenarios.md from what the tests kept of their scenarios.

    make scenarios

Refuses a scenario that both engines explain, but not alike, or whose cause is `unknown`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "scenarios.md"
HEAD = """# Scenarios, and how they are explained

Each of these was made on real daemons, stripped, and recorded with the engine `uprobes` and again
with `gdb`; `virtrace explain` named the same cause both times. Where a cause is marked `*`, one
engine alone recorded it: `high-water` and `io-error`, which trace QEMU, have no other than
`uprobes`. An empty cell: it was not made on that release. [explain.md](explain.md) describes the
causes.
`make scenarios` makes all of them, and this page.
"""
ENGINES = 2
# By recipe, scenario and release: the causes by engine.
Found = dict[str, dict[str, dict[str, dict[str, str]]]]


def found_in(file: Path) -> Found:
    """What the tests kept."""
    found: Found = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for line in file.read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        found[one["recipe"]][one["scenario"]][one["release"]][one["engine"]] = one["cause"]
    return found


def problems(found: Found) -> list[str]:
    """What keeps it from being an answer."""
    return [
        f"{recipe}: {scenario}: {release}: {causes}"
        for recipe, scenarios in found.items()
        for scenario, releases in scenarios.items()
        for release, causes in releases.items()
        if len({*causes.values()}) != 1 or "unknown" in causes.values()
    ]


def by_number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def cell(causes: dict[str, str]) -> str:
    """The cause that was named on one release; empty if the scenario was not made there."""
    marked = "" if len(causes) == ENGINES else " *"
    return next((f"{cause}{marked}" for cause in causes.values()), "")


def table_of(scenarios: dict[str, dict[str, dict[str, str]]]) -> list[str]:
    releases = sorted({each for made in scenarios.values() for each in made}, key=by_number)
    rows = [f"| scenario | {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for scenario, made in scenarios.items():
        cells = [cell(made.get(release, {})) for release in releases]
        rows.append(f"| {scenario} | {' | '.join(cells)} |")
    return rows


def page_of(found: Found) -> str:
    parts = [HEAD]
    for recipe, scenarios in sorted(found.items()):
        parts.append("\n".join([f"## `{recipe}`", "", *table_of(scenarios), ""]))
    return "\n".join(parts)


def main(file: Path) -> int:
    found = found_in(file)
    wrong = problems(found)
    if wrong:
        print("\n".join(wrong))
        return 1
    PAGE.write_text(page_of(found), encoding="utf-8")
    print(f"{PAGE.name}: {sum(map(len, found.values()))} scenarios of {len(found)} recipes")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
