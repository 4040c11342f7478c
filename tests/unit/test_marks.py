"""Which write raised a high-water mark: each cause from events, and what its sentence claims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from virtrace.analysis.explain.marks import EXPLAINER, MarkCase
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.spans import Point
from virtrace.report.explanation import fill_text
from virtrace.trace.format import Event, Json

START = "start of the coroutine+0x4b (qemu-system-x86_64)"
GUEST = "coroutine of blk_aio_pwritev+0x2b (qemu-system-x86_64)"
JOB = "coroutine of job_start+0x7f (qemu-system-x86_64)"
MONITOR = "coroutine of blk_pwrite+0x1d (qemu-system-x86_64)"
TASK = "coroutine of aio_task_pool_start_task+0xb (qemu-system-x86_64)"
TABLES = "qcow2_cache_write+0x55 (qemu-system-x86_64)"
COPY = "blk_co_pwritev+0x1c (qemu-system-x86_64)"
CUT = {"unavailable": "cannot read memory at 0x7f00"}


def standing(mark: int, node: str = "n-storage", **more: Json) -> dict[str, Any]:
    return {"node": node, "mark": mark, **more}


def raised(
    was: int, offset: int, size: int, *stack: Json, node: str = "n-storage", mark: int | None = None
) -> dict[str, Any]:
    end = offset + size if mark is None else mark
    values = {"node": node, "mark": end, "offset": offset, "bytes": size}
    return {**values, "was": was, "rises": 1, "stack": ["bdrv_set_dirty+0x8 (q)", *stack]}


def cases(*events: dict[str, Any]) -> Sequence[MarkCase]:
    reader = EXPLAINER.reader(Traced(()))
    for seq, values in enumerate(events):
        name = "mark.raised" if "offset" in values else "mark.standing"
        event = Event("point", seq, seq * 1000, 7, name, None, None, None, values, None, name)
        assert [*reader.take(Point(event))] == []
    return [*reader.finish(len(events) * 1000)]


def names(case: MarkCase) -> list[str]:
    return [finding.cause.name for finding in EXPLAINER.causes.find(case)]


@pytest.mark.parametrize(
    ("stack", "cause"),
    [
        ((GUEST, START), "by-guest"),
        ((TABLES, GUEST, START), "by-qcow2"),
        ((JOB, START), "by-job"),
        ((TABLES, JOB, START), "by-qcow2"),
        ((MONITOR, START), "by-main-thread"),
        ((TASK, START), "by-task"),
        # An export of QEMU 5.2, in whose coroutine this is a plain call.
        ((MONITOR, COPY, START), "by-qemu"),
        ((GUEST, CUT), "unknown"),
        ((COPY, START), "by-qemu"),
        ((COPY, CUT), "unknown"),
        ((), "unknown"),
    ],
)
def test_the_stack_tells_who_wrote(stack: tuple[Json, ...], cause: str) -> None:
    (case,) = cases(standing(0), raised(0, 4096, 512, *stack), standing(4608))
    assert names(case) == [cause]


def test_a_stack_that_is_unavailable_tells_nothing() -> None:
    event = {**raised(0, 0, 512), "stack": {"unavailable": "the kernel said so"}}
    (case,) = cases(standing(0), event, standing(512))
    assert names(case) == ["unknown"]


def test_the_last_write_decides() -> None:
    first, last = raised(0, 0, 512, JOB, START), raised(512, 8192, 512, GUEST, START)
    (case,) = cases(
        standing(0), first, last, standing(8704, domain="vm1", disk="vda", **{"is": "disk"})
    )
    assert names(case) == ["by-guest"]
    (finding,) = EXPLAINER.causes.find(case)
    said = fill_text(finding.cause.says, case)
    assert said.startswith(
        "The mark of node n-storage is 8.500 KiB because the guest wrote 512 bytes"
    )
    assert json.dumps([fact.meaning for fact in case.facts]).count("by a write of 512 bytes") == 2


def test_the_device_and_the_content_are_named() -> None:
    write = {**raised(0, 512, 512, GUEST, START), "content": "a GPT header"}
    known = {"domain": "vm1", "disk": "vda", "is": "disk", "bus": "virtio"}
    (case,) = cases(standing(0, **known), write, standing(1024, **known))
    (finding,) = EXPLAINER.causes.find(case)
    assert fill_text(finding.cause.says, case).startswith(
        "The mark of vda is 1.000 KiB because the guest wrote 512 bytes at 512 bytes "
        "(a GPT header) through virtio-blk, 1"
    )
    assert case.facts[-1].meaning.endswith("by the guest: a GPT header")


@pytest.mark.parametrize("content", ["<b>what a stranger writes</b>", CUT, None])
def test_content_of_strangers_is_not_repeated(content: Json) -> None:
    (case,) = cases(standing(0), {**raised(0, 0, 512, GUEST, START), "content": content})
    assert case.names["content"] == ""


def test_the_job_fills_a_copy() -> None:
    known = {"domain": "vm1", "disk": "vda", "is": "copy", "bus": "virtio"}
    (case,) = cases(standing(0, **known), raised(0, 0, 512, COPY, START), standing(512, **known))
    assert names(case) == ["by-copy"]
    assert case.names["through"] == ""


def test_a_mark_from_before_is_no_write_of_the_trace() -> None:
    (case,) = cases(standing(2048, domain="vm1", disk="vda", **{"is": "copy"}), standing(2048))
    assert names(case) == ["before"]
    assert case.names["what"] == "the copy of vda"
    assert case.subject == ("vm1", "vda", "n-storage")


def test_a_node_that_was_never_written_is_no_case() -> None:
    assert cases(standing(0), standing(0)) == []


def test_a_write_that_was_not_recorded_is_missed() -> None:
    (case,) = cases(standing(0), raised(0, 0, 512, GUEST, START), standing(1024))
    assert names(case) == ["unseen"]
    (case,) = cases(standing(0), standing(1024))
    assert names(case) == ["unseen"]


def test_a_mark_that_is_not_the_writes_end_is_another_writes() -> None:
    event = raised(0, 0, 512, GUEST, START, mark=4096)
    (case,) = cases(standing(0), event, standing(4096))
    assert names(case) == ["another-write"]


def test_a_mark_never_falls() -> None:
    (case,) = cases(standing(4096), standing(512))
    assert names(case)[0] == "contradiction"
    # A new node with the name of an old one began at 0.
    (case,) = cases(standing(4096), raised(0, 0, 512, GUEST, START), standing(512))
    assert names(case) == ["by-guest"]


def test_a_raw_format_says_nothing_beside_its_storage() -> None:
    events = [raised(0, 0, 512, GUEST, START, node=node) for node in ("n-storage", "n-format")]
    found = cases(*(standing(0, node) for node in ("n-storage", "n-format")), *events)
    assert [case.node for case in found] == ["n-storage"]
    tables = raised(0, 65536, 65536, TABLES, GUEST, START)
    found = cases(tables, events[1])
    assert [case.node for case in found] == ["n-storage", "n-format"]
