"""Compare two traces as a whole: probes, binaries, settings, durations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Literal

from virtrace.analysis.compare.model import Hidden, Timing
from virtrace.analysis.compare.values import Values
from virtrace.analysis.summary import Summary
from virtrace.trace.format import Header, Json
from virtrace.trace.reader import ReadableTrace

# A duration differs if it is longer by more than this ratio, and by at least this time.
_RATIO = 2
_AT_LEAST_NS = 1_000_000


def seen_by_both(a: ReadableTrace, b: ReadableTrace) -> frozenset[str]:
    """Names of the probes that were traced in both."""
    names = [
        {probe["name"] for probe in trace.header["probes"] if probe["level"] != "missing"}
        for trace in (a, b)
    ]
    return frozenset(names[0] & names[1])


def values_of(a: ReadableTrace, b: ReadableTrace) -> Values:
    targets = [(trace.header["target"]["pid"], trace.header["target"]["exe"]) for trace in (a, b)]
    same_daemon = targets[0] == targets[1] and _is_same(_loaded(a, b, "base"))
    return Values(
        same_daemon=same_daemon,
        same_build=same_daemon or _is_same(_loaded(a, b, "build_id")),
        a_is_later=_is_later(a.header, b.header),
    )


def _is_later(a: Header, b: Header) -> bool:
    """Whether the first trace began after the second; False if unknown."""
    if a["clock"]["source"] == b["clock"]["source"]:
        return bool(a["clock"]["start_ns"] > b["clock"]["start_ns"])
    # The clocks of two engines diverge while the host sleeps.
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(a["started"]) > datetime.fromisoformat(b["started"])
    return False


def hidden(
    a: ReadableTrace,
    b: ReadableTrace,
    seen: frozenset[str],
    names: tuple[Iterable[str], Iterable[str]],
) -> Iterator[Hidden]:
    """Yield what happened in one trace and could not be traced in the other.

    seen: from seen_by_both().
    names: of all events, for each trace.
    """
    for side, happened, trace in (("b", names[0], b), ("a", names[1], a)):
        probes = {probe["name"]: probe for probe in trace.header["probes"]}
        for name in happened:
            if name not in seen:
                probe = probes.get(name)
                why = "its recipe does not trace it" if probe is None else probe["why"]
                yield Hidden(side, name, why or "no reason is given")


def _loaded(
    a: ReadableTrace, b: ReadableTrace, key: Literal["base", "build_id"]
) -> list[tuple[Json, Json]]:
    """A property of each file that both have loaded. key: ``base`` or ``build_id``."""
    of_a, of_b = (
        {module["path"]: module[key] for module in trace.header["target"]["modules"]}
        for trace in (a, b)
    )
    return [(of_a[path], of_b[path]) for path in of_a if path in of_b]


def _is_same(loaded: list[tuple[Json, Json]]) -> bool:
    """True if at least one file is common and all common ones agree."""
    return bool(loaded) and all(of_a is not None and of_a == of_b for of_a, of_b in loaded)


def settings(a: ReadableTrace, b: ReadableTrace) -> Iterator[str]:
    """Yield notes on how the settings of the recordings differ."""
    tools = [trace.header["tool"]["virtrace"] for trace in (a, b)]
    if tools[0] != tools[1]:
        yield f"A was recorded by virtrace {tools[0]}, B by {tools[1]}"
    recipes = [trace.header["recipe"] for trace in (a, b)]
    if any(recipes[0].get(part) != recipes[1].get(part) for part in ("spans", "points")):
        names = " and ".join(dict.fromkeys(str(recipe.get("name")) for recipe in recipes))
        yield f"the recipes ({names}) differ: only what both trace is compared"
    versions = [trace.header["target"]["program"]["version"] for trace in (a, b)]
    builds = _loaded(a, b, "build_id")
    if versions[0] == versions[1] and any(
        None not in pair and len(set(pair)) > 1 for pair in builds
    ):
        yield f"both are libvirt {versions[0]}, but not the same build of it"
    debug_info = [
        any(probe["level"] in ("dwarf", "pack") for probe in trace.header["probes"])
        for trace in (a, b)
    ]
    if debug_info[0] != debug_info[1]:
        more, less = "AB" if debug_info[0] else "BA"
        yield f"{more} was traced with debug info, {less} without"


def timings(a: Summary, b: Summary, seen: frozenset[str]) -> Iterator[Timing]:
    """Functions and commands whose median duration differs widely."""
    functions = [name for name in a.functions if name in seen]
    for rows, others, names in (
        (a.functions, b.functions, functions),
        (a.commands, b.commands, list(a.commands)),
    ):
        for name in names:
            a_ns = rows[name].percentile_ns(50)
            b_ns = others[name].percentile_ns(50) if name in others else None
            if a_ns is not None and b_ns is not None:
                low, high = sorted((a_ns, b_ns))
                if high > _RATIO * low and high - low >= _AT_LEAST_NS:
                    yield Timing(name, a_ns, b_ns)
