"""Snapshots of daemons that hang, as documents: built, not taken."""

from __future__ import annotations

import copy
from typing import Any

from tests.unit.test_snapshot_document import SAMPLE, THREAD

DOMAIN: dict[str, Any] = SAMPLE["domains"][0]


def thread(tid: int, kind: str, **wait: Any) -> dict[str, Any]:
    """A worker that serves a call and waits for something. wait: its fields."""
    made = copy.deepcopy(THREAD)
    made.update(tid=tid, own_tid=tid, doing=f"waits for {kind}")
    cleared = {key: None for key, value in made["wait"].items() if not isinstance(value, bool)}
    made["wait"].update({**cleared, "children": [], "fifo": False, "kind": kind, **wait})
    return made


def snapshot(*threads: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """fields: of the document. The first thread is what the answer is about."""
    verdict = {**SAMPLE["verdicts"][0], "thread": threads[0]["tid"] if threads else None}
    made = {**SAMPLE, "verdicts": [verdict], "threads": [*threads], **fields}
    return copy.deepcopy(made)


def job(owner: int | None, kind: str = "job", work: str = "query") -> dict[str, Any]:
    """A job of a domain. owner: its thread; None where no thread holds it."""
    return {"kind": kind, "work": work, "owner": owner, "api": None, "since": 1796028379.5}


def domain(name: str, *jobs: dict[str, Any], qemu: int = 9) -> dict[str, Any]:
    return {**DOMAIN, "name": name, "jobs": [*jobs], "qemu": qemu}


COMMAND = {"text": '{"execute":"query-blockstats"}', "name": "query-blockstats", "id": None,
           "sent": True}  # fmt: skip


def stopped_qemu(waiters: int = 3) -> dict[str, Any]:
    """A QEMU that is stopped; one thread asked it, and others wait for the job of that thread."""
    behind = (thread(20 + number, "job", domain="vm1") for number in range(waiters))
    main_loop = {"tid": 9, "name": "qemu-system-x86", "state": "T", "waits_in": None}
    qemu = {"pid": 9, "tracer": None, "threads": [main_loop]}
    return snapshot(
        thread(11, "qemu", domain="vm1", command=COMMAND),
        *behind,
        domains=[domain("vm1", job(11))],
        qemus=[qemu],
    )


def deadlock() -> dict[str, Any]:
    """Two threads that wait for each other, and one that waits for the first."""
    return snapshot(
        thread(11, "mutex", what="the lock of pool a", owner=12),
        thread(12, "mutex", what="the lock of pool b", owner=11),
        thread(13, "mutex", what="the lock of pool b", owner=11),
    )
