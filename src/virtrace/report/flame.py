"""Flame graphs: how long all calls together were in each stack of functions and waits.

https://github.com/brendangregg/FlameGraph and https://www.speedscope.app describe the formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from virtrace.analysis.spans import Call
from virtrace.analysis.spent import Stack, parts
from virtrace.report.highlight import Style, safe

# Names come from the trace, so the number of stacks is limited.
_MOST_STACKS = 50_000
_OTHERS = ("others",)
_STYLE = Style(unicode=True)


def stacks(calls: Iterable[Call]) -> dict[Stack, int]:
    """Return the time that was spent in each stack, ns; see analysis.spent.parts()."""
    found: dict[Stack, int] = {}
    for call in calls:
        for part in parts(call) or ():
            known = part.stack in found or len(found) < _MOST_STACKS
            stack = part.stack if known else _OTHERS
            found[stack] = found.get(stack, 0) + part.ns
    return found


def folded_lines(calls: Iterable[Call]) -> Iterator[str]:
    """Yield a line for each stack: the names, outermost first, between semicolons, and the ns."""
    for stack, ns in stacks(calls).items():
        names = (safe(name, _STYLE).replace(";", ",") for name in stack)
        yield f"{';'.join(names)} {ns}"


def speedscope(calls: Iterable[Call], exporter: str) -> str | None:
    """Return the document, with one profile; None if there is no time to show."""
    found = stacks(calls)
    if not found:
        return None
    frames: dict[str, int] = {}
    samples = [[frames.setdefault(name, len(frames)) for name in stack] for stack in found]
    profile = {
        "type": "sampled",
        "name": "all calls",
        "unit": "nanoseconds",
        "startValue": 0,
        "endValue": sum(found.values()),
        "samples": samples,
        "weights": list(found.values()),
    }
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "exporter": exporter,
            "shared": {"frames": [{"name": name} for name in frames]},
            "profiles": [profile],
        }
    )
