"""Many calls at once: how often, how long, how many in error, and how the disks' numbers moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from virtrace.analysis.blockinfo import NUMBERS
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Json, Record
from virtrace.trace.roles import DISK_SIZES

# Where the buckets of histograms begin, in each power of ten.
_FINE = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
_COARSE = (10, 20, 50)
_MOST_BUCKETS = 24


@dataclass
class Statistics:
    """All calls of one function, or all uses of one QMP command.

    errors: it returned -1 or the like, or QEMU answered with an error. unfinished: no
    return, or no reply, was seen. durations_ns: of the others, in the order they began.
    max_ns, slowest: the longest, and the traced call that it was in; None where none ended,
    or where it was in no call.
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
        """The shortest duration that so many percent of all did not exceed (nearest rank)."""
        if not self.durations_ns:
            return None
        rank = -(-len(self.durations_ns) * percent // 100)
        return sorted(self.durations_ns)[max(rank, 1) - 1]

    def times(self) -> dict[str, int | None]:
        """The times that are told of it, by their names, in ns."""
        percentiles = {f"p{percent}": self.percentile_ns(percent) for percent in (90, 99)}
        return {"median": self.percentile_ns(50), **percentiles, "max": self.max_ns}


@dataclass(frozen=True)
class Bucket:
    """So many durations of from_ns or longer, and shorter than to_ns."""

    from_ns: int
    to_ns: int
    count: int


@dataclass(frozen=True)
class Move:
    """A number's new value, and the return of the call that first told it."""

    call: Call
    t_ns: int
    value: int


@dataclass
class Movement:
    """One number of a disk over the trace.

    moves: its first value, and every one that differs from the value before. told: how many
    calls told it. unavailable: how many succeeded and did not.
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
class Disk:
    """What was answered of one disk, by the names that the callers used.

    last: the last call for it. Those that failed tell no numbers, whatever their struct holds.
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
    """calls: the outermost ones. functions, commands, disks: in the order they were first met."""

    calls: Statistics = field(default_factory=lambda: Statistics("call"))
    incomplete: int = 0
    functions: dict[str, Statistics] = field(default_factory=dict)
    commands: dict[str, Statistics] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)

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
    """nodes: calls, and what is outside of them, in the order they ended."""
    summary = Summary()
    for node in nodes:
        summary.add(node)
    return summary


def _add_command(summary: Summary, call: Call | None, node: Exchange) -> None:
    name = node.command or "command of unknown name"
    row = summary.commands.setdefault(name, Statistics(name))
    row.add(call, node.duration_ns, failed=node.failed)


def histograms(rows: Iterable[Statistics]) -> list[list[Bucket]]:
    """One a row, all of the same buckets: from the first that holds any to the last."""
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


def _add_disk(disks: dict[str, Disk], call: Call) -> None:
    arguments, returned = call.root.arguments, call.root.returned or {}
    if call.root.role != DISK_SIZES or "info" not in returned:
        return
    domain, name = arguments.get("domain"), arguments.get("disk")
    disk = disks.setdefault(json.dumps([domain, name]), Disk(domain, name, call))
    disk.last = call
    disk.calls += 1
    disk.failed += call.failed
    if not call.failed:
        info: Record = returned["info"] if isinstance(returned["info"], dict) else {}
        for number, movement in disk.numbers.items():
            movement.add(call, info.get(number))


def _bucket(ns: int, steps: Sequence[int]) -> int:
    """Where the bucket of a duration begins."""
    if ns < 10:
        return max(ns, 0)
    power = _power(ns)
    return max(step * power for step in steps if step * power <= ns)


def _next(start: int, steps: Sequence[int]) -> int:
    """Where the bucket ends that begins there."""
    if start < 10:
        return start + 1
    power = _power(start)
    return min(step * power for step in (*steps, 100) if step * power > start)


def _power(ns: int) -> int:
    """What a step is multiplied with to have as many digits."""
    return int("1" + "0" * (len(str(ns)) - 2))
