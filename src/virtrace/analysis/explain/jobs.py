"""Which calls waited for a domain's job, and for whom; texts in jobs.yaml."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Union

from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Nanoseconds, Node
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Span
from virtrace.trace import roles
from virtrace.trace.format import Json
from virtrace.trace.jobs import ASYNC_JOBS, JOBS

# Further groups of waits are not told apart; of each thread, the last calls are kept.
_MOST_GROUPS = 300
_MOST_THREADS = 200
_CALLS_OF_A_THREAD = 4
_MOST_CALLS = 1000
_NAMES_SHOWN = 3


class _Holder(NamedTuple):
    """Who held the job when a call asked for it, as libvirt recorded it.

    thread: 0 if none holds it. api: its name. since_ms: since the epoch, or None.
    """

    thread: int
    api: str
    since_ms: int | None


@dataclass
class WaitCase(model.Case):
    """The waits for one holder of one domain's job.

    domain: its name, or the address of the domain's object.
    holder: of the first such wait.
    count, open, failed: number of the waits, of those that had not ended, and that ended in vain.
    longest_ns: of all, until the end of the trace for the open ones.
    waiters: procedures that waited, with the number of their waits.
    busy: the holder's call, if it is in the trace. asked: the QMP command that kept it longest.
    """

    domain: str
    holder: _Holder
    first: Span
    count: int = 0
    open: int = 0
    failed: int = 0
    longest_ns: int = 0
    waiters: dict[str, int] = field(default_factory=dict)
    of_calls: list[int | None] = field(default_factory=list)
    busy: Call | None = None
    asked: Exchange | None = None

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain,)

    @property
    def names(self) -> Mapping[str, Json]:
        shown = list(self.waiters)[:_NAMES_SHOWN]
        more = ["others"] if len(self.waiters) > _NAMES_SHOWN else []
        ended = (
            "still wait"
            if self.open == self.count
            else "gave up waiting"
            if self.failed == self.count
            else "waited"
        )
        if self.count == 1:
            ended = ended.replace("still wait", "still waits")
        return {
            "domain": self.domain,
            "who": f"{self.count:,} call{'s' if self.count > 1 else ''} "
            f"({', '.join([*shown, *more])})",
            "ended": ended,
            "holder": _plain(self.holder.api),
            "command": self.asked.command if self.asked else None,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        asked = self.asked.duration_ns if self.asked else None
        return {
            "longest": Nanoseconds(self.longest_ns),
            "answered": None if asked is None else Nanoseconds(asked),
        }

    @property
    def key(self) -> object:
        return self.domain, self.holder

    @property
    def calls(self) -> Sequence[int | None]:
        return self.of_calls

    @property
    def facts(self) -> Sequence[Fact]:
        arguments = self.first.arguments
        wanted = [
            f"{names[number]} ({number})"
            for value, names in (("job", JOBS), ("async_job", ASYNC_JOBS))
            if type(number := arguments.get(value)) is int and 0 < number < len(names)
        ]
        thread = f"thread {self.holder.thread}" if self.holder.thread else "no thread"
        return [
            Fact("waits", self.count, f"({self.open} not ended, {self.failed} in vain)"),
            Fact("longest", Nanoseconds(self.longest_ns)),
            Fact("held by", thread, self.holder.api),
            *([Fact("wanted", ", ".join(wanted), "job")] if wanted else []),
        ]


@dataclass
class NoWait(model.Case):
    """No call waited. begun: number of jobs that were begun."""

    begun: int = 0

    @property
    def subject(self) -> tuple[str, ...]:
        return ("jobs",)

    @property
    def names(self) -> Mapping[str, Json]:
        return {"begun": "1 job began" if self.begun == 1 else f"{self.begun:,} jobs began"}


JobCase = Union[WaitCase, NoWait]


def _plain(procedure: str) -> str:
    """Return a procedure without what the daemon's own name for it begins with."""
    return procedure.removeprefix("remoteDispatch")


class _Wait(NamedTuple):
    span: Span
    call: Call
    holder: _Holder


class _Reader:
    def __init__(self) -> None:
        self._begun = 0
        self._waits: dict[object, WaitCase] = {}
        self._open: list[_Wait] = []
        self._last: OrderedDict[int, list[Call]] = OrderedDict()
        self._names: dict[str, str] = {}
        # Cases whose holder's call may not have ended, by its thread.
        self._sought: dict[int, list[WaitCase]] = {}

    def take(self, node: Node) -> Sequence[JobCase]:
        if not isinstance(node, Call):
            return ()
        for span in node.nodes():
            if isinstance(span, Span) and span.role == roles.LOCK:
                self._took(span, node)
        self._keep(node)
        # Calls of a thread end in their order: it is this one, or none.
        for case in self._sought.pop(node.root.tid, ()):
            self._find_holder(case, case.first)
        return ()

    def _keep(self, call: Call) -> None:
        calls = self._last.pop(call.root.tid, [])
        self._last[call.root.tid] = [*calls[1 - _CALLS_OF_A_THREAD :], call]
        if len(self._last) > _MOST_THREADS:
            self._last.popitem(last=False)

    def _took(self, span: Span, call: Call) -> None:
        self._begun += 1
        obj = span.arguments.get("obj")
        if isinstance(obj, str) and call.domain is not None and len(self._names) < _MOST_GROUPS:
            self._names[obj] = call.domain
        holder = _holder(span)
        if holder is None:
            return
        if span.duration_ns is None:
            if span.unfinished and len(self._open) < _MOST_CALLS:
                self._open.append(_Wait(span, call, holder))
        else:
            self._add(_Wait(span, call, holder), span.duration_ns)

    def _add(self, wait: _Wait, ns: int) -> None:
        span, call, holder = wait
        obj = str(span.arguments.get("obj"))
        domain = call.domain or self._names.get(obj, f"the domain at {obj}")
        key = domain, holder.thread, holder.api, holder.since_ms
        if key not in self._waits and len(self._waits) >= _MOST_GROUPS:
            return
        case = self._waits.setdefault(key, WaitCase(domain, holder, span))
        case.count += 1
        case.open += span.duration_ns is None
        case.failed += span.failed
        case.longest_ns = max(case.longest_ns, ns)
        name = _plain(call.procedure or call.root.name)
        if name in case.waiters or len(case.waiters) < _MOST_GROUPS:
            case.waiters[name] = case.waiters.get(name, 0) + 1
        if len(case.of_calls) < _MOST_CALLS:
            case.of_calls.append(call.id)
        if case.busy is None:
            self._find_holder(case, span)
            if case.busy is None and case.count == 1:
                self._sought.setdefault(holder.thread, []).append(case)

    def _find_holder(self, case: WaitCase, span: Span) -> None:
        case.busy = case.busy or self._of_holder(case.holder, span)
        case.asked = case.asked or (_longest(case.busy, span) if case.busy else None)

    def _of_holder(self, holder: _Holder, span: Span) -> Call | None:
        """Return the holder's call in which it held the job when the wait began."""
        for call in self._last.get(holder.thread, []):
            root = call.root
            ended = root.t_exit_ns
            if root.t_enter_ns <= span.t_enter_ns and (ended is None or ended > span.t_enter_ns):
                return call
        return None

    def finish(self, end_ns: int) -> Iterator[JobCase]:
        for wait in self._open:
            self._add(wait, max(end_ns - wait.span.t_enter_ns, 0))
        # Whoever waits still comes first, then the longest wait.
        yield from sorted(self._waits.values(), key=lambda each: (-each.open, -each.longest_ns))
        if not self._waits and self._begun:
            yield NoWait(self._begun)


def _holder(span: Span) -> _Holder | None:
    """Return who held the job at the entry of the function; None if nobody did."""
    for owner in ("owner", "async_owner"):
        thread, api, since = (
            span.arguments.get(f"{owner}{what}") for what in ("", "_api", "_since_ms")
        )
        named = isinstance(api, str) and bool(api)
        if type(thread) is int and (thread or named) and thread != span.tid:
            told = api if named and isinstance(api, str) else "a call without a name"
            return _Holder(thread, told, since if type(since) is int and since else None)
    return None


def _longest(call: Call, span: Span) -> Exchange | None:
    """Return the command without a reply, or that whose reply took longest, during a wait."""
    during = [
        node
        for node in call.nodes()
        if isinstance(node, Exchange)
        and (node.reply is None or node.reply.t_ns > span.t_enter_ns)
        and (span.t_exit_ns is None or node.t_enter_ns < span.t_exit_ns)
    ]
    silent = [each for each in during if each.is_awaited]
    return (
        silent[-1] if silent else max(during, key=lambda each: each.duration_ns or 0, default=None)
    )


_CAUSES: Catalogue[JobCase] = Catalogue(Path(__file__).with_name("jobs.yaml"))
EXPLAINER = Explainer("jobs", _CAUSES, lambda _: _Reader())


@_CAUSES.condition("no-wait")
def _no_wait(case: JobCase) -> list[Evidence] | None:
    return [] if isinstance(case, NoWait) else None


@_CAUSES.condition("holder-without-thread")
def _holder_without_thread(case: JobCase) -> list[Evidence] | None:
    if isinstance(case, NoWait) or case.holder.thread:
        return None
    return [Evidence(f"libvirt recorded {case.holder.api} as owner, and 0 as its thread")]


@_CAUSES.condition("qemu-silent")
def _qemu_silent(case: JobCase) -> list[Evidence] | None:
    asked = _asked(case)
    # Where the holder's call has returned, it waits for nothing any more.
    if asked is None or not asked.is_awaited or _has_returned(case):
        return None
    return [Evidence(f"no reply came to {asked.command} {asked.id}", None, asked.send.seq)]


@_CAUSES.condition("qemu-slow")
def _qemu_slow(case: JobCase) -> list[Evidence] | None:
    asked = _asked(case)
    if asked is None or asked.duration_ns is None or isinstance(case, NoWait):
        return None
    if asked.duration_ns * 2 < case.longest_ns:
        return None
    return [Evidence(f"{asked.command} {asked.id}", None, asked.send.seq)]


def _has_returned(case: JobCase) -> bool:
    return isinstance(case, WaitCase) and case.busy is not None and not case.busy.root.unfinished


def _asked(case: JobCase) -> Exchange | None:
    return None if isinstance(case, NoWait) else case.asked


@_CAUSES.condition("holder-busy")
def _holder_busy(case: JobCase) -> list[Evidence] | None:
    if isinstance(case, NoWait) or case.busy is None:
        return None
    return [Evidence(f"call {case.busy.id} of the trace, of thread {case.holder.thread}")]


@_CAUSES.condition("holder-unknown")
def _holder_unknown(case: JobCase) -> list[Evidence] | None:
    if isinstance(case, NoWait) or case.busy is not None or not case.holder.thread:
        return None
    return [Evidence(f"libvirt recorded {case.holder.api} as owner, thread {case.holder.thread}")]


@_CAUSES.condition("unknown")
def _unknown(_: JobCase) -> list[Evidence]:
    return []
