"""What became of devices, in cases that a lab's guest, which has no system, cannot show."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained
from virtrace.trace import roles

DISK = "<disk type='file'><target dev='vdb'/><alias name='virtio-disk1'/></disk>"


def detached(
    *events: tuple[str, dict[str, Any]], error: str = "", late: bool = False, device: str = DISK
) -> Explained[Any]:
    """A call that asks the guest to let go of a disk, with these events of QEMU."""
    recorder = samples.Recorder()
    call = recorder.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    values = {"domain": "vm1", "device": device, "flags": 1}
    recorder.add("enter", "virDomainDetachDeviceFlags", values=values, **place)
    sent, received = samples.qmp("device_del", 1, {}, id="virtio-disk1")
    recorder.add("point", "qmp.send", values=sent, call=call, parent=call)
    recorder.add("point", "qmp.reply", values=received, call=call, tid=9)

    def happen() -> None:
        for name, data in events:
            document = {"event": name, "data": data}
            values = {"mon": samples.MON, "json": document}
            recorder.add("point", "qmp.event", values=values, tid=9, role=roles.QMP_EVENT)

    if not late:
        happen()
    if error:
        values = {"code": 1, "message": error}
        recorder.add("point", "error", values=values, call=call, parent=call)
    result = {"result": -1 if error else 0}
    recorder.add("exit", "virDomainDetachDeviceFlags", values=result, **place)
    if late:
        happen()
    return explained(
        recorder,
        qmp_send=roles.QMP_COMMAND,
        qmp_reply=roles.QMP_REPLY,
        qmp_event=roles.QMP_EVENT,
        error=roles.ERROR,
    )


GONE = ("DEVICE_DELETED", {"device": "virtio-disk1"})
BACKEND_GONE = ("DEVICE_DELETED", {"path": "/machine/peripheral/virtio-disk1/virtio-backend"})
OTHER_GONE = ("DEVICE_DELETED", {"device": "virtio-disk11"})
REFUSED = ("DEVICE_UNPLUG_GUEST_ERROR", {"device": "virtio-disk1"})


@pytest.mark.parametrize(
    ("events", "late", "cause"),
    [
        ([], False, "unanswered"),
        ([OTHER_GONE, BACKEND_GONE], False, "unanswered"),
        ([BACKEND_GONE, GONE], False, "released"),
        ([GONE], True, "released-late"),
        ([REFUSED], False, "kept"),
        ([REFUSED, GONE], True, "released-late"),
    ],
)
def test_what_the_guest_did(
    events: list[tuple[str, dict[str, Any]]], late: bool, cause: str
) -> None:
    found = detached(*events, late=late)
    assert [name for name, _ in answers(found)] == [cause]
    assert found[0].case.subject == ("vm1", "disk vdb")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("internal error: unable to execute QEMU command 'device_del': Device virtio-disk1 is "
         "already in the process of unplug", "asked-before"),
        ("Requested operation is not valid: domain is not running", "not-running"),
        ("Cannot access storage file '/a.raw' (as uid:64055, gid:106): Permission denied",
         "no-permission"),
        ("operation failed: something else", "error"),
    ],
)  # fmt: skip
def test_why_it_failed(error: str, cause: str) -> None:
    [(name, sentence)] = answers(detached(error=error))
    assert name == cause
    assert sentence.endswith(f"{error}.")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<interface type='user'><mac address='52:54:00:00:00:01'/></interface>",
         "interface 52:54:00:00:00:01"),
        ("<rng model='virtio'><alias name='rng0'/></rng>", "rng rng0"),
        ("<channel/>", "channel"),
        ("<!DOCTYPE a><a/>", "a device"),
        ("<disk", "a device"),
    ],
)  # fmt: skip
def test_how_a_device_is_called(xml: str, words: str) -> None:
    assert detached(device=xml)[0].case.subject == ("vm1", words)
