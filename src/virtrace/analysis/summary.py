"""Statistics of many calls: counts, durations, errors, and how the disks' numbers changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from virtrace.analysis.blockinfo import NUMBERS
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Json, Record
from virtrace.trace.roles import DISK_SIZES

# Starts of the histogram buckets in each power of ten.
_FINE = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
_COARSE = (10, 20, 50)
_MOST_BUCKETS = 24


@dataclass
class Statistics:
    """All calls of one function, or all uses of one QMP command.

    errors: number of failures: a result such as -1, or an error from QEMU.
    unfinished: number of those whose return or reply was not seen.
    durations_ns: of the others, in the order in which they began.
    max_ns, slowest: the longest duration, and the traced call that contains it; None if none ended,
    or if it is outside of calls.
    """

    name: str
    count: int = 0
    errors: int = 0
    unfinished: int = 0
    durations_ns: list[int] = field(default_factory=list)
    max_ns: int | None = None
    slowest: Call | None = None

    def add(self, call: Call | None, duration_ns: int | None, *, failed: bool) -> None:
        self.count += 1
        self.errors += failed
        if duration_ns is None:
            self.unfinished += 1
            return
        if self.max_ns is None or duration_ns > self.max_ns:
            self.max_ns, self.slowest = duration_ns, call
        self.durations_ns.append(duration_ns)

    def percentile_ns(self, percent: int) -> int | None:
        """Return the smallest duration that ``percent`` of all do not exceed (nearest rank)."""
        if not self.durations_ns:
            return None
        rank = -(-len(self.durations_ns) * percent // 100)
        return sorted(self.durations_ns)[max(rank, 1) - 1]

    def times(self) -> dict[str, int | None]:
        """Durations to show, by their names, in ns."""
        percentiles = {f"p{percent}": self.percentile_ns(percent) for percent in (90, 99)}
        return {"median": self.percentile_ns(50), **percentiles, "max": self.max_ns}


@dataclass(frozen=True)
class Bucket:
    """The number of durations of at least from_ns and less than to_ns."""

    from_ns: int
    to_ns: int
    count: int


class Move(NamedTuple):
    """A new value of a number, and the return of the call that first reported it."""

    call: Call
    t_ns: int
    value: int


@dataclass
class Movement:
    """One number of a disk over the trace.

    moves: the first value, and each value that differs from the previous one.
    told: number of calls that returned it.
    unavailable: number of calls that succeeded without it.
    """

    moves: list[Move] = field(default_factory=list)
    told: int = 0
    unavailable: int = 0

    def add(self, call: Call, value: Json) -> None:
        if type(value) is not int or call.root.t_exit_ns is None:
            self.unavailable += 1
            return
        self.told += 1
        if not self.moves or self.moves[-1].value != value:
            self.moves.append(Move(call.alone(), call.root.t_exit_ns, value))

    @property
    def values(self) -> list[int]:
        return [move.value for move in self.moves]


@dataclass
class DiskAnswers:
    """The answers about one disk, by the names that the callers used.

    last: the last call about it. Failed calls report no numbers, whatever their struct contains.
    """

    domain: Json
    disk: Json
    last: Call
    calls: int = 0
    failed: int = 0
    numbers: dict[str, Movement] = field(
        default_factory=lambda: {name: Movement() for name in NUMBERS}
    )


@dataclass
class Summary:
    """calls: the outermost ones. functions, commands, disks: in order of first occurrence."""

    calls: Statistics = field(default_factory=lambda: Statistics("call"))
    incomplete: int = 0
    functions: dict[str, Statistics] = field(default_factory=dict)
    commands: dict[str, Statistics] = field(default_factory=dict)
    disks: dict[str, DiskAnswers] = field(default_factory=dict)

    def add(self, node: Call | Point | Exchange) -> None:
        if isinstance(node, Exchange):
            _add_command(self, None, node)
        if not isinstance(node, Call):
            return
        call = node
        self.calls.add(call, call.root.duration_ns, failed=call.failed)
        self.incomplete += not call.complete
        for each in call.nodes():
            if isinstance(each, Span):
                is_root = each is call.root
                name = call.procedure if is_root and call.procedure else each.name
                row = self.functions.setdefault(name, Statistics(name))
                row.add(call, each.duration_ns, failed=call.failed if is_root else each.failed)
            elif isinstance(each, Exchange):
                _add_command(self, call, each)
        _add_disk(self.disks, call)


def summarize(nodes: Iterable[Call | Point | Exchange]) -> Summary:
    """Summarize calls and what is outside of them. nodes: in the order in which they ended."""
    summary = Summary()
    for node in nodes:
        summary.add(node)
    return summary


def _add_command(summary: Summary, call: Call | None, node: Exchange) -> None:
    name = node.command or "command of unknown name"
    row = summary.commands.setdefault(name, Statistics(name))
    row.add(call, node.duration_ns, failed=node.failed)


def histograms(rows: Iterable[Statistics]) -> list[list[Bucket]]:
    """Return a histogram for each row, with the same buckets: from the first used to the last."""
    durations = [row.durations_ns for row in rows]
    fine = _histograms(durations, _FINE)
    return fine if fine and len(fine[0]) <= _MOST_BUCKETS else _histograms(durations, _COARSE)


def _histograms(durations: list[list[int]], steps: Sequence[int]) -> list[list[Bucket]]:
    counts = [Counter(_bucket(ns, steps) for ns in row) for row in durations]
    held = {bucket for row in counts for bucket in row}
    axis = []
    start, last = min(held, default=0), max(held, default=-1)
    while start <= last:
        end = _next(start, steps)
        axis.append((start, end))
        start = end
    return [[Bucket(start, end, row[start]) for start, end in axis] for row in counts]


def _add_disk(disks: dict[str, DiskAnswers], call: Call) -> None:
    arguments, returned = call.root.arguments, call.root.returned or {}
    if call.root.role != DISK_SIZES or "info" not in returned:
        return
    domain, name = arguments.get("domain"), arguments.get("disk")
    disk = disks.setdefault(json.dumps([domain, name]), DiskAnswers(domain, name, call))
    disk.last = call
    disk.calls += 1
    disk.failed += call.failed
    if not call.failed:
        info: Record = returned["info"] if isinstance(returned["info"], dict) else {}
        for number, movement in disk.numbers.items():
            movement.add(call, info.get(number))


def _bucket(ns: int, steps: Sequence[int]) -> int:
    """Return the start of the bucket of a duration, ns."""
    if ns < 10:
        return max(ns, 0)
    power = _power(ns)
    return max(step * power for step in steps if step * power <= ns)


def _next(start: int, steps: Sequence[int]) -> int:
    """Return the end of the bucket that starts at ``start``, ns."""
    if start < 10:
        return start + 1
    power = _power(start)
    return min(step * power for step in (*steps, 100) if step * power > start)


def _power(ns: int) -> int:
    """Return the factor that gives a step as many digits as the duration has."""
    return int("1" + "0" * (len(str(ns)) - 2))
