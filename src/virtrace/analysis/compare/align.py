"""Put two sequences side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")

# Most items that only one sequence has. The rest is not aligned: that takes quadratic time.
_MOST_ALONE = 1000


def aligned(
    a: Sequence[Item], b: Sequence[Item], *keys: Callable[[Item], object]
) -> Iterator[tuple[Item | None, Item | None]]:
    """Pairs of items with equal keys, in order; None opposite an item that only one side has.

    keys: the first aligns the sequences, each further one what the keys before left unmatched.
    """
    key, *coarser = keys
    at_a = at_b = 0
    matches = longest_common([key(item) for item in a], [key(item) for item in b])
    for next_a, next_b in [*matches, (len(a), len(b))]:
        only_a, only_b = a[at_a:next_a], b[at_b:next_b]
        if only_a and only_b and coarser:
            yield from aligned(only_a, only_b, *coarser)
        else:
            yield from ((item, None) for item in only_a)
            yield from ((None, item) for item in only_b)
        if next_a < len(a):
            yield a[next_a], b[next_b]
        at_a, at_b = next_a + 1, next_b + 1


def longest_common(a: Sequence[object], b: Sequence[object]) -> list[tuple[int, int]]:
    """Indices of a longest common subsequence, by Myers's greedy algorithm.

    difflib takes the longest run first, which pairs the iterations of a loop wrongly.
    """
    # By diagonal: the index in a that is reached, and the matches on the way, the last one first.
    reached: dict[int, tuple[int, Any]] = {1: (0, None)}
    for alone in range(min(len(a) + len(b), _MOST_ALONE) + 1):
        for diagonal in range(-alone, alone + 1, 2):
            left, up = reached.get(diagonal - 1, (-1, None)), reached.get(diagonal + 1, (-1, None))
            at, path = up if left[0] < up[0] else (left[0] + 1, left[1])
            while at < len(a) and at - diagonal < len(b) and a[at] == b[at - diagonal]:
                path = (at, at - diagonal, path)
                at += 1
            reached[diagonal] = at, path
            if at >= len(a) and at - diagonal >= len(b):
                return _unrolled(path)
    return _unrolled(max(reached.values(), key=lambda end: end[0])[1])


def _unrolled(path: Any) -> list[tuple[int, int]]:
    matches = []
    while path is not None:
        *match, path = path
        matches.append((match[0], match[1]))
    return matches[::-1]
