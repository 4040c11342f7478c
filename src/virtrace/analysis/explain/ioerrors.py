"""Which request to a guest's disk failed, and what was done. ioerrors.yaml has the texts.

A request to a node makes others to the nodes below it, on the same stack: the innermost fails
first, and where the outer ones end with the same error, they are one failure. What is done about it
comes behind them, and names the node and the error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import (
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    number_of,
)
from virtrace.analysis.in_qemu import (
    BUSES,
    MAIN_THREAD,
    THE_GUEST,
    frames,
    is_by_qcow2,
    starter_words,
)
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Point
from virtrace.analysis.values.meaning import error_words, one_of
from virtrace.trace import roles
from virtrace.trace.format import Event, Json
from virtrace.wording import count

_FULL, _BAD = 28, 5
_FORBIDDEN = (1, 13, 30)
# What a caller answers by another kind of request.
_NOT_SUPPORTED = 95
_IGNORED, _REPORTED, _STOPPED = range(3)
_IO_ERROR = 3
_WORDS = {
    roles.WRITE_FAILED: "write",
    roles.READ_FAILED: "read",
    roles.FLUSH_FAILED: "flush",
    roles.DISCARD_FAILED: "discard",
}
# Functions that a request to a node begins in: one further out on the stack is that of another.
_REQUESTS = ("bdrv_co_pwritev_part", "bdrv_co_preadv_part", "bdrv_co_pdiscard", "bdrv_co_flush")
_ROLES = frozenset({*roles.FAILED_REQUESTS, roles.DEVICE_ERROR, roles.JOB_ERROR})
# What strangers' traces may have.
_MOST_OPEN, _MOST_CASES = 1000, 10_000
_LATE_NS = 10_000_000_000


@dataclass
class _Failure:
    """One request that failed.

    events: of each node that it went through, innermost first. jobs: of which one decided about it,
    where it is not certain which.
    """

    events: list[Event] = field(default_factory=list)
    decision: Event | None = None
    paused: Event | None = None
    sent: Event | None = None
    jobs: set[str] = field(default_factory=set)

    @property
    def inner(self) -> Event:
        return self.events[0]

    @property
    def outer(self) -> Event:
        return self.events[-1]

    @property
    def number(self) -> int | None:
        return _error(self.decision if self.decision is not None else self.outer)

    def goes_on(self, event: Event) -> bool:
        """Whether another event is of the request that this one was made for."""
        inside, around = frames(self.outer), frames(event)[1:]
        return (
            event.tid == self.outer.tid
            and _error(event) == _error(self.outer)
            and 0 < len(around) < len(inside) - 1
            and inside[-len(around) :] == around
        )

    def is_decided_by(self, event: Event) -> bool:
        is_read = self.outer.role == roles.READ_FAILED
        if _error(event) != _error(self.outer) or bool(event.values.get("is_read")) != is_read:
            return False
        if event.role == roles.JOB_ERROR:
            return starter_words(self.outer) not in (THE_GUEST, MAIN_THREAD)
        nodes = {_text(one.values.get("node")) for one in (event, self.outer)}
        # One that is unavailable may be the same.
        return len(nodes) == 1 or None in nodes


def _error(event: Event) -> int | None:
    """The number of its error, above 0."""
    value = event.values.get("result" if event.role in _WORDS else "error")
    return abs(value) if type(value) is int else None


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None


@dataclass
class ErrorCase(model.Case):
    """Requests that failed alike: to the same node, by the same origin, with one outcome.

    first: of these. times: how many they are. last: when the last one failed, ns. nodes: by name,
    what libvirt noted of it.
    """

    first: _Failure
    nodes: Mapping[str, Event]
    times: int = 1
    last: int = 0

    @property
    def _known(self) -> Mapping[str, Json]:
        """What libvirt noted of the node that failed, or of one above it."""
        for event in self.first.events or [self._event]:
            noted = self.nodes.get(_text(event.values.get("node")) or "")
            if noted is not None and "disk" in noted.values:
                return noted.values
        return {}

    @property
    def node(self) -> str:
        """Of the node that failed."""
        event = self.first.inner if self.first.events else self._event
        name = _text(event.values.get("node"))
        return name or "a node that is not known"

    @property
    def domain(self) -> str | None:
        """Of all nodes: a trace has one guest."""
        known = (_text(event.values.get("domain")) for event in self.nodes.values())
        return next((name for name in known if name), None)

    @property
    def subject(self) -> tuple[str, ...]:
        names = (self.domain, self._known.get("disk"))
        return (*(name for name in names if isinstance(name, str)), self.node)

    @property
    def names(self) -> Mapping[str, Json]:
        disk, role = self._known.get("disk"), self._known.get("is")
        what = f"node {self.node}"
        if isinstance(disk, str):
            what = disk if role == "disk" else f"the {role} of {disk}"
        number = self.first.number
        return {
            "what": what,
            "domain": self.domain or "DOMAIN",
            "disk": disk if isinstance(disk, str) else "DISK",
            "request": self._request,
            "error": "an error that is not known" if number is None else error_words(number),
            "done": self._done,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        return {"when": Nanoseconds(self._event.t_ns), "times": self.times}

    @property
    def key(self) -> object:
        return self._event.seq

    @property
    def _event(self) -> Event:
        event = self.first.outer if self.first.events else self.first.decision
        assert event is not None
        return event

    @property
    def _request(self) -> str:
        """The outermost request, and whose it is."""
        if not self.first.events:
            return "a request"
        said = f"{described(self.first.outer)} {self._by}"
        if self._is_of_qcow2:
            return f"{said} for its own tables"
        is_within = is_by_qcow2(self.first.inner)
        return f"{said}, for which qcow2 wrote its own tables," if is_within else said

    @property
    def _is_of_qcow2(self) -> bool:
        return len(self.first.events) == 1 and is_by_qcow2(self.first.inner)

    @property
    def _by(self) -> str:
        decision = self.first.decision
        if decision is not None and decision.role == roles.JOB_ERROR:
            return f"by the block job {_text(decision.values.get('job')) or 'without a name'}"
        if self._is_of_qcow2:
            return "by qcow2"
        origin = starter_words(self.first.outer)
        through = BUSES.get(str(self._known.get("bus"))) if origin == THE_GUEST else None
        return f"by {origin}" + (f" through {through}" if through else "")

    @property
    def policy(self) -> str | None:
        """The word for the policy that counts."""
        decision = self.first.decision
        if decision is None:
            return None
        name = "on_read_error" if decision.values.get("is_read") else "on_write_error"
        value = number_of(decision, "on_error" if decision.role == roles.JOB_ERROR else name)
        return None if value is None else one_of("BlockdevOnError", value)

    @property
    def _done(self) -> str:
        decision = self.first.decision
        if self.first.jobs:
            jobs = ", ".join(sorted(self.first.jobs))
            return f"it is not certain which of the block jobs decided about it: {jobs}"
        if decision is None:
            if _is_inside_another(self.first.outer):
                return "the request that it was made for did not fail"
            return "no policy of a disk or a job decided: the error went to where it came from"
        is_job = decision.role == roles.JOB_ERROR
        job = f"the block job {_text(decision.values.get('job')) or 'without a name'}"
        action = number_of(decision, "action")
        done = {
            _IGNORED: f"{job} went on" if is_job else "QEMU told the guest that it did not fail",
            _REPORTED: f"{job} failed" if is_job else "QEMU reported it to the guest",
            _STOPPED: f"QEMU paused {job}" if is_job else "QEMU paused the guest",
        }.get(-1 if action is None else action, "what was done is not known")
        whose = "the job's" if is_job else "its"
        if self.policy is None:
            return f"{done}; {whose} policy is not known"
        return f"{done}, as {whose} policy is {self.policy}"

    @property
    def facts(self) -> Sequence[Fact]:
        first, found = self.first, []
        for event in first.events:
            node = _text(event.values.get("node")) or "a node that is not known"
            text = f"{described(event)} to {node}, {event.t_ns:,} ns after the recording began"
            found.append(Fact("failed", number_of(event, "result"), text, event.seq, ".result"))
        if first.decision is not None:
            action = number_of(first.decision, "action")
            words = None if action is None else one_of("BlockErrorAction", action)
            text = f"{words or 'not known'}, by the policy {self.policy or 'that is not known'}"
            found.append(Fact("action", action, text, first.decision.seq, ".action"))
        if first.sent is not None:
            since = first.sent.t_ns - self._event.t_ns
            text = f"sent by QEMU to its monitor {since:,} ns later"
            found.append(Fact("event", "BLOCK_IO_ERROR", text, first.sent.seq))
        if first.paused is not None:
            since = first.paused.t_ns - self._event.t_ns
            text = f"io-error: the processors of the guest stopped {since:,} ns later"
            found.append(Fact("paused", _IO_ERROR, text, first.paused.seq, ".state"))
        if self.times > 1:
            found.append(Fact("in all", self.times, "failed alike"))
        return found


def described(event: Event) -> str:
    """A request in words: `a write of 512 bytes at 1,024`."""
    word = _WORDS.get(str(event.role), "request")
    offset, size = number_of(event, "offset"), number_of(event, "bytes")
    if offset is None or size is None:
        return f"a {word}"
    return f"a {word} of {count(size, 'byte')} at {offset:,}"


def _is_inside_another(event: Event) -> bool:
    return any(frame.startswith(_REQUESTS) for frame in frames(event)[1:])


class _Reader:
    """Collects what a trace shows of each request that failed."""

    def __init__(self) -> None:
        self._nodes: dict[str, Event] = {}
        self._open: deque[_Failure] = deque()
        self._cases: dict[object, ErrorCase] = {}
        self._last: _Failure | None = None

    def take(self, node: Node) -> Iterator[ErrorCase]:
        event = node.event if isinstance(node, Point) else None
        if event is None:
            return iter(())
        if event.role == roles.MARK_STANDING:
            name = _text(event.values.get("node"))
            if name is not None and len(self._nodes) < _MOST_CASES:
                self._nodes.setdefault(name, event)
        elif event.role in _WORDS:
            self._failed(event)
        elif event.role in (roles.DEVICE_ERROR, roles.JOB_ERROR):
            self._decided(event)
        else:
            self._followed(event)
        return iter(())

    def _followed(self, event: Event) -> None:
        """Note what a decision leads to."""
        if event.role == roles.EVENT_SENT and self._last is not None:
            decision = self._last.decision
            if decision is not None and decision.tid == event.tid and self._last.sent is None:
                self._last.sent = event
        elif event.role == roles.GUEST_PAUSED and number_of(event, "state") == _IO_ERROR:
            for case in self._cases.values():
                is_stop = number_of(case.first.decision, "action") == _STOPPED
                if is_stop and case.first.paused is None:
                    case.first.paused = event

    def finish(self, end_ns: int) -> Iterator[ErrorCase]:
        while self._open:
            self._close(self._open.popleft())
        yield from sorted(self._cases.values(), key=lambda case: case.last)

    def _failed(self, event: Event) -> None:
        # What is done about a failure comes soon.
        while self._open and event.t_ns - self._open[0].outer.t_ns > _LATE_NS:
            self._close(self._open.popleft())
        for failure in reversed(self._open):
            if failure.goes_on(event):
                failure.events.append(event)
                return
        if len(self._open) == _MOST_OPEN:
            self._close(self._open.popleft())
        self._open.append(_Failure([event]))

    def _decided(self, event: Event) -> None:
        found = [one for one in self._open if one.is_decided_by(event)]
        nodes = {str(one.outer.values.get("node")) for one in found}
        if event.role == roles.JOB_ERROR and len(nodes) > 1:
            # Several jobs fail at once.
            for one in found:
                one.jobs.add(_text(event.values.get("job")) or "without a name")
            return
        failure = found[0] if found else _Failure()
        if found:
            self._open.remove(failure)
        failure.decision = event
        self._close(failure)

    def _close(self, failure: _Failure) -> None:
        """Count a failure among those that are alike."""
        if failure.decision is None and failure.number == _NOT_SUPPORTED:
            return
        if failure.decision is not None:
            self._last = failure
        case = ErrorCase(failure, self._nodes)
        event = failure.outer if failure.events else failure.decision
        assert event is not None
        decision = {} if failure.decision is None else failure.decision.values
        key = (
            *(str(one.values.get("node")) for one in failure.events),
            *(str(event.role), failure.number, case._by if failure.events else ""),
            *(str(decision.get(name)) for name in ("action", "job", "on_error")),
            *(str(decision.get(name)) for name in ("on_read_error", "on_write_error")),
            *sorted(failure.jobs),
        )
        if key in self._cases:
            self._cases[key].times += 1
            self._cases[key].last = event.t_ns
        elif len(self._cases) < _MOST_CASES:
            case.last = event.t_ns
            self._cases[key] = case


_CAUSES: Catalogue[ErrorCase] = Catalogue(Path(__file__).with_name("ioerrors.yaml"))
EXPLAINER = Explainer("ioerrors", _CAUSES, lambda _: _Reader())


def _evidence(case: ErrorCase) -> list[Evidence]:
    found = []
    for event in case.first.events:
        result = Quoted(event.values, event.name, event.seq).number("result")
        if result is not None:
            node = _text(event.values.get("node")) or "a node that is not known"
            found.append(state(result, f"{described(event)} to {node} returned"))
    decision = case.first.decision
    if decision is not None:
        action = Quoted(decision.values, decision.name, decision.seq).number("action")
        if action is not None:
            words = one_of("BlockErrorAction", int(str(action.value))) or "not known"
            found.append(state(action, f"what was done about it, {words}, as a number"))
    if case.first.paused is not None:
        paused = case.first.paused
        stopped = Quoted(paused.values, paused.name, paused.seq).number("state")
        if stopped is not None:
            found.append(state(stopped, "the guest was paused with the state"))
    return found


@_CAUSES.condition("contradiction")
def _contradiction(case: ErrorCase) -> list[Evidence] | None:
    """What was done is not what the policy demands (blk_get_error_action of QEMU)."""
    action, number = number_of(case.first.decision, "action"), case.first.number
    pauses = _STOPPED if number == _FULL else _REPORTED
    demanded = {"report": _REPORTED, "ignore": _IGNORED, "stop": _STOPPED}
    demanded |= {"enospc": pauses, "auto": pauses}
    if case.policy not in demanded or action is None or demanded[case.policy] == action:
        return None
    return _evidence(case)


@_CAUSES.condition("unseen")
def _unseen(case: ErrorCase) -> list[Evidence] | None:
    return None if case.first.events else _evidence(case)


def _register(cause: str, *numbers: int) -> None:
    @_CAUSES.condition(cause)
    def condition(case: ErrorCase) -> list[Evidence] | None:
        is_it = bool(case.first.events) and case.first.number in numbers
        return _evidence(case) if is_it else None


_register("full", _FULL)
_register("not-permitted", *_FORBIDDEN)
_register("device", _BAD)


@_CAUSES.condition("failed")
def _failed(case: ErrorCase) -> list[Evidence] | None:
    is_other = case.first.number not in (None, _FULL, _BAD, *_FORBIDDEN)
    return _evidence(case) if case.first.events and is_other else None


@_CAUSES.condition("unknown")
def _unknown(case: ErrorCase) -> list[Evidence]:
    return [*_evidence(case), Evidence("which error it was is not in the trace")]
