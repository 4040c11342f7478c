"""What a daemon did until it served, in cases that a lab does not show."""

from __future__ import annotations

from typing import Any

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained
from virtrace.trace import roles

MAIN, GUEST = 10, 11


class Start(samples.Recorder):
    def __init__(self, *, is_begun: bool = True) -> None:
        super().__init__()
        self.call = self.new_span() if is_begun else None
        module = self.new_span()
        place: dict[str, Any] = {"span": module, "call": module, "tid": MAIN}
        self.add("enter", "virDriverLoadModule", values={"driver": "qemu"}, **place)
        self.add("exit", "virDriverLoadModule", values={"result": 0}, **place)
        self.enter("virStateInitialize", self.call)

    def enter(self, name: str, span: int | None, **values: Any) -> None:
        if span is not None:
            parent = None if span == self.call else self.call
            place: dict[str, Any] = {"span": span, "parent": parent, "call": self.call}
            self.add("enter", name, values=values, tid=MAIN, **place)

    def leave(self, name: str, span: int | None, result: Any) -> None:
        if span is not None:
            parent = None if span == self.call else self.call
            place: dict[str, Any] = {"span": span, "parent": parent, "call": self.call}
            self.add("exit", name, values={"result": result}, tid=MAIN, **place)

    def point(self, probe: str, tid: int = MAIN, **values: Any) -> None:
        inside = self.call if tid == MAIN else None
        self.add("point", probe, values=values, tid=tid, call=inside, parent=inside)

    def driver(self, name: str) -> None:
        self.point("start.driver", folder=f"/run/libvirt/{name}", name="driver")

    def serves(self) -> None:
        self.leave("virStateInitialize", self.call, 0)
        self.add("point", "start.serves", values={"enabled": True}, tid=MAIN)

    def explained(self) -> Explained[Any]:
        return explained(self, error=roles.ERROR, qmp_send=roles.QMP_COMMAND)

    def answer(self) -> tuple[str, str]:
        [answer] = answers(self.explained())
        return answer


def test_a_start_that_has_not_come_to_its_drivers() -> None:
    start = Start()
    assert start.answer()[0] == "before-drivers"


def test_where_a_start_stands() -> None:
    start = Start()
    start.driver("network")
    start.driver("qemu")
    start.enter("virQEMUCapsNewForBinaryInternal", start.new_span(), program="/usr/bin/qemu")
    name, answer = start.answer()
    assert name == "initialising"
    assert "the driver qemu had begun" in answer
    assert answer.endswith("it asks /usr/bin/qemu for its abilities.")


def test_another_pid_file_is_of_no_driver() -> None:
    start = Start()
    start.driver("network")
    start.point("start.driver", folder="/run/libvirt/qemu", name="vm1")
    start.serves()
    name, answer = start.answer()
    assert (name, "the driver network, " in answer) == ("serves", True)


def test_a_guest_that_is_not_connected_to() -> None:
    start = Start()
    start.driver("qemu")
    start.serves()
    start.point("start.thread", GUEST, name="init-vm1")
    sent, received = samples.qmp("query-status", 1, {})
    start.point("qmp.send", GUEST, **sent)
    start.point("qmp.reply", GUEST, **received)
    assert start.answer()[0] == "guest-waits"
    start.point("qmp.send", GUEST, **samples.qmp("query-cpus", 2, {})[0])
    name, answer = start.answer()
    assert (name, "vm1 has not answered query-cpus" in answer) == ("guest-silent", True)


def test_an_error_on_a_thread_that_goes_on_loses_no_guest() -> None:
    start = Start()
    start.driver("qemu")
    start.serves()
    start.point("start.thread", GUEST, name="init-vm1")
    start.point("error", GUEST, code=38, message="Unable to open /dev/kvm: Permission denied")
    start.point("start.thread.end", GUEST, result=0)
    assert start.answer()[0] == "serves"


def test_a_trace_that_began_too_late() -> None:
    start = Start(is_begun=False)
    start.driver("qemu")
    start.add("point", "start.serves", values={"enabled": True}, tid=MAIN)
    [found] = start.explained()
    assert "began when drivers" in (found.case.note or "")
