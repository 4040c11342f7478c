"""Why a migration does not end: each cause from events, and what its sentence claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.cases import causes_and_answer
from virtrace.analysis.explain.model import Traced
from virtrace.analysis.explain.passes import EXPLAINER, PassesCase
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Point
from virtrace.trace.format import Event, Json

MS = 1_000_000
STANDING = {"node": "n", "mark": 0, "domain": "vm1"}
# In pages.
ALL, WRITTEN = 4192, 2048


class Migration:
    """Events of a guest's QEMU, and what it says to libvirt."""

    def __init__(self, mon: str = "0x1") -> None:
        self.now, self.seq, self.mon = 0, 0, mon
        self.nodes: list[Point | Exchange] = []
        self.sent = self.zero = self.passes = 0

    def event(self, name: str, role: str, values: dict[str, Any]) -> Event:
        self.seq += 1
        return Event("point", self.seq, self.now, 7, name, None, None, None, values, None, role)

    def point(self, name: str, **values: Json) -> None:
        self.nodes.append(Point(self.event(name, name, values)))

    def tells(self, name: str, **data: Json) -> None:
        document: Json = {"event": name, "data": data}
        values = {"mon": self.mon, "json": document}
        self.nodes.append(Point(self.event("qmp.event", "qmp.event", values)))

    def asked(self, command: str, arguments: Json, answer: Json) -> None:
        send: dict[str, Any] = {"execute": command, "arguments": arguments, "id": "libvirt-1"}
        sent = self.event("qmp.send", "qmp.command", {"mon": self.mon, "json": send})
        values: dict[str, Any] = {"mon": self.mon, "json": {"return": answer}}
        self.nodes.append(Exchange(sent, self.event("qmp.reply", "qmp.reply", values)))

    def begins(self, left: Json, ms: int = 0, sent: int = 0, zero: int = 0, **more: Json) -> None:
        """A pass begins, so much later, after so much was sent."""
        self.now += ms * MS
        self.sent, self.zero = self.sent + sent, self.zero + zero
        self.passes += 1
        counted: dict[str, Json] = {"passes": self.passes, "sent": self.sent, "zero": self.zero}
        values = {**counted, "pass": self.passes, "left": left, "dirty_rate": 0, **more}
        self.point("migration.pass", **values)
        self.tells("MIGRATION_PASS", **{"pass": self.passes})

    def becomes(self, status: str, left: int = 0) -> None:
        counted: dict[str, Json] = {"passes": self.passes, "sent": self.sent, "zero": self.zero}
        self.point("migration.state", **{**counted, "left": left})
        self.tells("MIGRATION", status=status)

    def cases(self) -> Sequence[PassesCase]:
        reader = EXPLAINER.reader(Traced(()))
        for node in self.nodes:
            assert [*reader.take(node)] == []
        return [*reader.finish(self.now)]


def started() -> Migration:
    made = Migration()
    made.point("mark.standing", **STANDING)
    made.asked("query-migrate-parameters", {}, {"downtime-limit": 300, "max-bandwidth": 1 << 27})
    made.asked("migrate-set-parameters", {"max-bandwidth": 8 << 20}, {})
    made.becomes("setup")
    made.begins(ALL)
    made.becomes("active", ALL)
    return made


def goes_round(made: Migration, *left: int) -> Migration:
    """Passes of a second each; how much is left after each. The first sends all."""
    made.begins(left[0], 1000, sent=2152, zero=2040)
    for before, after in zip(left, left[1:]):
        made.begins(after, 1000, sent=before)
    return made


def told(made: Migration) -> tuple[list[str], str]:
    (case,) = made.cases()
    return causes_and_answer(EXPLAINER, case)


def test_what_is_left_stays() -> None:
    made = goes_round(started(), WRITTEN, WRITTEN, WRITTEN)
    causes, said = told(made)
    assert causes == ["endless"]
    assert said == (
        "The migration of vm1 does not end like this: the last whole pass sent 8.000 MiB in 1.0 s "
        "(8.000 MiB per second), and the guest wrote to 8.000 MiB meanwhile; after 4 passes 8.000 "
        "MiB are left."
    )
    (case,) = made.cases()
    # 8 MiB in 300 ms.
    assert case.names["mebibytes"] == "27"
    assert case.names["milliseconds"] == "1000"
    facts = {fact.name: fact.value for fact in case.facts}
    # The limit that was set later counts.
    assert (facts["max-bandwidth"], facts["downtime-limit"]) == (8 << 20, 300)


def test_what_is_left_becomes_less() -> None:
    causes, said = told(goes_round(started(), WRITTEN, WRITTEN // 2, WRITTEN // 4))
    assert causes == ["goes-on"]
    assert "after 4 passes 2.000 MiB are left" in said


def test_a_guest_that_is_held_back() -> None:
    made = goes_round(started(), WRITTEN, WRITTEN)
    made.point("migration.throttle", percent=20)
    made.begins(WRITTEN, 1000, sent=WRITTEN)
    causes, said = told(made)
    assert causes == ["endless"]
    assert "though the guest is held back 20 % of the time" in said


def test_nothing_is_sent() -> None:
    """No number can be told then, but the answer can."""
    made = goes_round(started(), WRITTEN, WRITTEN)
    made.begins(WRITTEN, 1000)
    made.begins(WRITTEN, 1000)
    causes, said = told(made)
    assert causes == ["endless"]
    assert "sent 0 bytes in 1.0 s" in said


@pytest.mark.parametrize("left", [(), (WRITTEN,), (WRITTEN, WRITTEN)])
def test_too_few_passes_tell_nothing(left: tuple[int, ...]) -> None:
    made = goes_round(started(), *left) if left else started()
    assert told(made)[0] == (["goes-on"] if len(left) == 2 else ["begins"])


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        ("cancelled", "given-up"),
        ("failed", "failed"),
        ("postcopy-active", "postcopy"),
        ("something-new", "endless"),
    ],
)
def test_the_state_tells_how_it_ends(status: str, cause: str) -> None:
    made = goes_round(started(), WRITTEN, WRITTEN, WRITTEN)
    made.becomes(status, 100)
    assert told(made)[0][0] == cause


def test_a_migration_that_is_cancelled_early() -> None:
    made = goes_round(started(), WRITTEN)
    made.becomes("cancelled", 100)
    assert told(made)[0] == ["cancelled"]


def test_a_migration_that_ends() -> None:
    made = goes_round(started(), WRITTEN, 256)
    made.tells("STOP")
    made.begins(300, 100, sent=256)
    made.now += 20 * MS
    made.sent += 300
    made.becomes("completed")
    causes, said = told(made)
    assert causes == ["completed"]
    assert said == (
        "vm1 left after 4 passes over its memory, in 2.1 s; it stood still for 120 ms, in which "
        "the last 1.172 MiB were sent."
    )


def test_a_count_that_qemu_does_not_confirm() -> None:
    made = goes_round(started(), WRITTEN)
    made.becomes("completed")
    ram = {"normal": made.sent + 1}
    made.asked("query-migrate", {}, {"status": "completed", "ram": ram})
    assert told(made)[0][0] == "contradiction"
    made = started()
    made.begins(WRITTEN, 1000, sent=1, **{"pass": 3})
    assert told(made)[0][0] == "contradiction"


def test_two_guests_at_once() -> None:
    """What the other QEMU says counts for nothing."""
    made, other = goes_round(started(), WRITTEN, WRITTEN, WRITTEN), Migration("0x2")
    other.tells("MIGRATION_PASS", **{"pass": 1})
    other.tells("MIGRATION", status="failed")
    made.nodes += other.nodes
    assert told(made)[0] == ["endless"]


def test_two_migrations_one_after_the_other() -> None:
    made = goes_round(started(), WRITTEN)
    made.becomes("cancelled")
    made.sent = made.zero = made.passes = 0
    made.now += 5_000 * MS
    made.becomes("setup")
    made.begins(ALL)
    first, second = made.cases()
    assert (first.state, second.state) == ("cancelled", "setup")


def test_unavailable_values_tell_nothing() -> None:
    made = started()
    for _ in range(3):
        made.begins({"unavailable": "NULL pointer"}, 1000, sent=5)
    assert told(made)[0] == ["begins"]


def test_hostile_events() -> None:
    made = started()
    odd: list[dict[str, Any]] = [{}, {"pass": []}, {"pass": -1, "left": -5, "sent": "x"}]
    for values in odd:
        made.point("migration.pass", **values)
        made.point("migration.state", **values)
        made.point("migration.throttle", **values)
    made.tells("MIGRATION", status=7)
    for case in made.cases():
        assert EXPLAINER.causes.find(case)
        assert case.facts is not None
