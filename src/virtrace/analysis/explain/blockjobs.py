"""What became of block jobs: commits, copies and pulls; texts in blockjobs.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.analysis.explain import model
from virtrace.analysis.explain.commands import refusal
from virtrace.analysis.explain.messages import (
    UNSEEN,
    brief,
    errors_of,
    no_return,
    path_in,
    said,
)
from virtrace.analysis.explain.model import Catalogue, Explainer, Fact, Node, Traced
from virtrace.analysis.explain.refusals import Refusal
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call, Point
from virtrace.trace import roles
from virtrace.trace.format import Event, FailureRecord, Json

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

    began_ns: when QEMU made it; two jobs, one after the other, can have the same id.
    """

    began_ns: int

    statuses: list[str] = field(default_factory=list)
    over_ns: int | None = None
    error: str | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.over_ns is not None


@dataclass
class BlockJobCase(model.Case):
    """One job, or one call that could not begin or end one.

    job: what QEMU said of it; None if the trace has nothing. ended_by: the call that ended it.
    said: by the host, as the call failed.
    """

    call: Call
    job: _Job | None = None
    ended_by: Call | None = None
    said: FailureRecord | None = None

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
        domain, disk = _disk(self.call)
        error, file = self.error, path_in(self.error)
        return {
            "domain": domain,
            "disk": disk,
            "kind": self.kind,
            "error": error or UNSEEN,
            "file": file,
            "what": file or "an image",
            **self.refusal.names(file or "an image", "QEMU may not open"),
        }

    @property
    def error(self) -> str | None:
        return brief(said(errors_of(self.call)) or (self.job.error if self.job else None))

    @property
    def refusal(self) -> Refusal:
        return Refusal(self.said, self.error)

    @property
    def note(self) -> str | None:
        return self.refusal.note if self.call.failed else None

    @property
    def key(self) -> object:
        return self.call.id

    @property
    def facts(self) -> Sequence[Fact]:
        statuses = self.job.statuses if self.job else []
        by = f"{self.ended_by.root.name}, call {self.ended_by.id}" if self.ended_by else None
        return [
            *([Fact("QEMU's job", " -> ".join(dict.fromkeys(statuses)))] if statuses else []),
            *([Fact("ended by", by, "to pivot" if self.pivots else "to abort")] if by else []),
            *self.refusal.facts,
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
        if isinstance(node, Call):
            for each in node.nodes():
                if isinstance(each, Point):
                    self._happened(each.event)
            self._called(node)
        elif isinstance(node, Point):
            self._happened(node.event)
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
            error = data.get("error")
            job.error = error if isinstance(error, str) else job.error

    def _job(self, call: Call, key: tuple[str, str] | None) -> _Job | None:
        """Return the job that a call began: the first of this id after the call did."""
        made = self._jobs.get(key, []) if key else []
        return next((job for job in made if job.began_ns >= call.root.t_enter_ns), None)

    def finish(self, end_ns: int) -> Iterator[BlockJobCase]:
        said = self._traced.failure
        cases = [
            BlockJobCase(call, self._job(call, key), said=said(call)) for call, key in self._begun
        ]
        for call in self._ends:
            # The last one that it can be about.
            about = None if call.failed else next(filter(_ended(call), reversed(cases)), None)
            if about is not None:
                about.ended_by = call
        yield from cases
        yield from (BlockJobCase(call, said=said(call)) for call in self._ends if call.failed)


def _ended(call: Call) -> Callable[[BlockJobCase], bool]:
    """Return whether a call that ends a job can have ended that of a case."""

    def condition(case: BlockJobCase) -> bool:
        began, ends = case.call.root, call.root
        if case.call.failed or began.t_enter_ns > ends.t_enter_ns:
            return False
        over = case.job.over_ns if case.job else None
        return _disk(case.call) == _disk(call) and (over is None or over > ends.t_enter_ns)

    return condition


def _begun_by(call: Call) -> tuple[str, str] | None:
    """Return monitor and id of the job that a call began."""
    for node in call.nodes():
        if isinstance(node, Exchange) and node.command in _COMMANDS:
            arguments = node.send.values["json"].get("arguments")
            id_ = arguments.get("job-id") if isinstance(arguments, dict) else None
            if isinstance(id_, str):
                return str(node.send.values.get("mon")), id_
    return None


_CAUSES: Catalogue[BlockJobCase] = Catalogue(Path(__file__).with_name("blockjobs.yaml"))
EXPLAINER = Explainer("block-jobs", frozenset({*_BEGIN, _END}), _CAUSES, _Reader)


@_CAUSES.condition("incomplete")
def _incomplete(case: BlockJobCase) -> list[Evidence] | None:
    return no_return(case.call)


@_CAUSES.condition("no-permission")
def _no_permission(case: BlockJobCase) -> list[Evidence] | None:
    denied = "Permission denied" in (case.error or "")
    return _refused(case) if denied else None


@_CAUSES.condition("nothing-to-end")
def _nothing_to_end(case: BlockJobCase) -> list[Evidence] | None:
    return refusal(case.call) if case.kind == "abort" else None


@_CAUSES.condition("refused")
def _refused(case: BlockJobCase) -> list[Evidence] | None:
    said = refusal(case.call)
    return None if said is None else [*said, *case.refusal.evidence]


@_CAUSES.condition("failed")
def _failed(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.job is not None and case.job.error is not None else None


@_CAUSES.condition("pivoted")
def _pivoted(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.pivots and _is_over(case) else None


@_CAUSES.condition("aborted")
def _aborted(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.ended_by and not case.pivots and _is_over(case) else None


@_CAUSES.condition("done")
def _done(case: BlockJobCase) -> list[Evidence] | None:
    return _last(case) if case.ended_by is None and _is_over(case) else None


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


def _last(case: BlockJobCase) -> list[Evidence]:
    events = case.job.events if case.job else []
    return [Evidence("the last event of the job", None, each.seq) for each in events[-1:]]


@_CAUSES.condition("unknown")
def _unknown(case: BlockJobCase) -> list[Evidence]:
    return []
