"""What became of migrations, in cases that a lab does not show."""

from __future__ import annotations

from errno import ENOENT
from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained
from virtrace.trace import roles

BEGIN, PERFORM, CONFIRM, PREPARE, FINISH = (
    f"virDomainMigrate{phase}3Params"
    for phase in ("Begin", "Perform", "Confirm", "Prepare", "Finish")
)
XML = {"params": {"destination_xml": "<domain><name>vm1</name></domain>"}}
VM1 = {"domain": "vm1"}
NULL = {"unavailable": "NULL pointer"}


class Host(samples.Recorder):
    def call(self, name: str, values: Any, result: Any, error: str = "") -> None:
        """result: None if the call does not return."""
        call = self.new_span()
        place: dict[str, Any] = {"call": call, "span": call}
        self.add("enter", name, values=values, **place)
        if error:
            message = {"code": 1, "message": error}
            self.add("point", "error", values=message, call=call, parent=call)
        if result is not None:
            self.add("exit", name, values={"result": result}, **place)

    def error(self, message: str) -> None:
        self.add("point", "error", values={"code": 1, "message": message})

    def explained(self) -> Explained[Any]:
        return explained(self, error=roles.ERROR)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("operation failed: guest CPU doesn't match specification: missing features: avx2", "cpu"),
        ("internal error: Unable to find an unused port in range 'migration' (49152-49215)",
         "no-listener"),
        ("Cannot access storage file '/x.img': Permission denied", "no-permission"),
        ("Cannot access storage file '/x.img': No such file or directory", "missing-file"),
        ("internal error: something else", "error"),
    ],
)  # fmt: skip
def test_why_it_was_refused_here(error: str, cause: str) -> None:
    host = Host()
    host.call(PREPARE, {**XML, "flags": 1}, -1, error)
    found = host.explained()
    [(name, sentence)] = answers(found)
    assert (name, sentence.endswith(f"{error}.")) == (cause, True), sentence
    assert found[0].case.subject == ("vm1",)


def test_why_it_was_refused_where_it_runs() -> None:
    """A function that returns a text has failed if that is NULL."""
    host = Host()
    host.call(BEGIN, VM1, NULL, "Unsafe migration: without shared storage")
    host.call(BEGIN, VM1, NULL, "unsupported configuration: another machine")
    host.call(PERFORM, {**VM1, "destination": "qemu+tcp://b/system"}, -1,
              "unable to connect to server at 'b:16509': No route to host")  # fmt: skip
    assert [name for name, _ in answers(host.explained())] == ["unsafe", "error", "unreachable"]


def test_phases_of_one_guest_are_one_case() -> None:
    host = Host()
    host.call(BEGIN, VM1, "<domain/>")
    host.call(BEGIN, {"domain": "vm2"}, "<domain/>")
    host.call(PERFORM, {**VM1, "destination": NULL}, 0)
    host.call(CONFIRM, {"domain": "vm2", "cancelled": 1}, 0)
    host.call(CONFIRM, {**VM1, "cancelled": 1}, 0)
    host.call(BEGIN, VM1, "<domain/>")
    found = host.explained()
    assert [(one.case.subject[0], one.findings[0].cause.name) for one in found] == [
        ("vm1", "failed-there"),
        ("vm2", "refused-there"),
        ("vm1", "unknown"),
    ]
    assert [len(one.case.calls) for one in found] == [3, 2, 1]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("internal error: qemu unexpectedly closed the monitor: Unknown savevm section",
         "qemu-ended"),
        ("internal error: qemu unexpectedly closed the monitor: load of migration failed: "
         "Input/output error", "given-up-there"),
        ("internal error: qemu unexpectedly closed the monitor: Not a migration stream",
         "given-up-there"),
        ("internal error: qemu unexpectedly closed the monitor: Unknown combination of migration "
         "flags: 0x0", "given-up-there"),
        ("internal error: qemu unexpectedly closed the monitor: Unknown combination of migration "
         "flags: 0x10", "qemu-ended"),
    ],
)  # fmt: skip
def test_whether_qemu_ended_for_lack_of_data(words: str, cause: str) -> None:
    host = Host()
    host.call(PREPARE, {**XML, "flags": 1}, 0)
    host.error(words)
    host.call(FINISH, {**XML, "cancelled": 1}, "0x0")
    [found] = host.explained()
    [finding] = found.findings
    assert finding.cause.name == cause
    assert words in [each.text for each in finding.evidence]


def test_data_of_another_program() -> None:
    """As long as nobody gave it up, the data were none of a migration."""
    host = Host()
    host.call(PREPARE, {**XML, "flags": 1}, 0)
    host.error("internal error: qemu unexpectedly closed the monitor: Not a migration stream")
    [(name, _)] = answers(host.explained())
    assert name == "qemu-ended"


@pytest.mark.parametrize(
    ("file", "cause"),
    [("../src/rpc/virnetsocket.c", "unreachable"), ("../src/util/virfile.c", "missing-file")],
)
def test_a_socket_without_a_message(file: str, cause: str) -> None:
    """Of an error of the system, libvirt 7.0.0 shows its number and its place."""
    host = Host()
    call = host.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    host.add("enter", PERFORM, values={**VM1, "destination": NULL}, **place)
    place = {"call": call, "parent": call}
    host.add("point", "error.system", values={"errno": ENOENT, "file": file}, **place)
    values = {"code": 38, "message": {"unavailable": "a template"}}
    host.add("point", "error", values=values, **place)
    host.add("exit", PERFORM, values={"result": -1}, call=call, span=call)
    found = explained(host, error=roles.ERROR, error_system=roles.ERROR_PLACE)
    [(name, sentence)] = answers(found)
    assert (name, sentence.endswith(": system error: No such file or directory.")) == (cause, True)


def test_what_has_not_ended() -> None:
    host = Host()
    host.call(PREPARE, {**XML, "flags": 1}, 0)
    host.call(BEGIN, {"domain": "vm2"}, "<domain/>")
    host.call(PERFORM, {"domain": "vm2", "destination": NULL}, None)
    assert [name for name, _ in answers(host.explained())] == ["receiving", "incomplete"]


def test_a_definition_that_cannot_be_read() -> None:
    host = Host()
    for xml in ("<domain", {"unavailable": "too long"}):
        host.call(PREPARE, {"params": {"destination_xml": xml}}, -1, "internal error: x")
    host.call(PREPARE, {"params": {"unavailable": "too many"}}, -1, "internal error: x")
    assert {one.case.subject for one in host.explained()} == {("a guest",)}
