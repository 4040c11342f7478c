"""Who got events, in cases that a lab does not show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained
from virtrace.trace import roles

LOOP, OTHER = 11, 12
REBOOT, LIFECYCLE_MESSAGE, REBOOT_MESSAGE = 1, 318, 319


class Daemon(samples.Recorder):
    """One timer, its event loop, and a client that is registered for an event of another kind."""

    def __init__(self) -> None:
        super().__init__()
        call, inner = self.new_span(), self.new_span()
        place: dict[str, Any] = {"call": call, "span": call}
        within: dict[str, Any] = {"call": call, "span": inner, "parent": call}
        values = {"connection": "0xf", "domain": {"unavailable": "NULL pointer"}, "kind": 3}
        self.add("enter", "virNetServerProgramDispatch", values={"client": "0x5"}, **place)
        identity = {"process-id": 9, "user-name": "joe"}
        self.add("point", "rpc.client", values={"identity": identity}, call=call, parent=call)
        self.add("enter", "virConnectDomainEventRegisterAny", values=values, **within)
        self.add("exit", "virConnectDomainEventRegisterAny", values={"result": 0}, **within)
        self.add("exit", "virNetServerProgramDispatch", values={"result": 0}, **place)

    def point(self, probe: str, tid: int = OTHER, **values: Any) -> Any:
        return self.add("point", probe, values=values, tid=tid)

    def queue(
        self, kind: int = REBOOT, domain: str = "vm1", event: str = "0x1", **more: Any
    ) -> None:
        values = {"registered": 2, "timer": 7, **more}
        self.point("event.queued", event=event, kind=kind, name=domain, **values)

    def take_up(self) -> None:
        self.point("event.timer", LOOP, timer=7, timeout=-1)

    def match(self, connection: str = "0xc", domain: str = "vm1") -> None:
        self.point("event.matched", LOOP, connection=connection, domain=domain)

    def message(self, procedure: int = REBOOT_MESSAGE, message: str = "0xa") -> Any:
        header = {"program": 0x20008086, "procedure": procedure, "type": 2}
        event = self.point("event.message", LOOP, client="0xd", message=message, **header)
        self.events[-1] = event._replace(role=roles.REQUEST)
        return event

    def written(self, of: Any, sent: Any = 36) -> None:
        values = {"message": of.values["message"], "sent": sent, "length": 36}
        event = self.add("point", "event.written", values=values, tid=LOOP)
        self.events[-1] = event._replace(role=roles.REPLY, answers=of.seq)

    def explained(self) -> Explained[Any]:
        return explained(self)

    def causes(self) -> list[str]:
        return [name for name, _ in answers(self.explained())]


@pytest.mark.parametrize(
    ("sent", "cause"), [(36, "sent"), (12, "closed"), ({"unavailable": "x"}, "unknown")]
)
def test_what_became_of_a_message(sent: Any, cause: str) -> None:
    daemon = Daemon()
    daemon.queue()
    daemon.take_up()
    daemon.match()
    daemon.written(daemon.message(), sent)
    assert daemon.causes() == [cause]


def test_what_was_not_sent() -> None:
    daemon = Daemon()
    daemon.queue(registered=0, timer=-1)
    daemon.queue(domain="vm2")
    daemon.take_up()
    daemon.queue(domain="vm3")
    daemon.take_up()
    daemon.match(domain="vm3")
    daemon.take_up()
    daemon.queue(domain="vm4", registered={"unavailable": "x"})
    daemon.queue(domain="vm5")
    assert daemon.causes() == ["nobody", "not-asked", "withheld", "unknown", "loop-busy"]


def test_messages_go_to_events_in_their_order() -> None:
    """Of two guests and two kinds, one client registered for all and another for one."""
    daemon = Daemon()
    daemon.point("event.lifecycle", event="0x2", domain="vm1", type=5, detail=1)
    daemon.queue()
    daemon.queue(kind=0, event="0x2")
    daemon.queue(domain="vm2")
    daemon.queue()
    daemon.take_up()
    for connection, domain, procedure in (
        ("0xc", "vm1", REBOOT_MESSAGE),
        ("0xc", "vm1", LIFECYCLE_MESSAGE),
        ("0xe", "vm1", LIFECYCLE_MESSAGE),
        ("0xc", "vm1", REBOOT_MESSAGE),
    ):
        daemon.match(connection, domain)
        daemon.message(procedure)
    found = [(*one.case.subject, len(one.case.messages)) for one in daemon.explained()]
    assert found == [
        ("vm1", "reboot event", 1),
        ("vm1", "lifecycle event (stopped, destroyed)", 2),
        ("vm2", "reboot event", 0),
    ]


def test_events_of_other_objects_are_left_out() -> None:
    daemon = Daemon()
    daemon.point("event.monitor", event="0x1", domain="vm1", text="STOP")
    daemon.queue(kind=0)
    daemon.point("event.pool.refresh", event="0x3", pool="p")
    daemon.queue(event="0x3")
    daemon.queue(kind=0, event="0x4")
    assert daemon.causes() == []


def test_who_is_registered_for_something_else() -> None:
    daemon = Daemon()
    daemon.queue()
    daemon.take_up()
    daemon.point("event.deregistered", connection="0xf", registration=0)
    daemon.queue()
    daemon.take_up()
    first, second = daemon.explained()
    shown = [(fact.name, fact.meaning) for fact in first.case.facts]
    assert ("process 9 of user joe", "registered for watchdog of all guests") in shown
    assert [fact.name for fact in second.case.facts] == ["registrations in all"]
