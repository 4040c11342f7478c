"""What agents answered, in cases that a lab does not show."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.analysis.explain.trace import Explained


def asked(*texts: Any, error: str = "", status: int = 0) -> Explained[Any]:
    """A client's call in which libvirt wrote these texts."""
    recorder = samples.Recorder()
    call = recorder.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    recorder.add("enter", "virNetServerProgramDispatch", values={"client": "0x1"}, **place)

    def point(probe: str, **values: Any) -> None:
        recorder.add("point", probe, values=values, call=call, parent=call)

    point("rpc.procedure", name="remoteDispatchDomainFSFreeze")
    point("rpc.domain", name="vm1")
    for text in texts:
        point("agent.command", text=json.dumps(text), json=text)
    if error:
        point("error", code=1, message=error)
    point("rpc.reply", status=status)
    recorder.add("exit", "virNetServerProgramDispatch", values={"result": 0}, **place)
    roles_ = {name.replace(".", "_"): name for name in ("agent.command", "error", "rpc.reply")}
    return explained(recorder, **roles_)


FREEZE = {"execute": "guest-fsfreeze-freeze"}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("guest agent command timed out: guest agent didn't respond to synchronization within '5' "
         "seconds", "silent"),
        ("internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze': frozen",
         "refused"),
        ("internal error: something else", "error"),
        ("", "unknown"),
    ],
)  # fmt: skip
def test_how_it_failed(error: str, cause: str) -> None:
    found = asked(FREEZE, error=error, status=1)
    assert [name for name, _ in answers(found)] == [cause]
    assert found[0].case.subject == ("vm1", "guest-fsfreeze-freeze")


def test_what_is_not_for_an_agent() -> None:
    """Another command's answer, a command for QEMU, and what is neither."""
    others = [{"return": {}}, {"execute": "stop", "id": "libvirt-1"}, {"execute": 1}, [], 7]
    assert [*asked(*others)] == []
    assert [*asked(*others, error="internal error: something else", status=1)] == []
    [case] = asked(*others, FREEZE)
    assert case.case.subject == ("vm1", "guest-fsfreeze-freeze")


def test_equal_answers_are_one_case() -> None:
    assert asked(FREEZE)[0].case.key == asked(FREEZE)[0].case.key
    assert asked(FREEZE)[0].case.key != asked({"execute": "guest-ping"})[0].case.key
