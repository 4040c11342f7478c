"""What QEMU's main loop did while QMP commands waited. mainloops.yaml has the texts.

The main loop is one thread. Whatever it does that takes long is recorded as it ends, what is inside
first: times that overlap are one in which it was busy. What took most of that is the answer.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.in_qemu import frames
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, Json
from virtrace.wording import count

# A command that took less was not slow, ns.
SLOW_NS = 100_000_000
# Calls of the C library, in words.
_CALLS = {
    "call.open": "opening",
    "call.close": "closing",
    "call.pwrite": "a write to",
    "call.pwritev": "a write to",
    "call.pread": "a read from",
    "call.preadv": "a read from",
    "call.fdatasync": "a flush of",
    "call.ftruncate": "a change of the size of",
    "call.fallocate": "an allocation of space in",
    "call.lseek": "a search for data in",
    "call.fstat": "a look at the size of",
    "call.io_submit": "handing requests to the kernel for",
}
_HANDLER = "qmp_marshal_"
# Functions on a stack that are shown.
_MOST_FRAMES = 12
# What strangers' traces may have.
_MOST_EVENTS, _MOST_WAITING = 10_000, 100


T = TypeVar("T")


def _took(event: Event) -> int:
    """How long it took, ns."""
    value = event.values.get("took_ns")
    return value if type(value) is int and value > 0 else 0


def _began(event: Event) -> int:
    return event.t_ns - _took(event)


def _command(event: Event) -> str | None:
    value = event.values.get("command")
    return value if isinstance(value, str) else None


def _ended(exchange: Exchange, end_ns: int) -> int:
    return end_ns if exchange.reply is None else exchange.reply.t_ns


def _own(events: Iterable[Event], handled: Collection[str]) -> str | None:
    """The command that something was done for.

    events: what was done. handled: the commands that were handled meanwhile
    """
    stacks = [frame.partition("+")[0] for event in events for frame in frames(event)]
    by_handler = {_HANDLER + command.replace("-", "_"): command for command in handled}
    on_stack = [by_handler[frame] for frame in stacks if frame in by_handler]
    if on_stack:
        return on_stack[0]
    # Without a stack it can be no other.
    return next(iter(handled)) if len(handled) == 1 and not stacks else None


@dataclass
class Files:
    """The files of the process, by the numbers of their descriptors.

    found: when the recording began, and when it ended.
    """

    found: dict[int, list[str]] = field(default_factory=dict)
    domain: str | None = None

    def note(self, event: Event) -> None:
        number, file = event.values.get("fd"), event.values.get("file")
        if type(number) is int and isinstance(file, str) and len(self.found) < _MOST_EVENTS:
            self.found.setdefault(number, []).append(file)
        domain = event.values.get("domain")
        self.domain = domain if isinstance(domain, str) else self.domain

    def named(self, event: Event) -> str:
        """The file of a call, in words."""
        path = event.values.get("path")
        if isinstance(path, str):
            return path
        number = event.values.get("fd")
        if type(number) is not int:
            return "a file that is not known"
        first, *later = self.found.get(number, [""])
        return first if first in later else f"the file with descriptor {number}"


@dataclass
class LoopCase(model.Case):
    """A time in which the main loop was busy, or a command that waited for something else.

    kind: its cause. began, ended: ns. events: what the main loop did, of the kind that took most.
    waiting: commands that waited meanwhile. own: the command that it was done for. beside: calls of
    other threads meanwhile, the longest first.
    """

    kind: str
    began: int
    ended: int
    files: Files
    events: Sequence[Event] = ()
    waiting: Sequence[Exchange] = ()
    own: str | None = None
    beside: Sequence[Event] = ()

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.files.domain or "QEMU",)

    @property
    def _longest(self) -> Event | None:
        return max(self.events, key=_took, default=None)

    @property
    def names(self) -> Mapping[str, Json]:
        waited = [each.command or "a command of unknown name" for each in self.waiting]
        others = f" and {count(len(waited) - 3, 'other')}" if len(waited) > 3 else ""
        longest, beside = self._longest, next(iter(self.beside), None)
        said = f"{', '.join(waited[:3])}{others} waited meanwhile"
        thread = "" if beside is None else f", while another thread was in {self._call(beside)}"
        return {
            "domain": self.files.domain or "DOMAIN",
            "command": waited[0] if waited else "a command",
            "call": self._call(longest),
            "own": f" for the command {self.own}" if self.own else "",
            "beside": thread,
            "waited": said if waited else "no other command waited meanwhile",
        }

    def _call(self, event: Event | None) -> str:
        if event is None:
            return "nothing that is known"
        words = _CALLS.get(event.name, "a call about")
        if event.name == "call.io_submit":
            return f"{words} a disk"
        return f"{words} {self.files.named(event)}"

    @property
    def numbers(self) -> Mapping[str, int | None]:
        return {"busy": Nanoseconds(self.ended - self.began), "when": Nanoseconds(self.began)}

    @property
    def key(self) -> object:
        seqs = [event.seq for event in self.events] or [each.send.seq for each in self.waiting]
        return self.kind, *seqs[:1]

    @property
    def facts(self) -> Sequence[Fact]:
        found = [Fact("began", Nanoseconds(self.began), "after the recording began")]
        for event in sorted(self.events, key=_took, reverse=True)[:1]:
            named = [frame.partition("+")[0] for frame in frames(event)]
            known = [name for name in named if not name.startswith("qemu-system-")]
            stack = " < ".join(known[:_MOST_FRAMES])
            found.append(Fact("longest", Nanoseconds(_took(event)), stack, event.seq, ".took_ns"))
        for event in self.beside[:1]:
            text = f"{self._call(event)}, by thread {event.tid}"
            found.append(Fact("meanwhile", Nanoseconds(_took(event)), text, event.seq, ".took_ns"))
        for each in self.waiting[:8]:
            ns = each.duration_ns
            waited = None if ns is None else Nanoseconds(ns)
            text = f"{each.command} {each.id}" + ("" if each.reply else ", not answered")
            found.append(Fact("waited", waited, text, each.send.seq))
        return found


class _Reader:
    """Collects what a trace has, and finds the cases at its end."""

    def __init__(self) -> None:
        self._files = Files()
        # What is known to be of the main loop; calls of any thread; commands that were handled.
        self._loop: list[Event] = []
        self._calls: list[Event] = []
        self._handled: list[Event] = []
        self._commands: list[Exchange] = []

    def take(self, node: Node) -> Sequence[LoopCase]:
        for each in node.nodes() if isinstance(node, Call) else (node,):
            if isinstance(each, Exchange) and each.is_qmp:
                self._keep(self._commands, each)
            elif isinstance(each, Point):
                self._note(each.event)
        return ()

    def _note(self, event: Event) -> None:
        if event.role == roles.FILE_OPEN:
            self._files.note(event)
        elif event.role in roles.OF_LOOP:
            self._keep(self._loop, event)
        elif event.role == roles.LONG_CALL:
            self._keep(self._calls, event)
        elif event.role == roles.QMP_HANDLED:
            self._keep(self._handled, event)

    @staticmethod
    def _keep(kept: list[T], one: T) -> None:
        if len(kept) < _MOST_EVENTS:
            kept.append(one)

    def finish(self, end_ns: int) -> Iterator[LoopCase]:
        main = {event.tid for event in self._loop}
        of_main = [event for event in self._calls if event.tid in main]
        others = [event for event in self._calls if event.tid not in main]
        commands = [(each.t_enter_ns, _ended(each, end_ns), each) for each in self._commands]
        slow = [each for each in commands if each[1] - each[0] >= SLOW_NS]
        busy = [_Busy(*each) for each in _merged([*self._loop, *of_main])]
        _share(busy, slow, lambda one: one.commands)
        _share(busy, map(_timed, self._handled), lambda one: one.handled)
        _share(busy, map(_timed, others), lambda one: one.beside)
        explained: set[int] = set()
        for one in busy:
            yield self._busy(one, explained)
        handled: dict[str | None, list[Event]] = defaultdict(list)
        for event in self._handled:
            id_ = event.values.get("id")
            if id_ is None or isinstance(id_, str):
                handled[id_].append(event)
        for began, ended, command in slow:
            if command.send.seq not in explained:
                yield self._slow(command, began, ended, handled[command.id])
        if not busy and commands and not slow:
            worst = max(self._commands, key=lambda each: each.duration_ns or 0)
            yield LoopCase(
                "well", worst.t_enter_ns, _ended(worst, end_ns), self._files, waiting=[worst]
            )

    def _busy(self, busy: _Busy, explained: set[int]) -> LoopCase:
        """explained: numbers of commands whose time is explained, to add to."""
        began, ended, events = busy.began, busy.ended, busy.events
        kind, most = "own", list(events)
        for role, cause in (
            (roles.LONG_CALL, "file"),
            (roles.LOOP_WAIT, "requests"),
        ):
            of_role = [event for event in events if event.role == role]
            if 2 * sum(last - first for first, last, _ in _merged(of_role)) >= ended - began:
                kind, most = cause, of_role
                break
        within = [
            event
            for first, last, event in busy.handled
            if min(last, ended) - max(first, began) > (ended - began) / 2
        ]
        own = _own(most, {name for event in within if (name := _command(event))})
        ids = {str(event.values.get("id")) for event in within if _command(event) == own}
        waiting = []
        for first, last, command in busy.commands:
            if 2 * (min(last, ended) - max(first, began)) >= last - first:
                explained.add(command.send.seq)
                if command.id not in ids:
                    waiting.append(command)
        beside = [event for _, _, event in busy.beside]
        return LoopCase(
            *(kind, began, ended, self._files, most),
            waiting[:_MOST_WAITING],
            own,
            sorted(beside, key=_took, reverse=True) if kind == "requests" else (),
        )

    def _slow(
        self, command: Exchange, began: int, ended: int, handled: Sequence[Event]
    ) -> LoopCase:
        """A command that took long while the main loop was not seen to be busy.

        handled: where QEMU handled it
        """
        kind, events = "silent" if command.reply is None else "elsewhere", []
        for event in handled:
            if 2 * _took(event) >= ended - began:
                kind, events = "command", [event]
        return LoopCase(kind, began, ended, self._files, events, [command])


@dataclass
class _Busy:
    """A time in which the main loop was busy. commands, handled, beside: what was meanwhile."""

    began: int
    ended: int
    events: Sequence[Event]
    commands: list[tuple[int, int, Exchange]] = field(default_factory=list)
    handled: list[tuple[int, int, Event]] = field(default_factory=list)
    beside: list[tuple[int, int, Event]] = field(default_factory=list)


def _share(
    busy: Sequence[_Busy],
    found: Iterable[tuple[int, int, T]],
    part: Callable[[_Busy], list[tuple[int, int, T]]],
) -> None:
    """Give each time its part of what was found. busy: in order; no two overlap."""
    begins, ends = [one.began for one in busy], [one.ended for one in busy]
    for each in found:
        for at in range(bisect_right(ends, each[0]), bisect_left(begins, each[1])):
            part(busy[at]).append(each)


def _timed(event: Event) -> tuple[int, int, Event]:
    return _began(event), event.t_ns, event


def _merged(events: Iterable[Event]) -> Iterator[tuple[int, int, Sequence[Event]]]:
    """The times that events took, in order, with the events: those that overlap are one."""
    together: list[Event] = []
    end = 0
    for event in sorted(events, key=_began):
        if together and _began(event) > end:
            yield _began(together[0]), end, together
            together = []
        end = max(end, event.t_ns) if together else event.t_ns
        together.append(event)
    if together:
        yield _began(together[0]), end, together


_CAUSES: Catalogue[LoopCase] = Catalogue(Path(__file__).with_name("mainloops.yaml"))
EXPLAINER = Explainer("mainloops", _CAUSES, lambda _: _Reader())


def _evidence(case: LoopCase) -> list[Evidence]:
    found = []
    for event in (*case.events, *case.beside[:1])[:_MOST_WAITING]:
        took = Quoted(event.values, event.name, event.seq).number("took_ns")
        if took is not None:
            text = f"{event.name} on thread {event.tid} took {_took(event):,} ns"
            found.append(Evidence(text, None, event.seq, took.path))
    for each in case.waiting[:_MOST_WAITING]:
        found.append(Evidence(f"{each.command} {each.id} was sent", None, each.send.seq))
        if each.reply is not None:
            found.append(Evidence("its reply", None, each.reply.seq))
    return found


def _register(name: str) -> None:
    @_CAUSES.condition(name)
    def condition(case: LoopCase) -> list[Evidence] | None:
        return _evidence(case) if case.kind == name else None


for _name in ("file", "requests", "own", "command", "silent", "elsewhere", "well"):
    _register(_name)


@_CAUSES.condition("unknown")
def _unknown(case: LoopCase) -> list[Evidence]:
    return _evidence(case)
