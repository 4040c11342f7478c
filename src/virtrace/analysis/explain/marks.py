"""Which write raised the high-water mark of a disk: conditions here, texts in marks.yaml.

Who made a write shows in the stack on which it ended. A coroutine's outermost function tells who
started it, and QEMU exports the functions of qcow2 that write its own tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import Bytes, Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.quoted import Evidence, Quoted, quote
from virtrace.analysis.spans import Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# By the beginning of a frame: who made the write, in words.
_GUEST, _MONITOR, _JOB = (
    "coroutine of blk_aio_pwritev",
    "coroutine of blk_pwrite",
    "coroutine of job_start",
)
_QCOW2 = "qcow2_"
# The first function of every coroutine: behind it nothing of the stack is missing.
_START = "start of the coroutine"
_ORIGINS = {
    _QCOW2: "qcow2 itself",
    _GUEST: "the guest",
    _JOB: "a block job",
    _MONITOR: "QEMU's main thread",
}
_MOST_NODES = 10_000
_MOST_EVENTS = 1000
_FORMAT, _STORAGE = "-format", "-storage"


@dataclass
class MarkCase(model.Case):
    """The mark of one node.

    before, after: as it was when the recording began, and when it ended. events: writes that raised
    it, in order of time.
    """

    node: str
    before: Event | None = None
    after: Event | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def known(self) -> Mapping[str, Json]:
        """What libvirt noted of the node."""
        event = self.before or self.after
        return {} if event is None else event.values

    @property
    def subject(self) -> tuple[str, ...]:
        names = (self.known.get("domain"), self.known.get("disk"))
        return (*(name for name in names if isinstance(name, str)), self.node)

    @property
    def names(self) -> Mapping[str, Json]:
        domain, disk, role = (self.known.get(name) for name in ("domain", "disk", "is"))
        what = f"node {self.node}"
        if isinstance(disk, str):
            what = disk if role == "disk" else f"the {role} of {disk}"
        return {"what": what, "domain": domain or "DOMAIN", "disk": disk or "DISK"}

    @property
    def last(self) -> Event | None:
        return self.events[-1] if self.events else None

    @property
    def mark(self) -> int | None:
        """The mark as it was last seen."""
        for event in (self.after, self.last, self.before):
            if event is not None:
                return _number(event, "mark")
        return None

    @property
    def numbers(self) -> Mapping[str, int | None]:
        last = self.last
        found = {name: _bytes(last, name) for name in ("offset", "bytes", "was")}
        return {
            **found,
            "mark": None if self.mark is None else Bytes(self.mark),
            "raised": _bytes(last, "mark"),
            "when": None if last is None else Nanoseconds(last.t_ns),
            "rises": None if last is None else _number(last, "rises"),
        }

    @property
    def key(self) -> object:
        return self.node, None if self.last is None else self.last.seq

    @property
    def facts(self) -> Sequence[Fact]:
        found = []
        if self.before is not None:
            mark = Bytes(_number(self.before, "mark") or 0)
            found.append(
                Fact("began at", mark, "when the recording began", self.before.seq, ".mark")
            )
        for event in self.events:
            offset, size = _bytes(event, "offset"), _bytes(event, "bytes")
            if offset is not None and size is not None:
                text = f"by a write of {size:,} bytes at {offset:,}, by {_origin(event)}"
                mark = Bytes(_number(event, "mark") or 0)
                found.append(Fact("raised to", mark, text, event.seq, ".mark"))
        return found


def _number(event: Event, name: str) -> int | None:
    value = event.values.get(name)
    return value if type(value) is int else None


def _bytes(event: Event | None, name: str) -> Bytes | None:
    value = None if event is None else _number(event, name)
    return None if value is None else Bytes(value)


def _frames(event: Event) -> list[str]:
    """The frames that are known, innermost first."""
    stack = event.values.get("stack")
    return [frame for frame in stack if isinstance(frame, str)] if isinstance(stack, list) else []


def _is_in(event: Event, beginning: str) -> bool:
    return any(frame.startswith(beginning) for frame in _frames(event))


def _origin(event: Event) -> str:
    return next(
        (words for beginning, words in _ORIGINS.items() if _is_in(event, beginning)),
        "QEMU itself" if _is_in(event, _START) else "somebody who is not known",
    )


class _Reader:
    """Collects what a trace shows of each node."""

    def __init__(self) -> None:
        self._cases: dict[str, MarkCase] = {}

    def take(self, node: Node) -> Iterator[MarkCase]:
        event = node.event if isinstance(node, Point) else None
        name = event.values.get("node") if event is not None else None
        if event is not None and isinstance(name, str) and len(self._cases) < _MOST_NODES:
            if event.role == roles.MARK_STANDING:
                case = self._cases.setdefault(name, MarkCase(name))
                if case.before is None and not case.events:
                    case.before = event
                else:
                    case.after = event
            elif event.role == roles.MARK_RAISED:
                case = self._cases.setdefault(name, MarkCase(name))
                case.events = [*case.events[-_MOST_EVENTS:], event]
        return iter(())

    def finish(self, end_ns: int) -> Iterator[MarkCase]:
        raised = [case for case in self._cases.values() if case.events]
        standing = [case for case in self._cases.values() if not case.events and case.mark]
        for case in sorted(raised, key=lambda case: case.events[-1].t_ns) + standing:
            case.events.sort(key=lambda event: (event.t_ns, event.seq))
            if not self._is_said(case):
                yield case

    def _is_said(self, case: MarkCase) -> bool:
        """Whether all of it is said of the storage below, too: of a raw disk the same writes."""
        below = self._cases.get(case.node.removesuffix(_FORMAT) + _STORAGE)
        if not case.node.endswith(_FORMAT) or below is None:
            return False
        return case.mark == below.mark and _writes(case) == _writes(below)


def _writes(case: MarkCase) -> list[tuple[int | None, ...]]:
    names = ("offset", "bytes", "mark")
    return [tuple(_number(event, name) for name in names) for event in case.events]


_CAUSES: Catalogue[MarkCase] = Catalogue(Path(__file__).with_name("marks.yaml"))
EXPLAINER = Explainer(
    "marks", frozenset({roles.MARK_RAISED, roles.MARK_STANDING}), _CAUSES, lambda _: _Reader()
)


def _quoted(event: Event, name: str, text: str) -> list[Evidence]:
    found = Quoted(event.values, event.name, event.seq).number(name)
    return [] if found is None else [quote(found, text)]


def _write(event: Event) -> list[Evidence]:
    return [
        *_quoted(event, "offset", "the write began at"),
        *_quoted(event, "bytes", "and was so long"),
        *_quoted(event, "was", "the mark was, before it"),
        *_quoted(event, "mark", "and was, after it"),
    ]


@_CAUSES.condition("contradiction")
def _contradiction(case: MarkCase) -> list[Evidence] | None:
    """A mark never falls as long as the node is there."""
    seen = [event for event in (case.before, *case.events, case.after) if event is not None]
    for earlier, later in zip(seen, seen[1:]):
        if (_number(earlier, "mark") or 0) > (_number(later, "mark") or 0):
            if _number(later, "was") == 0:
                # Another node that got the name of one that is gone.
                continue
            return [
                *_quoted(earlier, "mark", "the mark was"),
                *_quoted(later, "mark", "and was lower later"),
            ]
    return None


@_CAUSES.condition("unseen")
def _unseen(case: MarkCase) -> list[Evidence] | None:
    seen = case.last or case.before
    if seen is None or case.after is None or case.mark == _number(seen, "mark"):
        return None
    return [
        *_quoted(seen, "mark", "the last that was seen"),
        *_quoted(case.after, "mark", "and at the end"),
    ]


@_CAUSES.condition("another-write")
def _another_write(case: MarkCase) -> list[Evidence] | None:
    if case.last is None:
        return None
    numbers = [_number(case.last, name) for name in ("offset", "bytes", "mark")]
    offset, size, mark = (0 if number is None else number for number in numbers)
    return _write(case.last) if None not in numbers and offset + size != mark else None


def _register(cause: str, holds: Callable[[Event], bool]) -> None:
    @_CAUSES.condition(cause)
    def condition(case: MarkCase) -> list[Evidence] | None:
        if case.last is None or _unseen(case) or _another_write(case) or not holds(case.last):
            return None
        return _write(case.last)


def _by(beginning: str) -> Callable[[Event], bool]:
    return lambda event: _is_in(event, beginning) and not _is_in(event, _QCOW2)


_register("by-qcow2", lambda event: _is_in(event, _QCOW2))
_register("by-guest", _by(_GUEST))
_register("by-job", _by(_JOB))
_register("by-main-thread", _by(_MONITOR))
_register(
    "by-qemu",
    lambda event: _is_in(event, _START) and not any(_is_in(event, each) for each in _ORIGINS),
)


@_CAUSES.condition("before")
def _before(case: MarkCase) -> list[Evidence] | None:
    if case.events or case.before is None or _unseen(case):
        return None
    return _quoted(case.before, "mark", "when the recording began")


@_CAUSES.condition("unknown")
def _unknown(case: MarkCase) -> list[Evidence]:
    if case.last is None:
        return [Evidence("no write that raised it was recorded")]
    return [*_write(case.last), Evidence("its stack is not known to its beginning")]
