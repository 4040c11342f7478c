"""What became of a backup, in cases that take a lab too long, or that it cannot show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained
from virtrace.trace import roles

JOBS = ("backup-vda", "backup-vdb")


def backed_up(
    *events: tuple[str, dict[str, Any]], error: str = "", ended: bool = False, mode: str = "push"
) -> Explained[Any]:
    """A backup of two disks, with these events of QEMU. ended: by a call, before them."""
    recorder = samples.Recorder()

    def call(api: str, result: int, **values: Any) -> None:
        span = recorder.new_span()
        place: dict[str, Any] = {"call": span, "span": span}
        recorder.add("enter", api, values={"domain": "vm1", **values}, **place)
        inside: dict[str, Any] = {"call": span, "parent": span}
        if error:
            recorder.add("point", "error", values={"code": 1, "message": error}, **inside)
        elif "backup" in values:
            actions = [
                {"type": "blockdev-backup", "data": {"device": job[7:], "job-id": job}}
                for job in JOBS
            ]
            sent, received = samples.qmp("transaction", 1, {}, actions=actions)
            recorder.add("point", "qmp.send", values=sent, **inside)
            recorder.add("point", "qmp.reply", values=received, call=span, tid=9)
        recorder.add("exit", api, values={"result": result}, **place)

    call("virDomainBackupBegin", -1 if error else 0, backup=f"<domainbackup mode='{mode}'/>")
    if ended:
        call("virDomainAbortJob", 0)
    for name, data in events:
        values = {"mon": samples.MON, "json": {"event": name, "data": data}}
        recorder.add("point", "qmp.event", values=values, tid=9, role=roles.QMP_EVENT)
    return explained(
        recorder,
        qmp_send=roles.QMP_COMMAND,
        qmp_reply=roles.QMP_REPLY,
        qmp_event=roles.QMP_EVENT,
        error=roles.ERROR,
    )


def completed(job: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "BLOCK_JOB_COMPLETED", {"device": job, "len": 9, "offset": 9, **more}


def cancelled(job: str) -> tuple[str, dict[str, Any]]:
    return "BLOCK_JOB_CANCELLED", {"device": job, "len": 9, "offset": 5}


A, B = JOBS
FULL = completed(A, error="No space left on device")
SHUTDOWN: tuple[str, dict[str, Any]] = ("SHUTDOWN", {"guest": False})


@pytest.mark.parametrize(
    ("events", "ended", "mode", "cause"),
    [
        ([completed(A), completed(B)], False, "push", "done"),
        ([completed(A)], False, "push", "running"),
        ([completed("backup-vdc"), completed(B)], False, "push", "running"),
        ([FULL, cancelled(B)], False, "push", "failed"),
        ([FULL], False, "push", "failed"),
        ([completed(A), cancelled(B)], False, "push", "cancelled"),
        ([cancelled(A), cancelled(B)], True, "push", "aborted"),
        ([cancelled(A), cancelled(B)], True, "pull", "pull-ended"),
        ([], False, "pull", "serving"),
        ([completed(A), SHUTDOWN], False, "push", "guest-ended"),
        ([completed(A), completed(B), SHUTDOWN], False, "push", "done"),
    ],
)
def test_how_it_ended(
    events: list[tuple[str, dict[str, Any]]], ended: bool, mode: str, cause: str
) -> None:
    found = backed_up(*events, ended=ended, mode=mode)
    assert [name for name, _ in answers(found)] == [cause]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        # Said after 30 s.
        ("Timed out during operation: cannot acquire state change lock (held by "
         "monitor=remoteDispatchDomainBackupBegin)", "other-job"),
        ("Operation not supported: incremental backup is not supported yet", "not-supported"),
        ("failed to write '/x': No space left on device", "no-space"),
        ("operation failed: something else", "error"),
    ],
)  # fmt: skip
def test_why_it_was_refused(error: str, cause: str) -> None:
    [(name, sentence)] = answers(backed_up(error=error))
    assert name == cause
    assert sentence.endswith(f"{error}.")
