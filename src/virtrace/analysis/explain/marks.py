"""Which write raised the high-water mark of a disk: conditions here, texts in marks.yaml.

Who made a write shows in the stack on which it ended (analysis.in_qemu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import (
    Bytes,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    number_of,
)
from virtrace.analysis.in_qemu import (
    A_JOB,
    A_TASK,
    BUSES,
    MAIN_THREAD,
    QEMU_ITSELF,
    THE_GUEST,
    is_by_qcow2,
    origin,
)
from virtrace.analysis.quoted import Evidence, Quoted, quote
from virtrace.analysis.spans import Point
from virtrace.trace import roles
from virtrace.trace.contents import FORMATS
from virtrace.trace.format import Event, Json

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
        through = BUSES.get(str(self.known.get("bus")))
        content = None if self.last is None else _content(self.last)
        return {
            "what": what,
            "domain": domain or "DOMAIN",
            "disk": disk or "DISK",
            "through": f" through {through}" if through and role == "disk" else "",
            "content": f" ({content})" if content else "",
        }

    @property
    def last(self) -> Event | None:
        return self.events[-1] if self.events else None

    @property
    def mark(self) -> int | None:
        """The mark as it was last seen."""
        for event in (self.after, self.last, self.before):
            if event is not None:
                return number_of(event, "mark")
        return None

    @property
    def numbers(self) -> Mapping[str, int | None]:
        last = self.last
        found = {name: Bytes.of(number_of(last, name)) for name in ("offset", "bytes", "was")}
        return {
            **found,
            "mark": Bytes.of(self.mark),
            "raised": Bytes.of(number_of(last, "mark")),
            "when": None if last is None else Nanoseconds(last.t_ns),
            "rises": None if last is None else number_of(last, "rises"),
        }

    @property
    def key(self) -> object:
        return self.node, None if self.last is None else self.last.seq

    @property
    def facts(self) -> Sequence[Fact]:
        found = []
        if self.before is not None:
            mark = Bytes(number_of(self.before, "mark") or 0)
            found.append(
                Fact("began at", mark, "when the recording began", self.before.seq, ".mark")
            )
        for event in self.events:
            offset, size = Bytes.of(number_of(event, "offset")), Bytes.of(number_of(event, "bytes"))
            if offset is not None and size is not None:
                content = _content(event)
                text = f"by a write of {size:,} bytes at {offset:,}, by {origin(event)}"
                text += f": {content}" if content else ""
                mark = Bytes(number_of(event, "mark") or 0)
                found.append(Fact("raised to", mark, text, event.seq, ".mark"))
        return found


def _content(event: Event) -> str | None:
    """What --classify-writes says that it contains, if that is a known format."""
    content = event.values.get("content")
    return content if isinstance(content, str) and content in FORMATS else None


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
    return [tuple(number_of(event, name) for name in names) for event in case.events]


_CAUSES: Catalogue[MarkCase] = Catalogue(Path(__file__).with_name("marks.yaml"))
EXPLAINER = Explainer("marks", _CAUSES, lambda _: _Reader())


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
        if (number_of(earlier, "mark") or 0) > (number_of(later, "mark") or 0):
            if number_of(later, "was") == 0:
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
    if seen is None or case.after is None or case.mark == number_of(seen, "mark"):
        return None
    return [
        *_quoted(seen, "mark", "the last that was seen"),
        *_quoted(case.after, "mark", "and at the end"),
    ]


@_CAUSES.condition("another-write")
def _another_write(case: MarkCase) -> list[Evidence] | None:
    if case.last is None:
        return None
    numbers = [number_of(case.last, name) for name in ("offset", "bytes", "mark")]
    offset, size, mark = (0 if number is None else number for number in numbers)
    return _write(case.last) if None not in numbers and offset + size != mark else None


def _register(
    cause: str,
    holds: Callable[[Event], bool],
    is_about: Callable[[MarkCase], bool] = lambda _: True,
) -> None:
    @_CAUSES.condition(cause)
    def condition(case: MarkCase) -> list[Evidence] | None:
        if case.last is None or _unseen(case) or _another_write(case):
            return None
        return _write(case.last) if holds(case.last) and is_about(case) else None


def _is_by_qemu(event: Event) -> bool:
    """Whether a coroutine made it that nothing known has started."""
    return origin(event) == QEMU_ITSELF


def _by(whose: str) -> Callable[[Event], bool]:
    return lambda event: origin(event) == whose


_register("by-qcow2", is_by_qcow2)
_register("by-guest", _by(THE_GUEST))
_register("by-job", _by(A_JOB))
_register("by-main-thread", _by(MAIN_THREAD))
_register("by-task", _by(A_TASK))
_register("by-copy", _is_by_qemu, lambda case: case.known.get("is") == "copy")
_register("by-qemu", _is_by_qemu, lambda case: case.known.get("is") != "copy")


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
