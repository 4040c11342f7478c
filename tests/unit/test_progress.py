"""How far jobs of QEMU are: each cause from looks and events, and what its sentence claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cases import causes_and_answer
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.explain.progress import EXPLAINER, ProgressCase
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Point
from virtrace.trace.format import Event, Json

SECOND = 1_000_000_000
MIB = 1 << 20
JOB = "copy-vda-libvirt-1-format"


class Job:
    """What is read of a job of QEMU, and what is said of it."""

    def __init__(self, mon: str = "0x1", **values: Json) -> None:
        self.now, self.seq, self.mon = 0, 0, mon
        self.nodes: list[Point | Exchange] = []
        self.values: dict[str, Any] = {
            **{"id": JOB, "type": "mirror", "status": "running", "user_paused": False},
            **{"done": 0, "total": 1000 * MIB, "domain": "vm1", **values},
        }

    def event(self, name: str, role: str, values: dict[str, Any]) -> Event:
        self.seq += 1
        return Event("point", self.seq, self.now, 7, name, None, None, None, values, None, role)

    def look(self, done: Json, total: Json = 1000, seconds: int = 1, **values: Json) -> None:
        """A look, so much later. done, total: MiB."""
        self.now += seconds * SECOND
        sizes = {"done": done, "total": total}
        in_bytes = {name: size * MIB if type(size) is int else size for name, size in sizes.items()}
        self.values = {**self.values, **in_bytes, **values}
        self.nodes.append(Point(self.event("job.standing", "job.standing", self.values)))

    def looks(self, *done: int) -> Job:
        for each in done:
            self.look(each)
        return self

    def tells(self, name: str, **data: Json) -> Job:
        document: Json = {"event": name, "data": {"device": JOB, **data}}
        values = {"mon": self.mon, "json": document}
        self.nodes.append(Point(self.event("qmp.event", "qmp.event", values)))
        return self

    def asked(self, command: str, arguments: Json, answer: dict[str, Json]) -> Job:
        send: dict[str, Any] = {"execute": command, "arguments": arguments, "id": "libvirt-1"}
        sent = self.event("qmp.send", "qmp.command", {"mon": self.mon, "json": send})
        values: dict[str, Any] = {"mon": self.mon, "json": answer}
        self.nodes.append(Exchange(sent, self.event("qmp.reply", "qmp.reply", values)))
        return self

    def limited(self, mib: int) -> Job:
        arguments: Json = {"job-id": JOB, "device": "libvirt-1-format", "speed": mib * MIB}
        return self.asked("blockdev-mirror", arguments, {"return": {}})

    def cases(self) -> Sequence[ProgressCase]:
        reader = EXPLAINER.reader(Traced(()))
        for node in self.nodes:
            assert [*reader.take(node)] == []
        return [*reader.finish(self.now)]


def told(made: Job) -> tuple[list[str], str]:
    (case,) = made.cases()
    return causes_and_answer(EXPLAINER, case)


def test_it_goes_on() -> None:
    assert told(Job().looks(0, 100, 200)) == (
        ["goes-on"],
        "The copy of vda goes on at 100.000 MiB per second; the 800.000 MiB that are left take "
        "8.0 s more.",
    )


def test_its_rate_is_that_of_the_last_seconds() -> None:
    made = Job()
    for number in range(1, 21):
        made.look(10 * number)
    for number in range(1, 12):
        made.look(200 + 20 * number)
    assert "goes on at 20.000 MiB per second" in told(made)[1]


def test_it_is_at_its_limit() -> None:
    causes, said = told(Job().limited(100).looks(0, 96, 192))
    assert causes == ["limited"]
    assert said == (
        "The copy of vda is held back by its limit of 100.000 MiB per second: 808.000 MiB of "
        "1000.000 MiB are left, which takes 8.1 s more."
    )
    assert told(Job().limited(1000).looks(0, 100, 200))[0] == ["goes-on"]


def test_a_limit_that_is_set_later_counts() -> None:
    made = Job().limited(100).looks(0, 100)
    made.asked("block-job-set-speed", {"device": JOB, "speed": 0}, {"return": {}})
    assert told(made.looks(200))[0] == ["goes-on"]
    made.asked("block-job-set-speed", {"device": JOB, "speed": 5}, {"error": {"desc": "no"}})
    assert told(made)[0] == ["goes-on"]


def test_a_low_limit_lets_it_stand() -> None:
    assert told(Job().limited(1).looks(0, 16, 16, 16, 16))[0] == ["limited"]
    assert told(Job().looks(0, 16, 16, 16, 16)) == (
        ["stands"],
        "The copy of vda has made no progress for 3.0 s, at 16.000 MiB of 1000.000 MiB.",
    )


def test_the_guest_writes_as_much() -> None:
    made = Job().limited(100)
    for number in range(4):
        made.look(100 * number, 1000 + 95 * number)
    causes, said = told(made)
    assert causes == ["endless"]
    assert said == (
        "The copy of vda does not come to an end: it goes on at 100.000 MiB per second, its limit "
        "of 100.0 MiB per second, and the guest writes to 95.000 MiB per second meanwhile; 985.000 "
        "MiB are left."
    )
    (case,) = made.cases()
    assert case.names["mebibytes"] == "190"


def test_the_guest_writes_less() -> None:
    made = Job()
    for number in range(4):
        made.look(100 * number, 1000 + 50 * number)
    causes, said = told(made)
    assert causes == ["goes-on"]
    # 850 MiB are left, which become 50 less a second.
    assert said.endswith("take 17.0 s more.")


def test_it_does_not_know_yet_how_much_there_is_to_do() -> None:
    """That is no work of the guest."""
    made = Job().limited(100)
    made.look(0, 0)
    assert told(made.looks(100, 200, 300))[0] == ["limited"]
    made = Job()
    for _ in range(5):
        made.look(0, 0)
    assert told(made)[0] == ["begins"]


def test_it_is_ready() -> None:
    made = Job().looks(0, 900)
    made.tells("BLOCK_JOB_READY")
    made.look(1000, status="ready")
    assert told(made) == (
        ["ready"],
        "The copy of vda is ready: it copies what the guest writes until somebody ends it.",
    )


def test_it_is_paused() -> None:
    made = Job().looks(0, 100)
    made.look(100, status="paused", user_paused=True)
    assert told(made)[0] == ["paused"]
    made.tells("BLOCK_JOB_ERROR", action="stop", operation="write")
    assert told(made) == (
        ["stopped-by-error"],
        "The copy of vda stands still at 100.000 MiB of 1000.000 MiB, because a request of it "
        "failed.",
    )
    made = Job().looks(0)
    made.look(0, status="paused")
    assert told(made)[0] == ["waits"]


@pytest.mark.parametrize(
    ("event", "data", "cause"),
    [
        ("BLOCK_JOB_COMPLETED", {}, "ended"),
        ("BLOCK_JOB_COMPLETED", {"error": "No space left on device"}, "failed"),
        ("BLOCK_JOB_CANCELLED", {}, "cancelled"),
    ],
)
def test_it_is_over(event: str, data: dict[str, Json], cause: str) -> None:
    made = Job().looks(0, 100).tells(event, **data)
    causes, said = told(made)
    assert causes == [cause]
    assert "100.000 MiB" in said


def test_one_look_tells_no_rate() -> None:
    assert told(Job().looks(0))[0] == ["begins"]
    made = Job().looks(0)
    made.look(100, seconds=0)
    assert told(made)[0] == ["begins"]


def test_jobs_of_two_guests_with_one_name() -> None:
    """Whose the events are is not known."""
    made, other = Job().looks(0, 100), Job("0x2")
    made.tells("BLOCK_JOB_READY")
    other.tells("BLOCK_JOB_CANCELLED")
    made.nodes += other.nodes
    assert told(made)[0] == ["goes-on"]


def test_jobs_that_are_not_of_disks_are_left_out() -> None:
    assert Job(type="create", id="create-libvirt-1-storage").looks(0, 1).cases() == []


def test_a_job_with_a_name_of_its_own() -> None:
    made = Job(id="mine", type="stream").looks(0, 100)
    assert told(made)[1].startswith("The pull mine goes on at")
    (case,) = made.cases()
    assert case.subject == ("vm1", "mine")


def test_hostile_events() -> None:
    made = Job()
    odd: list[Json] = [{"unavailable": "NULL pointer"}, -5, "x", 1 << 70, [], None]
    for value in odd:
        made.look(value, value)
        made.tells("BLOCK_JOB_COMPLETED", error=value)
        made.asked("block-job-set-speed", {"device": value, "speed": value}, {"return": {}})
    for case in made.cases():
        assert EXPLAINER.causes.find(case)
        assert case.facts is not None


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=15),
    st.integers(0, 300),
)
def test_no_sentence_contradicts_its_numbers(steps: list[tuple[int, int]], limit: int) -> None:
    made = Job().limited(limit)
    done, total = 0, 1000
    for more, written in steps:
        done, total = min(done + more, total), total + written
        made.look(done, total)
    causes, _ = told(made)
    (case,) = made.cases()
    numbers = case.numbers
    rate, written_, needs = (numbers[name] for name in ("rate", "written", "needs"))
    if causes[0] == "endless":
        assert rate
        assert written_ is not None
        assert written_ >= 0.9 * rate
    elif causes[0] in ("goes-on", "limited"):
        assert needs is not None
        assert needs >= 0
    elif causes[0] == "stands":
        last = made.cases()[0].looks[-4:]
        assert len({look.values["done"] for look in last}) == 1
    if causes[0] == "limited":
        assert limit > 0
