"""Which of many rises of a value are recorded: the others are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from virtrace.engines.uprobes.hits import Hit, HitThread
from virtrace.engines.uprobes.layout import WORD
from virtrace.errors import Unavailable
from virtrace.plan.model import PointSite, Rising
from virtrace.trace.format import Record

# A rise by more than a part of the value that was recorded last is recorded.
_STEEP = 16
# Functions are entered with the stack pointer at another place of its page if they are called from
# another place.
_PAGE = 1 << 12


@dataclass
class _Risen:
    """highest: of all. recorded: of those that were recorded, the last. origins: of these."""

    highest: int
    recorded: int
    origins: set[int] = field(default_factory=set)


class Rises:
    """Holds back rises that say nothing new, but for the last one of each thing."""

    def __init__(self) -> None:
        self._risen: dict[tuple[str, bytes], _Risen] = {}
        self._held: dict[tuple[str, bytes], Hit] = {}

    def is_kept(
        self, site: PointSite, when: Rising, hit: Hit, thread: HitThread, noted: int
    ) -> bool:
        """Return whether a rise is recorded now; else it is held until a later one comes.

        noted: where the record has what the condition noted. Where two threads meet one thing at
        once, a program can take a value for a rise that another one has met: that is none.
        """
        read = site.arguments.reader(thread, None, None)
        try:
            name, number = (
                hit.memory.read(read(place.argument) + place.offset, place.size)
                for place in (when.per, when.value)
            )
        except Unavailable:
            return True
        key, value = (site.probe, name.partition(b"\0")[0]), int.from_bytes(number, "little")
        origin, risen = hit.sp % _PAGE, self._risen.get(key)
        is_new = not values_of(hit, noted)["was"]
        if risen is None or is_new:
            risen = self._risen[key] = _Risen(value, value)
        elif value <= risen.highest:
            return False
        elif origin in risen.origins and value - risen.recorded <= risen.recorded // _STEEP:
            risen.highest = value
            self._held[key] = hit
            return False
        risen.highest = risen.recorded = value
        risen.origins.add(origin)
        self._held.pop(key, None)
        return True

    def rest(self) -> Sequence[Hit]:
        """Return those that are held, in the order of time; they are not held any more."""
        held, self._held = sorted(self._held.values(), key=attrgetter("t_ns")), {}
        return held


def values_of(hit: Hit, risen: int) -> Record:
    """What a condition has noted. risen: where, in the record."""
    return {"was": hit.memory.word(risen), "rises": hit.memory.word(risen + WORD)}
