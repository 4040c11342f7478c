"""What became of block jobs: commits, copies and pulls; texts in blockjobs.yaml."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from virtrace.analysis.explain.commands import AskingCase, arguments_of, commands_of, monitor_of
from virtrace.analysis.explain.messages import brief, no_return
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Node, Traced, events_in
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

# The functions that begin a job, and what it does.
_BEGIN = {
    "virDomainBlockCommit": "commit",
    "virDomainBlockPull": "pull",
    "virDomainBlockRebase": "rebase",
    "virDomainBlockCopy": "copy",
}
_END = "virDomainBlockJobAbort"
_PIVOT = 2
_COMMANDS = frozenset({"block-commit", "block-stream", "blockdev-mirror", "drive-mirror"})
_MOST_JOBS = 1000
_MOST_EVENTS = 100


@dataclass
class _Job:
    """What QEMU said of a job. statuses: in order. over_ns: when it ended. error: with which.

    is_cancelled: whether it ended because somebody asked QEMU to end it.

    began_ns: when QEMU made it; two jobs, one after the other, can have the same id.
    """

    began_ns: int

    statuses: list[str] = field(default_factory=list)
    over_ns: int | None = None
    error: str | None = None
    is_cancelled: bool = False
    events: list[Event] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.over_ns is not None


@dataclass(frozen=True)
class BlockJobCase(AskingCase):
    """One job, or one call that could not begin or end one.

    job: what QEMU said of it; None if the trace has nothing. ended_by: the call that ended it.
    """

    job: _Job | None = None
    ended_by: Call | None = None

    @property
    def kind(self) -> str:
        return _BEGIN.get(self.call.root.name, "abort")

    @property
    def pivots(self) -> bool:
        flags = self.ended_by.root.arguments.get("flags") if self.ended_by else None
        return type(flags) is int and bool(flags & _PIVOT)

    @property
    def subject(self) -> tuple[str, ...]:
        return _disk(self.call)

    @property
    def names(self) -> Mapping[str, Json]:
        found = super().names
        what = str(found["file"] or "an image")
        return {
            **found,
            "disk": self.subject[1],
            "kind": self.kind,
            "what": what,
            **self.refusal.names(what, "QEMU may not open"),
        }

    @cached_property
    def error(self) -> str | None:
        return super().error or brief(self.job.error if self.job else None)

    @property
    def facts(self) -> Sequence[Fact]:
        statuses = self.job.statuses if self.job else []
        by = f"{self.ended_by.root.name}, call {self.ended_by.id}" if self.ended_by else None
        return [
            *([Fact("QEMU's job", " -> ".join(dict.fromkeys(statuses)))] if statuses else []),
            *([Fact("ended by", by, "to pivot" if self.pivots else "to abort")] if by else []),
            *super().facts,
        ]

    @property
    def calls(self) -> Sequence[int | None]:
        ended = [self.ended_by.id] if self.ended_by else []
        return [self.call.id, *ended]


def _disk(call: Call) -> tuple[str, str]:
    domain, disk = (call.root.arguments.get(name) for name in ("domain", "disk"))
    return str(domain), str(disk)


class _Reader:
    """Events of a job can come before the call that began it has returned."""

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self._jobs: dict[tuple[str, str], list[_Job]] = {}
        self._made = 0
        self._begun: list[tuple[Call, tuple[str, str] | None]] = []
        self._ends: list[Call] = []

    def take(self, node: Node) -> Sequence[BlockJobCase]:
        for event in events_in(node):
            self._happened(event)
        if isinstance(node, Call):
            self._called(node)
        return ()

    def _called(self, call: Call) -> None:
        if call.root.name in _BEGIN and len(self._begun) < _MOST_JOBS:
            self._begun.append((call, _begun_by(call)))
        elif call.root.name == _END and len(self._ends) < _MOST_JOBS:
            self._ends.append(call)

    def _happened(self, event: Event) -> None:
        document = event.values.get("json")
        if event.role != roles.QMP_EVENT or not isinstance(document, dict):
            return
        name, data = document.get("event"), document.get("data")
        if not isinstance(data, dict):
            return
        id_ = data.get("id") if name == "JOB_STATUS_CHANGE" else data.get("device")
        key = str(event.values.get("mon")), str(id_)
        status = data.get("status")
        if key not in self._jobs or (name == "JOB_STATUS_CHANGE" and status == "created"):
            if self._made >= _MOST_JOBS:
                return
            self._made += 1
            self._jobs.setdefault(key, []).append(_Job(event.t_ns))
        job = self._jobs[key][-1]
        if len(job.events) < _MOST_EVENTS:
            job.events.append(event)
        if name == "JOB_STATUS_CHANGE" and len(job.statuses) < _MOST_EVENTS:
            job.statuses.append(str(status))
        elif name in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"):
            job.over_ns = event.t_ns
            job.is_cancelled = name == "BLOCK_JOB_CANCELLED"
            error = data.get("error")
            job.error = error if isinstance(error, str) else job.error

    def _job(self, call: Call, key: tuple[str, str] | None) -> _Job | None:
        """Return the job that a call began: the first of this id after the call did."""
        made = self._jobs.get(key, []) if key else []
        return next((job for job in made if job.began_ns >= call.root.t_enter_ns), None)

    def finish(self, end_ns: int) -> Iterator[BlockJobCase]:
        said = self._traced.failure
        cases = [BlockJobCase(call, said(call), self._job(call, key)) for call, key in self._begun]
        begun: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for index, case in enumerate(cases):
            if not case.call.failed:
                begun.setdefault(_disk(case.call), []).append((case.call.root.t_enter_ns, index))
        for of_disk in begun.values():
            of_disk.sort()
        for call in self._ends:
            of_disk = [] if call.failed else begun.get(_disk(call), [])
            # The last one that it can be about.
            before = of_disk[: bisect_right(of_disk, (call.root.t_enter_ns, len(cases)))]
            about = next((each for _, each in reversed(before) if _runs(cases[each], call)), None)
            if about is not None:
                cases[about] = replace(cases[about], ended_by=call)
        yield from cases
        yield from (BlockJobCase(call, said(call)) for call in self._ends if call.failed)


def _runs(case: BlockJobCase, call: Call) -> bool:
    """Whether the job of a case had not ended when a call began."""
    over = case.job.over_ns if case.job else None
    return over is None or over > call.root.t_enter_ns


def _begun_by(call: Call) -> tuple[str, str] | None:
    """Return monitor and id of the job that a call began."""
    for each in commands_of(call, *_COMMANDS):
        id_ = arguments_of(each).get("job-id")
        if isinstance(id_, str):
            return monitor_of(each.send), id_
    return None


_CAUSES: Catalogue[BlockJobCase] = Catalogue(Path(__file__).with_name("blockjobs.yaml"))
EXPLAINER = Explainer("block-jobs", _CAUSES, _Reader)


@_CAUSES.condition("incomplete")
def _incomplete(case: BlockJobCase) -> list[Evidence] | None:
    return no_return(case.call)


@_CAUSES.condition("no-permission")
def _no_permission(case: BlockJobCase) -> list[Evidence] | None:
    return case.failed_with(["Permission denied"])


@_CAUSES.condition("nothing-to-end")
def _nothing_to_end(case: BlockJobCase) -> list[Evidence] | None:
    return case.reasons if case.kind == "abort" else None


@_CAUSES.condition("refused")
def _refused(case: BlockJobCase) -> list[Evidence] | None:
    return case.reasons


@_CAUSES.condition("failed")
def _failed(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.job is not None and case.job.error is not None else None


@_CAUSES.condition("pivoted")
def _pivoted(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.pivots and _is_over(case) and not _is_cancelled(case) else None


@_CAUSES.condition("aborted")
def _aborted(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.ended_by and not case.pivots and _is_over(case) else None


@_CAUSES.condition("cancelled")
def _cancelled(case: BlockJobCase) -> list[Evidence] | None:
    unasked = case.ended_by is None or case.pivots
    return _last(case) if unasked and _is_over(case) and _is_cancelled(case) else None


@_CAUSES.condition("done")
def _done(case: BlockJobCase) -> list[Evidence] | None:
    by_itself = case.ended_by is None and not _is_cancelled(case)
    return _last(case) if by_itself and _is_over(case) else None


@_CAUSES.condition("ready")
def _ready(case: BlockJobCase) -> list[Evidence] | None:
    ready = case.job is not None and not case.job.is_over and "ready" in case.job.statuses
    return _last(case) if ready else None


@_CAUSES.condition("running")
def _running(case: BlockJobCase) -> list[Evidence] | None:
    runs = case.job is not None and not case.job.is_over and "ready" not in case.job.statuses
    return _last(case) if runs else None


def _is_over(case: BlockJobCase) -> bool:
    return case.job is not None and case.job.is_over and case.job.error is None


def _is_cancelled(case: BlockJobCase) -> bool:
    return case.job is not None and case.job.is_cancelled


def _last(case: BlockJobCase) -> list[Evidence]:
    events = case.job.events if case.job else []
    return [Evidence("the last event of the job", None, each.seq) for each in events[-1:]]


@_CAUSES.condition("unknown")
def _unknown(case: BlockJobCase) -> list[Evidence]:
    return []
