"""Why snapshots fail, by messages that a lab cannot be made to say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import samples
from tests.unit.test_explainers import answers, explained
from virtrace.trace import roles


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        ("Guest agent is not responding: QEMU guest agent is not connected", "no-agent",
         "It was not taken because no agent in the guest can be asked"),
        ("unable to write '/var/lib/mem.save': No space left on device", "no-space",
         "because the file system is full: "),
        ("block copy still active: disk 'vda' already in active block job", "has-job",
         "because a disk has a block job: "),
        ("operation failed: something else", "error", "It was not taken: operation failed: "),
    ],
)  # fmt: skip
def test_why_it_failed(error: str, cause: str, words: str) -> None:
    recorder = samples.Recorder()
    call = recorder.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    api = "virDomainSnapshotCreateXML"
    xml = "<domainsnapshot><name>s1</name></domainsnapshot>"
    values = {"domain": "vm1", "snapshot": xml, "flags": 16}
    recorder.add("enter", api, values=values, **place)
    message = {"code": 1, "message": error}
    recorder.add("point", "error", values=message, call=call, parent=call)
    recorder.add("exit", api, values={"result": "0x0"}, **place)
    found = explained(recorder, error=roles.ERROR)
    [(name, sentence)] = answers(found)
    assert (name, words in sentence) == (cause, True), sentence
    assert sentence.endswith(f"{error}.")
    assert found[0].case.subject == ("vm1", "s1")


def test_without_an_error_nothing_is_said_to_be_done() -> None:
    recorder = samples.Recorder()
    call = recorder.new_span()
    place: dict[str, Any] = {"call": call, "span": call}
    values = {"domain": "vm1", "name": "s1", "flags": 0}
    recorder.add("enter", "virDomainRevertToSnapshot", values=values, **place)
    recorder.add("exit", "virDomainRevertToSnapshot", values={"result": -1}, **place)
    [(name, _)] = answers(explained(recorder))
    assert name == "unknown"
