"""What QEMU's main loop did: each cause from events, and what its sentence claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from virtrace.analysis.explain.mainloops import EXPLAINER, LoopCase
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Point
from virtrace.report.explanation import fill_text
from virtrace.trace import roles
from virtrace.trace.format import Event, Json

MS = 1_000_000
MAIN, WORKER = 5, 9
STOP = ["aio_poll+0x1 (q)", "bdrv_drain_all+0x2 (q)", "qmp_marshal_stop+0x3 (q)"]


class Qemu:
    def __init__(self) -> None:
        self._reader = EXPLAINER.reader(Traced(()))
        self._seq = 0

    def _event(self, name: str, role: str | None, at: int, tid: int, **values: Json) -> Event:
        self._seq += 1
        place = (None, None, None)
        return Event("point", self._seq, at * MS, tid, name, *place, values, None, role)

    def ended(self, name: str, at: int, took: int, tid: int = MAIN, **values: Json) -> None:
        """Something ended. at, took: ms."""
        role = roles.LONG_CALL if name.startswith("call.") else roles.of_point(name)
        event = self._event(name, role, at, tid, took_ns=took * MS, **values)
        self._reader.take(Point(event))

    def file(self, fd: int, file: str) -> None:
        event = self._event("file.open", roles.FILE_OPEN, 0, 1, fd=fd, file=file, domain="vm1")
        self._reader.take(Point(event))

    def has_open(self, fd: int, file: str) -> None:
        """When the recording begins, and when it ends."""
        for _ in range(2):
            self.file(fd, file)

    def command(self, name: str, sent: int, answered: int | None) -> str:
        id_ = f"libvirt-{self._seq}"
        json: Any = {"execute": name, "id": id_}
        send = self._event("qmp.send", roles.QMP_COMMAND, sent, 2, json=json)
        reply = None
        if answered is not None:
            json = {"return": {}, "id": id_}
            reply = self._event("qmp.reply", roles.QMP_REPLY, answered, 3, json=json)
        self._reader.take(Exchange(send, reply))
        return id_

    def cases(self, end: int = 10_000) -> Sequence[LoopCase]:
        return [*self._reader.finish(end * MS)]

    def answers(self) -> list[tuple[str, str]]:
        found = []
        for case in self.cases():
            finding, *_ = EXPLAINER.causes.find(case)
            found.append((finding.cause.name, fill_text(finding.cause.says, case)))
        return found


@pytest.fixture
def qemu() -> Qemu:
    return Qemu()


def test_a_command_waits_for_a_write_of_the_main_loop(qemu: Qemu) -> None:
    qemu.has_open(12, "/images/a.raw")
    qemu.ended("call.pwrite", 2400, 2300, fd=12, bytes=512, offset=0)
    qemu.ended("loop.dispatch", 2401, 2302)
    qemu.command("query-blockstats", 150, 2410)
    # One that came later did not wait.
    qemu.command("query-block", 3000, 3001)
    assert qemu.answers() == [
        (
            "file",
            "QEMU's main loop was busy for 2.3 s in a write to /images/a.raw; query-blockstats "
            "waited meanwhile.",
        )
    ]


def test_a_file_that_is_not_certain_is_not_named(qemu: Qemu) -> None:
    qemu.file(12, "/images/a.raw")
    qemu.file(12, "/images/b.raw")
    qemu.file(13, "/images/a.raw")
    qemu.ended("call.close", 300, 200, fd=12)
    qemu.ended("call.close", 600, 200, fd=13)
    qemu.ended("loop.dispatch", 301, 202)
    qemu.ended("loop.dispatch", 601, 202)
    for (cause, said), number in zip(qemu.answers(), (12, 13)):
        assert cause == "file"
        assert f"in closing the file with descriptor {number}; no other" in said


def test_many_short_calls_are_one_reason(qemu: Qemu) -> None:
    qemu.has_open(3, "/nfs/a.raw")
    for call in range(10):
        qemu.ended("call.lseek", 200 + 100 * call, 90, fd=3)
    qemu.ended("loop.dispatch", 1110, 1000)
    ((cause, said),) = qemu.answers()
    assert (cause, "a search for data in /nfs/a.raw" in said) == ("file", True)


def test_a_command_waits_for_requests(qemu: Qemu) -> None:
    qemu.has_open(12, "/images/a.raw")
    qemu.ended("call.fdatasync", 1050, 1000, tid=WORKER, fd=12)
    qemu.ended("loop.wait", 1051, 950, stack=[*STOP])
    id_ = qemu.command("stop", 100, 1060)
    qemu.ended("qmp.handled", 1053, 952, id=id_, command="stop")
    qemu.ended("loop.dispatch", 1052, 951)
    assert qemu.answers() == [
        (
            "requests",
            "QEMU's main loop was busy for 951 ms for the command stop: it waited until requests "
            "to disks were done, while another thread was in a flush of /images/a.raw; no other "
            "command waited meanwhile.",
        )
    ]


def test_a_command_is_named_as_qmp_names_it(qemu: Qemu) -> None:
    stack: Json = ["open64+0x1 (c)", "qmp_marshal_block_resize+0x3 (q)"]
    qemu.ended("call.open", 400, 300, path="/a", stack=stack)
    for name in ("block_resize", "stop"):
        qemu.ended("qmp.handled", 402, 302, id=name, command=name)
    qemu.ended("loop.dispatch", 401, 301)
    ((_, said),) = qemu.answers()
    assert "in opening /a for the command block_resize; no other" in said


def test_it_works_itself(qemu: Qemu) -> None:
    # A call that took less than half of the time is not the reason.
    qemu.ended("call.fstat", 250, 60, fd=1)
    qemu.ended("loop.dispatch", 500, 400)
    ((cause, said),) = qemu.answers()
    assert cause == "own"
    assert said.startswith("QEMU's main loop was busy for 400 ms, in none of the calls")


def test_calls_of_other_threads_keep_nobody_waiting(qemu: Qemu) -> None:
    qemu.ended("call.fdatasync", 1050, 1000, tid=WORKER, fd=12)
    qemu.command("query-status", 200, 205)
    ((cause, said),) = qemu.answers()
    assert cause == "well"
    assert "the slowest command, query-status, took 5.0 ms" in said


def test_a_command_that_takes_long_by_itself(qemu: Qemu) -> None:
    id_ = qemu.command("block_resize", 100, 900)
    qemu.ended("qmp.handled", 899, 795, id=id_, command="block_resize")
    ((cause, said),) = qemu.answers()
    assert cause == "command"
    assert said.startswith("The command block_resize itself took 800 ms;")


def test_a_command_that_waits_elsewhere_or_is_not_answered(qemu: Qemu) -> None:
    qemu.command("query-status", 100, 900)
    qemu.command("query-block", 4000, None)
    # Of a client that gave no id.
    qemu.ended("qmp.handled", 899, 795, id={"unavailable": "NULL"}, command="stop")
    assert [cause for cause, _ in qemu.answers()] == ["elsewhere", "silent"]
    assert qemu.answers()[1][1].endswith("6.0 s after it was sent.")


def test_values_of_strangers(qemu: Qemu) -> None:
    for took in ("x", -5, None, True, {"unavailable": "?"}):
        event = qemu._event("loop.dispatch", roles.LOOP_BUSY, 5, MAIN, took_ns=took)
        qemu._reader.take(Point(event))
    qemu.ended("qmp.handled", 899, 795, id=[1], command={"a": 1})
    qemu.ended("call.pwrite", 300, 290, fd="x")
    for case in qemu.cases():
        assert EXPLAINER.causes.find(case)
        assert case.facts
