"""The result of a comparison of two traces, A and B."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from virtrace.analysis.compare.values import (
    HARMLESS,
    ONLY_A,
    ONLY_B,
    VALUE,
    Difference,
    Values,
)
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json, Record, is_text
from virtrace.trace.reader import ReadableTrace


@dataclass(frozen=True)
class OnlyOnOneSide:
    """Something that happened in one call of a pair and not in the other.

    side: ``a`` or ``b``.
    kind: ``function``, ``point``, ``line`` or ``qmp``.
    name: of the function, point or command; for a line its text, or its number if the text is
    not known.
    within: the enclosing function, of those that both traces show.
    arguments: of a QMP command; None if it has none.
    """

    side: str
    kind: str
    name: str
    within: str | None = None
    arguments: Json = None


@dataclass
class Pair:
    """Two calls with the same question, and all other pairs with the same differences.

    a, b: the calls of the first such pair.
    explained: both sides; None if the API cannot be explained.
    calls: the numbers of the calls, ``call`` of their events, for each pair.
    """

    a: Call
    b: Call
    explained: tuple[Explanation[DiskCase], Explanation[DiskCase]] | None
    steps: tuple[OnlyOnOneSide, ...]
    differences: tuple[Difference, ...]
    calls: list[tuple[int | None, int | None]] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether they differ only in counters and in what only one trace could show."""
        return not self.steps and all(
            difference.kind in HARMLESS for difference in self.differences
        )

    def of(self, *kinds: str) -> list[Difference]:
        return [difference for difference in self.differences if difference.kind in kinds]

    @property
    def answers(self) -> list[Difference]:
        """Differences in what the API returned."""
        return [
            difference
            for difference in self.of(VALUE, ONLY_A, ONLY_B)
            if difference.place.part == "returned" and difference.place.where == self.a.root.name
        ]


@dataclass(frozen=True)
class Alone:
    """A call that has no partner in the other trace. side: of the call."""

    side: str
    call: Call


@dataclass(frozen=True)
class AnswersApart:
    """What two traces are answered with about one thing. None: a side has no such answer."""

    a: Explanation[Any] | None
    b: Explanation[Any] | None


@dataclass(frozen=True)
class Hidden:
    """A probe that was hit on one side and could not be traced on the other.

    side: the one that lacks it. why: the reason.
    """

    side: str
    name: str
    why: str


@dataclass(frozen=True)
class Timing:
    """Median durations that differ widely. name: of the function or QMP command."""

    name: str
    a_ns: int
    b_ns: int


@dataclass(frozen=True)
class Comparison:
    """The differences between two traces.

    pairs: in the order in which A's calls began; at most MOST_PAIRS.
    more: number of further pairs, each with differences of its own.
    more_differ: how many of those are not equal.
    passed: the values that were ignored.
    answers: those of `virtrace explain` whose cause differs, but for the sizes of disks.
    """

    a: ReadableTrace
    b: ReadableTrace
    pairs: tuple[Pair, ...]
    alone: tuple[Alone, ...]
    hidden: tuple[Hidden, ...]
    notes: tuple[str, ...]
    timings: tuple[Timing, ...]
    passed: Values
    answers: tuple[AnswersApart, ...] = ()
    more: int = 0
    more_differ: int = 0

    @property
    def equal(self) -> bool:
        return not self.alone and not self.more_differ and all(pair.equal for pair in self.pairs)

    def problems(self, side: str) -> list[str]:
        """What one trace, or a call in it, lacks. side: ``a`` or ``b``."""
        trace = self.a if side == "a" else self.b
        calls = [pair.a if side == "a" else pair.b for pair in self.pairs]
        calls += [alone.call for alone in self.alone if alone.side == side]
        return trace.problems + [problem for call in calls for problem in call.problems]


def texts(call: Call) -> Record:
    """Return the arguments that identify what a call asked about, such as domain and disk."""
    return {name: value for name, value in call.root.arguments.items() if is_text(value)}
