"""Which request failed, and what was done: each cause from events, and what its sentence claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from virtrace.analysis.explain.ioerrors import EXPLAINER, ErrorCase
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.spans import Point
from virtrace.report.explanation import fill_text
from virtrace.trace.format import Event, Json

START = "start of the coroutine+0x4b (qemu-system-x86_64)"
GUEST = "coroutine of blk_aio_pwritev+0x2b (qemu-system-x86_64)"
READER = "coroutine of blk_aio_preadv+0x2b (qemu-system-x86_64)"
MONITOR = "coroutine of blk_pwrite+0x1d (qemu-system-x86_64)"
COPY = "blk_co_pwritev+0x1c (qemu-system-x86_64)"
TABLES = "qcow2_cache_write+0x55 (qemu-system-x86_64)"
BETWEEN = ("qemu-system-x86_64+0x1", "bdrv_co_pwritev_part+0x2f0 (qemu-system-x86_64)")
HERE = "bdrv_co_pwritev_part+0x36e (qemu-system-x86_64)"
KNOWN = {"domain": "vm1", "disk": "vda", "is": "disk", "bus": "virtio"}
CUT = {"unavailable": "cannot read memory at 0x7f00"}
REPORT, IGNORE, ENOSPC, STOP = range(4)
IGNORED, REPORTED, STOPPED = range(3)


def failed(
    result: Json, *stack: Json, node: str = "n-storage", offset: int = 4096, name: str = "write"
) -> tuple[str, dict[str, Any]]:
    values = {"node": node, "offset": offset, "bytes": 512, "result": result}
    if name == "flush":
        del values["offset"], values["bytes"]
    return f"{name}.failed", {**values, "stack": [HERE, *stack]}


def both(result: int, *stack: Json, tid: int = 7, **more: Any) -> list[tuple[Any, ...]]:
    """Of a format and the storage below it."""
    inner, outer = failed(result, *BETWEEN, *stack, **more), failed(result, *stack, **more)
    outer[1]["node"] = "n-format"
    return [(*inner, tid), (*outer, tid)]


def decided(
    error: int, action: int, policy: Json, *, is_read: bool = False, node: Json = "n-format"
) -> tuple[str, dict[str, Any]]:
    values = {"node": node, "action": action, "error": error, "is_read": is_read}
    return "device.error", {**values, "on_read_error": policy, "on_write_error": policy}


def of_job(error: int, action: int, policy: int) -> tuple[str, dict[str, Any]]:
    values = {"job": "copy-vda", "on_error": policy, "is_read": 0, "error": error}
    return "job.error", {**values, "action": action}


PAUSED = ("guest.paused", {"state": 3})


def cases(*events: tuple[Any, ...]) -> Sequence[ErrorCase]:
    reader = EXPLAINER.reader(Traced(()))
    standing = [
        ("mark.standing", {"node": node, "mark": 0, "layer": node[2:], **KNOWN})
        for node in ("n-storage", "n-format")
    ]
    for seq, (name, values, *tid) in enumerate([*standing, *events]):
        thread = tid[0] if tid else 7
        event = Event("point", seq, seq * 1000, thread, name, None, None, None, values, None, name)
        assert [*reader.take(Point(event))] == []
    return [*reader.finish(len(events) * 1000)]


def answers(*events: tuple[Any, ...]) -> list[tuple[str, str]]:
    found = []
    for case in cases(*events):
        finding, *_ = EXPLAINER.causes.find(case)
        found.append((finding.cause.name, fill_text(finding.cause.says, case)))
    return found


WRITE = "a write of 512 bytes at 4,096 by the guest through virtio-blk failed with"


@pytest.mark.parametrize(
    ("error", "action", "policy", "cause", "said"),
    [
        (28, STOPPED, ENOSPC, "full", "QEMU paused the guest, as its policy is enospc."),
        (28, STOPPED, STOP, "full", "QEMU paused the guest, as its policy is stop."),
        (28, REPORTED, REPORT, "full", "QEMU reported it to the guest, as its policy is report."),
        (5, REPORTED, ENOSPC, "device", "reported it to the guest, as its policy is enospc."),
        (5, IGNORED, IGNORE, "device", "the guest that it did not fail, as its policy is ignore."),
        (1, STOPPED, STOP, "not-permitted", "EPERM (operation not permitted); QEMU paused"),
        (30, STOPPED, STOP, "not-permitted", "EROFS (read-only file system); QEMU paused"),
        (110, STOPPED, STOP, "failed", "ETIMEDOUT (connection timed out); QEMU paused"),
        (4000, STOPPED, STOP, "failed", "failed with error 4000; QEMU paused"),
        (5, REPORTED, CUT, "device", "QEMU reported it to the guest; its policy is not known."),
        # Not what QEMU does by these policies.
        (5, STOPPED, ENOSPC, "contradiction", "and what QEMU did is not what its policy demands."),
        (28, IGNORED, STOP, "contradiction", "and what QEMU did is not what its policy demands."),
    ],
)
def test_what_was_done(error: int, action: int, policy: Json, cause: str, said: str) -> None:
    ((name, text),) = answers(*both(-error, GUEST, START), decided(error, action, policy))
    assert name == cause
    assert WRITE in text
    assert said in text
    assert "vda" in text


def test_the_innermost_node_is_where_it_began() -> None:
    (case,) = cases(*both(-28, GUEST, START), decided(28, STOPPED, ENOSPC), PAUSED)
    assert case.subject == ("vm1", "vda", "n-storage")
    assert [(fact.name, fact.value) for fact in case.facts] == [
        *(("failed", -28), ("failed", -28), ("action", 2), ("paused", 3))
    ]
    assert "1,000 ns later" not in case.facts[0].meaning
    assert case.facts[-1].meaning.endswith("stopped 2,000 ns later")


def test_requests_of_two_threads_are_told_apart() -> None:
    (inner, outer), (other, around) = (
        both(-28, GUEST, START, tid=tid, offset=tid * 512) for tid in (7, 8)
    )
    decision = decided(28, REPORTED, REPORT)
    (case,) = cases(inner, other, around, outer, decision, decision)
    assert case.times == 2
    assert [event.tid for event in case.first.events] == [7, 7]
    assert case.facts[-1].value == 2


def test_what_differs_is_told_apart() -> None:
    found = answers(
        *both(-28, GUEST, START),
        decided(28, REPORTED, REPORT),
        *both(-5, READER, START, name="read"),
        decided(5, STOPPED, STOP, is_read=True),
        *both(-28, MONITOR, START),
    )
    assert [name for name, _ in found] == ["full", "device", "full"]
    assert "a read of 512 bytes at 4,096 by the guest through virtio-blk" in found[1][1]
    assert "by QEMU's main thread failed" in found[2][1]
    assert found[2][1].endswith(
        "no policy of a disk or a job decided: the error went to where it came from."
    )


def test_a_job_decides_by_its_own_policy() -> None:
    write = failed(-28, COPY, START, node="other")
    guests = both(-28, GUEST, START)
    found = answers(*guests, write, of_job(28, REPORTED, REPORT), decided(28, STOPPED, ENOSPC))
    assert [text.partition("failed with")[0] for _, text in found] == [
        "The image of vda is on a file system or device that is full: "
        "a write of 512 bytes at 4,096 by the guest through virtio-blk ",
        "The image of node other is on a file system or device that is full: "
        "a write of 512 bytes at 4,096 by the block job copy-vda ",
    ]
    assert found[1][1].endswith("the block job copy-vda failed, as the job's policy is report.")


def test_jobs_that_fail_at_once_are_not_mixed_up() -> None:
    writes = [failed(-28, COPY, START, node=node) for node in ("one", "other")]
    second = ("job.error", {**of_job(28, REPORTED, REPORT)[1], "job": "copy-vdb"})
    found = answers(*writes, of_job(28, REPORTED, REPORT), second)
    assert len(found) == 2
    for _, text in found:
        assert text.endswith(
            "it is not certain which of the block jobs decided about it: copy-vda, copy-vdb."
        )
    # One of the monitor is none of a job.
    monitors = failed(-28, MONITOR, START, node="monitors")
    found = answers(monitors, writes[0], of_job(28, REPORTED, REPORT))
    assert "by the block job copy-vda failed" in found[1][1]


def test_the_event_is_of_what_was_decided_last() -> None:
    sent: tuple[str, dict[str, Any]] = ("device.error.sent", {})
    (case,) = cases(*both(-28, GUEST, START), decided(28, STOPPED, ENOSPC), sent, PAUSED)
    assert [fact.name for fact in case.facts] == ["failed", "failed", "action", "event", "paused"]
    (case,) = cases(*both(-28, GUEST, START), decided(28, STOPPED, ENOSPC), (*sent, 8))
    assert "event" not in [fact.name for fact in case.facts]


def test_qcow2_writes_its_own_tables() -> None:
    ((name, text),) = answers(failed(-28, TABLES, COPY, START))
    assert name == "full"
    assert "a write of 512 bytes at 4,096 by qcow2 for its own tables failed" in text
    inner, outer = failed(-28, TABLES, *BETWEEN, GUEST, START), failed(-28, GUEST, START)
    outer[1]["node"] = "n-format"
    ((_, text),) = answers(inner, outer, decided(28, STOPPED, ENOSPC))
    assert "by the guest through virtio-blk, for which qcow2 wrote its own tables, failed" in text


def test_a_flush_has_no_place() -> None:
    ((_, text),) = answers(failed(-28, MONITOR, START, name="flush"))
    assert "is full: a flush by QEMU's main thread failed with ENOSPC" in text


def test_the_request_above_did_not_fail() -> None:
    ((_, text),) = answers(failed(-5, *BETWEEN, GUEST, START))
    assert text.endswith("the request that it was made for did not fail.")


def test_what_is_done_in_another_way_is_no_failure() -> None:
    assert answers(failed(-95, COPY, START)) == []
    ((name, _),) = answers(failed(-95, GUEST, START, node="n-format"), decided(95, REPORTED, 2))
    assert name == "failed"


def test_a_request_that_was_not_seen() -> None:
    assert answers(decided(5, REPORTED, REPORT)) == [
        (
            "unseen",
            "vda: a request that is not in the trace failed with EIO (input/output error); "
            "QEMU reported it to the guest, as its policy is report.",
        )
    ]


def test_a_node_that_is_unavailable_may_be_the_same() -> None:
    ((name, text),) = answers(*both(-28, GUEST, START), decided(28, STOPPED, 2, node=CUT))
    assert name == "full"
    assert text.endswith("QEMU paused the guest, as its policy is enospc.")


def test_an_error_without_a_number() -> None:
    ((name, text),) = answers(failed(CUT, GUEST, START))
    assert name == "unknown"
    assert text.startswith("vda: a write of 512 bytes at 4,096 by the guest")


def test_hostile_events() -> None:
    odd: list[Json] = [None, True, "x", [], {}, CUT, -(1 << 70), 0.5]
    events = [
        (name, dict.fromkeys((*values, "job", "stack"), one))
        for one in odd
        for name, values in (failed(-5), decided(5, 1, 0), of_job(5, 1, 0), PAUSED)
    ]
    for case in cases(*events):
        finding, *_ = EXPLAINER.causes.find(case)
        assert fill_text(finding.cause.says, case)
        assert case.subject
        assert case.facts is not None
