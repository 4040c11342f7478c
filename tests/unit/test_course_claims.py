"""No sentence on what became of something contradicts it: explanations of generated courses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import samples
from tests.unit.test_explainers import Guest
from virtrace.analysis.explain.model import Explanation
from virtrace.analysis.explain.trace import explain_trace
from virtrace.report.explanation import answer
from virtrace.trace import roles
from virtrace.trace.reader import Trace

MOST = settings(max_examples=150, deadline=None)
ERROR = "Requested operation is not valid: something new"


def first(each: Explanation[Any]) -> str:
    return each.findings[0].cause.name


def explained_by(
    explainer: str, recorder: samples.Recorder, read: Mapping[str, str | None] | None = None
) -> list[Explanation[Any]]:
    """What one explainer says. read: role by probe; of any other, it is what the name implies."""
    names = {each.name: roles.of_point(each.name) for each in recorder.events} | {**(read or {})}
    like = samples.HEADER["probes"][0]
    probes = [{**like, "name": name, "kind": "span", "role": role} for name, role in names.items()]
    header: Any = {**samples.HEADER, "probes": probes}
    found = [
        each
        for each in explain_trace(Trace(header, recorder.events), "t")
        if each.explainer == explainer
    ]
    for each in found:
        assert "None" not in answer(each)
    return found


# Block jobs


@dataclass(frozen=True)
class Job:
    """A block job. end: of QEMU. asked: flags of the call that ends it, and whether it succeeds."""

    begins: bool
    is_ready: bool
    end: Optional[str]  # noqa: UP045
    asked: Optional[tuple[int, bool]]  # noqa: UP045
    has_events: bool

    @property
    def cause(self) -> str:
        if not self.begins:
            return "refused"
        if not self.has_events:
            return "unknown"
        ended = self.asked is not None and self.asked[1]
        pivots = ended and self.asked is not None and bool(self.asked[0] & 2)
        if self.end is None:
            return "ready" if self.is_ready else "running"
        if self.end == "error":
            return "failed"
        if self.end == "BLOCK_JOB_CANCELLED":
            return "aborted" if ended and not pivots else "cancelled"
        return "pivoted" if pivots else "aborted" if ended else "done"


JOBS = st.builds(
    Job,
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED", "error"]),
    st.one_of(st.none(), st.tuples(st.sampled_from([0, 1, 2, 3]), st.booleans())),
    st.booleans(),
)


class Disk:
    """A disk and its jobs, one after the other."""

    def __init__(self) -> None:
        self.recorder = samples.Recorder()

    def event(self, name: str, **data: Any) -> None:
        values = {"mon": samples.MON, "json": {"event": name, "data": data}, "text": "{}"}
        self.recorder.add("point", "qmp.event", tid=99, values=values)

    def call(self, name: str, number: int, flags: int, succeeds: bool) -> None:
        span = self.recorder.new_span()
        place: dict[str, Any] = {"span": span, "call": span}
        values = {"domain": "vm1", "disk": "vda", "flags": flags}
        self.recorder.add("enter", name, values=values, **place)
        if not succeeds:
            error = {"code": 55, "message": ERROR}
            self.recorder.add("point", "error", values=error, parent=span, call=span)
        elif name == "virDomainBlockCommit":
            sent, received = samples.qmp("block-commit", number, {}, **{"job-id": "job"})
            self.recorder.add("point", "qmp.send", values=sent, parent=span, call=span)
            self.recorder.add("point", "qmp.reply", values=received, parent=span, call=span)
        self.recorder.add("exit", name, values={"result": 0 if succeeds else -1}, **place)

    def run(self, number: int, job: Job) -> None:
        self.call("virDomainBlockCommit", number, 4, job.begins)
        runs = job.begins and job.has_events
        if runs:
            self.event("JOB_STATUS_CHANGE", id="job", status="created")
            if job.is_ready:
                self.event("JOB_STATUS_CHANGE", id="job", status="ready")
        if job.asked is not None:
            flags, succeeds = job.asked
            self.call("virDomainBlockJobAbort", number, flags, succeeds and job.begins)
        if runs and job.end == "error":
            self.event("BLOCK_JOB_COMPLETED", device="job", error="No space left on device")
        elif runs and job.end is not None:
            self.event(job.end, device="job")


@MOST
@given(st.lists(JOBS, min_size=1, max_size=4))
def test_what_is_said_of_block_jobs_is_true(jobs: list[Job]) -> None:
    # The next job of a disk can begin only when there is none.
    ends = [number for number, job in enumerate(jobs) if job.cause in ("ready", "running")]
    jobs = jobs[: ends[0] + 1] if ends else jobs
    # Without events, a job that runs on cannot be told from one that has ended.
    silent = [number for number, job in enumerate(jobs) if job.cause == "unknown"]
    jobs = jobs[: silent[0] + 1] if silent else jobs
    disk = Disk()
    for number, job in enumerate(jobs):
        disk.run(number, job)
    found = explained_by("block-jobs", disk.recorder)
    vain = [job for job in jobs if job.asked and not (job.asked[1] and job.begins)]
    assert [first(each) for each in found] == [
        *(job.cause for job in jobs),
        *["nothing-to-end"] * len(vain),
    ]


# Calls of clients


@dataclass(frozen=True)
class Asked:
    """A client's call. ms: until it returns; None: it does not. error: message of its failure."""

    procedure: str
    queued_ms: int
    ms: Optional[int]  # noqa: UP045
    error: Optional[str]  # noqa: UP045


CALLS = st.builds(
    Asked,
    st.sampled_from(["DomainSave", "DomainGetState"]),
    st.sampled_from([0, 1, 99, 100, 500]),
    st.one_of(st.none(), st.integers(0, 5000)),
    st.sampled_from([None, "no reply", "other", ""]),
)


def calls_of(asked: list[Asked], unserved: int) -> samples.Recorder:
    recorder = samples.Recorder()

    def add(ms: int, kind: str, name: str, **rest: Any) -> None:
        recorder.add(kind, name, **rest)
        recorder.events[-1] = recorder.events[-1]._replace(t_ns=ms * 1_000_000)

    at = 0
    for serial, one in enumerate(asked):
        span = recorder.new_span()
        inside: dict[str, Any] = {"call": span, "parent": span, "tid": 10 + serial}
        own: dict[str, Any] = {"span": span, "call": span, "tid": 10 + serial}
        values = {"client": "0x1", "program": 1, "procedure": 5, "serial": serial}
        add(at, "point", "rpc.received", values={**values, "type": 0})
        at += one.queued_ms
        add(at, "enter", "dispatch", values=values, role=roles.RPC_CALL, **own)
        name = {"name": f"remoteDispatch{one.procedure}"}
        add(at, "point", "rpc.procedure", values=name, **inside)
        if one.ms is None:
            continue
        at += one.ms
        if one.error is not None:
            if one.error:
                message = {"code": 1, "message": one.error}
                add(at, "point", "error", values=message, **inside)
            add(at, "point", "rpc.reply", values={"status": 1}, **inside)
        add(at, "exit", "dispatch", values={"result": 0}, **own)
    for serial in range(unserved):
        values = {"client": "0x2", "program": 1, "procedure": 5, "serial": serial, "type": 0}
        add(at, "point", "rpc.received", values=values)
    return recorder


@MOST
@given(st.lists(CALLS, max_size=6), st.integers(0, 2))
def test_what_is_said_of_calls_is_true(asked: list[Asked], unserved: int) -> None:
    found = explained_by("clients", calls_of(asked, unserved), {"dispatch": roles.RPC_CALL})
    by_cause: dict[str, list[Explanation[Any]]] = {}
    for each in found:
        by_cause.setdefault(first(each), []).append(each)
    counts = {name: sum(each.case.count for each in cases) for name, cases in by_cause.items()}
    ended = [one for one in asked if one.ms is not None]
    failed = Counter((one.procedure, one.error) for one in ended if one.error is not None)
    truth = {
        "unserved": unserved,
        "running": len(asked) - len(ended),
        "delayed": sum(one.queued_ms >= 100 for one in asked),
        "failed": sum(failed.values()),
        "well": len(asked) if ended else 0,
    }
    assert counts == {name: count for name, count in truth.items() if count}
    assert len(by_cause.get("failed", [])) == len(failed)
    for each in by_cause.get("well", []):
        assert each.case.worst_ns == max(one.ms or 0 for one in ended) * 1_000_000


# Who waits for whom


@dataclass(frozen=True)
class Holder:
    """A call that holds a job. answers, returns: whether QEMU answers, and the call returns."""

    answers: bool
    returns: bool


@MOST
@given(
    st.builds(Holder, st.booleans(), st.booleans()),
    st.lists(st.sampled_from([0, -1, None]), min_size=1, max_size=4),
)
def test_what_is_said_of_waits_is_true(
    holder: Holder,
    results: list[Optional[int]],  # noqa: UP045
) -> None:
    recorder = samples.Recorder()
    held = recorder.new_span()
    own: dict[str, Any] = {"span": held, "call": held, "tid": 7}
    recorder.add("enter", "virDomainGetBlockInfo", values={"domain": "vm1"}, **own)
    sent, received = samples.qmp("query-block", 1, [])
    recorder.add("point", "qmp.send", values=sent, parent=held, call=held, tid=7)
    spans = []
    for number in range(len(results)):
        call, span = recorder.new_span(), recorder.new_span()
        tid = 10 + number
        recorder.add("enter", "virDomainSuspend", span=call, call=call, tid=tid, values={})
        owner = {"obj": "0x1", "job": 1, "owner": 7, "owner_api": "remoteDispatchDomainSave"}
        place: dict[str, Any] = {"span": span, "parent": call, "call": call, "tid": tid}
        recorder.add("enter", "virDomainObjBeginJob", values=owner, role=roles.LOCK, **place)
        spans.append((call, place))
    if holder.answers:
        recorder.add("point", "qmp.reply", values=received, parent=held, call=held, tid=99)
    if holder.returns:
        recorder.add("exit", "virDomainGetBlockInfo", values={"result": 0}, **own)
    for (call, place), result in zip(spans, results):
        if result is not None:
            values = {"result": result}
            recorder.add("exit", "virDomainObjBeginJob", values=values, **place)
            recorder.add(
                "exit", "virDomainSuspend", values=values, span=call, call=call, tid=place["tid"]
            )
    [one] = explained_by("jobs", recorder, {"virDomainObjBeginJob": roles.LOCK})
    sentence = answer(one)
    assert one.case.count == len(results)
    assert one.case.open == results.count(None)
    assert sentence.startswith(f"{len(results)} call{'s' if len(results) > 1 else ''} (")
    assert (" still wait" in sentence) == (results.count(None) == len(results))
    assert (" gave up " in sentence) == (results.count(-1) == len(results))
    # It waits for QEMU as long as it has neither its answer nor returned.
    waits = "which waits for QEMU to answer" in sentence
    assert waits == (not holder.answers and not holder.returns)
    if first(one) == "qemu-slow":
        assert holder.answers


# Ends of guests

PAUSE, RESUME, STOP, SHUTDOWN, CRASH, START = 3, 4, 5, 6, 8, 2
Happens = Callable[[Guest], None]
STEPS: dict[str, Happens] = {
    "suspended": lambda guest: guest.libvirt(PAUSE, 0),
    "io-error": lambda guest: guest.libvirt(PAUSE, 2),
    "watchdog": lambda guest: guest.libvirt(PAUSE, 3),
    "resumed": lambda guest: guest.libvirt(RESUME, 0),
    "crashed": lambda guest: guest.libvirt(CRASH, 0),
    "shut down": lambda guest: guest.libvirt(SHUTDOWN, 1),
    "stopped": lambda guest: guest.libvirt(STOP, 0),
    "failed": lambda guest: guest.libvirt(STOP, 5),
    "started": lambda guest: guest.libvirt(START, 0),
    "SHUTDOWN by guest": lambda guest: guest.qemu("SHUTDOWN", guest=True, reason="guest-shutdown"),
    "SHUTDOWN by signal": lambda guest: guest.qemu("SHUTDOWN", guest=False, reason="host-signal"),
    "SHUTDOWN by QMP": lambda guest: guest.qemu("SHUTDOWN", guest=False, reason="host-qmp-quit"),
    "panic": lambda guest: guest.qemu("GUEST_PANICKED", action="pause"),
    "asked": lambda guest: guest.call("DomainShutdown"),
    "commanded": lambda guest: guest.call("DomainMonitorCommand"),
}
# What must have happened for a sentence, at any time before.
NEEDED = {
    "panic": {"panic", "crashed"},
    "io-error": {"io-error"},
    "watchdog": {"watchdog"},
    "guest-was-asked": {"asked"},
    "by-guest": {"SHUTDOWN by guest"},
    "by-signal": {"SHUTDOWN by signal"},
    "by-qmp": {"SHUTDOWN by QMP"},
    "after-command": {"commanded"},
    "without-a-word": {"failed"},
    "paused-by-qemu": {"suspended"},
    "unknown": {"stopped", "shut down"},
}


@MOST
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8))
def test_what_is_said_of_ends_is_true(steps: list[str]) -> None:
    guest = Guest()
    for step in steps:
        STEPS[step](guest)
    found = explained_by("ends", guest.recorder, {"guest.lifecycle": roles.GUEST_LIFECYCLE})
    became = [each for each in guest.recorder.events if each.name == "guest.lifecycle"]
    types = Counter(each.values["type"] for each in became)
    assert len([each for each in found if each.case.done == "paused"]) <= types[PAUSE]
    assert len(found) >= max(types[STOP], min(1, types[SHUTDOWN] + types[CRASH]))
    told: list[int] = []
    for each in found:
        last = each.case.last
        told += [one.seq for one in each.case.told]
        happened = {
            step
            for step, event in zip(steps_of(guest), guest.recorder.events)
            if event.seq <= last.seq
        }
        assert NEEDED[first(each)] & happened, (first(each), steps)
        kinds = {one.values["type"] for one in each.case.told}
        if each.case.done == "paused":
            assert kinds == {PAUSE}
        if first(each) == "unknown" and each.case.done == "ended":
            assert kinds & {STOP, SHUTDOWN}
        # What ended it came after the last end.
        for one in each.case.qemu:
            begun, ended = one.seq, each.case.told[0].seq
            between = [other.values["type"] for other in became if begun < other.seq < ended]
            assert STOP not in between
    # Each end is told of once.
    assert len(told) == len(set(told))


def steps_of(guest: Guest) -> list[str]:
    """The step of each event: calls are more than one."""
    found = []
    for event in guest.recorder.events:
        values = event.values
        if event.name == "qmp.event":
            document = json.loads(values["text"])
            reason = document["data"].get("reason")
            ways = {"guest-shutdown": "guest", "host-signal": "signal", "host-qmp-quit": "QMP"}
            found.append("panic" if reason is None else f"SHUTDOWN by {ways[reason]}")
        elif event.name == "guest.lifecycle":
            by_type = {
                **{RESUME: "resumed", CRASH: "crashed", SHUTDOWN: "shut down", START: "started"},
                PAUSE: {0: "suspended", 2: "io-error", 3: "watchdog"}.get(values["detail"], ""),
                STOP: "failed" if values["detail"] == 5 else "stopped",
            }
            found.append(by_type[values["type"]])
        else:
            names = {"remoteDispatchDomainShutdown": "asked"}
            names["remoteDispatchDomainMonitorCommand"] = "commanded"
            found.append(names.get(values.get("name", ""), ""))
    return found


# Starts of guests


@MOST
@given(
    st.sampled_from([None, "qemuProcessPrepareHost", "qemuProcessLaunch"]),
    st.lists(st.sampled_from(["one", "two", "is already running"]), max_size=2),
    st.lists(st.sampled_from(["three", "Permission denied"]), max_size=2),
    st.booleans(),
)
def test_what_is_said_of_starts_is_true(
    failed: Optional[str],  # noqa: UP045
    errors: list[str],
    of_cleanup: list[str],
    returns: bool,
) -> None:
    """A start fails in a step, or in none; errors of a start that went well were got over."""
    recorder = samples.Recorder()
    call = recorder.new_span()
    own: dict[str, Any] = {"span": call, "call": call}
    inside: dict[str, Any] = {"parent": call, "call": call}
    recorder.add("enter", "virDomainCreate", values={"domain": "vm1"}, **own)

    def step(name: str, result: int, messages: list[str]) -> None:
        span = recorder.new_span()
        recorder.add("enter", name, span=span, **inside)
        for text in messages:
            values = {"code": 1, "message": text}
            recorder.add("point", "error", values=values, parent=span, call=call)
        recorder.add("exit", name, span=span, values={"result": result}, **inside)

    for name in ("qemuProcessPrepareHost", "qemuProcessLaunch"):
        step(name, -1 if name == failed else 0, errors if name == (failed or name) else [])
        if name == failed:
            step("qemuProcessStop", 0, of_cleanup)
            break
    if returns:
        recorder.add("exit", "virDomainCreate", values={"result": -1 if failed else 0}, **own)
    [one] = explained_by("starts", recorder)
    sentence = answer(one)
    assert (first(one) == "started") == (returns and not failed)
    assert (first(one) == "incomplete") == (not returns)
    told = [*errors[-1:], *(of_cleanup[-1:] if not errors else [])]
    if returns and failed and told:
        assert sentence.rstrip(".").endswith(told[0]), sentence
    elif returns and failed:
        assert first(one) == "unknown"
    marked = [fact.meaning for fact in one.case.facts if fact.meaning.endswith(" failed")]
    assert marked == ([f"{failed} failed"] if failed else [])
