"""Tells the stacks of a program apart: a thread may leave one for another and come back.

Coroutines and alternate signal stacks do that. This module does not need gdb.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Start and end addresses, ascending.
Mappings = Sequence[tuple[int, int]]


@dataclass
class _Stack:
    """tid, sp: the last thread that was seen on it, and its stack pointer then."""

    number: int
    tid: int
    sp: int
    end: int = 0


class Stacks:
    """The stacks on which threads were seen.

    Two stacks are known to be different where they are in different mappings. The stacks of
    QEMU's coroutines and of most signal handlers are: each has a mapping of its own, with a guard
    page below. Those of threads can share one (from glibc 2.42 on guard pages split no mapping),
    which is parted where a thread's stack ends. Other stacks within one mapping count as one, such
    as two from malloc.

    read: returns the mappings, and these parts, as they are now
    """

    def __init__(self, read: Callable[[], Mappings]) -> None:
        self._read = read
        self._starts: list[int] = []
        self._stacks: list[_Stack] = []
        self._numbers = 0

    def number(self, tid: int, sp: int) -> int:
        """The number of the stack that a thread is on, from 1; -tid where it is not known.

        The mappings are read only where sp is in no known stack, or in that of another thread.
        """
        stack = self._at(sp)
        if stack is None or stack.tid != tid:
            self._update(tid, sp)
            stack = self._at(sp)
            if stack is None:
                return -tid
        stack.tid, stack.sp = tid, sp
        return stack.number

    def _at(self, address: int) -> _Stack | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._stacks[index].end:
            return None
        return self._stacks[index]

    def _update(self, tid: int, sp: int) -> None:
        """Find every known stack again by its last sp, as mappings grow, and add that of sp."""
        mappings = self._read()
        starts = [start for start, _ in mappings]
        by_start: dict[int, _Stack] = {}
        self._numbers += 1
        for stack in [*self._stacks, _Stack(self._numbers, tid, sp)]:
            index = bisect_right(starts, stack.sp) - 1
            if index >= 0 and stack.sp < mappings[index][1]:
                stack.end = mappings[index][1]
                by_start.setdefault(starts[index], stack)
        self._starts = sorted(by_start)
        self._stacks = [by_start[start] for start in self._starts]
