"""From events to the lines of a trace, and to what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from virtrace.engine.answers import Answers
from virtrace.engine.output import Output
from virtrace.engine.tracer import RawEvent
from virtrace.errors import TraceError
from virtrace.recipe import catalogue
from virtrace.recipe.selection import Limits
from virtrace.trace import roles
from virtrace.trace.format import Event, Record
from virtrace.trace.json_text import to_line
from virtrace.trace.reader import read_trace
from virtrace.trace.writer import Writer

SENT = '{"execute":"query-block","id":"libvirt-1"}'
RECEIVED = '{"return":[],"id":"libvirt-1"}'


class Shown:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def banner(self, header: Any) -> None: ...
    def event(self, event: Event) -> None:
        self.events.append(event)

    def switched_off(self, record: Any) -> None: ...
    def summary(self, footer: Any) -> None: ...


class Full(Writer):
    """A disk that takes no record with this text."""

    refused = ""

    def write(self, records: Any) -> None:
        lines = [*records]
        if any(self.refused and self.refused.encode() in to_line(line) for line in lines):
            raise TraceError("no space left on device", "make room")
        super().write(lines)


def point(name: str, text: str, call: int | None = None) -> RawEvent:
    return RawEvent("point", 5, 7, name, None, call, call, {"mon": "0x1", "text": text})


@pytest.fixture
def output(tmp_path: Path) -> Output:
    writer = Full(tmp_path / "t.jsonl")
    found = Output(Answers(catalogue.find_recipe("blockinfo").points), Limits(), writer, Shown())
    found.begin(samples.HEADER)
    return found


def records(folder: Path) -> list[Record]:
    return [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()[1:]]


def test_text_is_stored_once_and_a_reply_names_its_request(output: Output, tmp_path: Path) -> None:
    output.take([point("error", "", 1), point("qmp.send", SENT, 1)])
    output.take([point("qmp.reply", RECEIVED)])
    _, sent, received = records(tmp_path)
    assert (sent["values"], sent["json"]) == ({"mon": "0x1"}, json.loads(SENT))
    assert (received["values"], received["json"]) == ({"mon": "0x1"}, json.loads(RECEIVED))
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    for line, text in zip(lines[2:], (SENT, RECEIVED)):
        assert line.endswith(f',"json":{text}}}')
    assert ("answers" in sent, received["answers"]) == (False, sent["seq"])
    view = output._view
    assert isinstance(view, Shown)
    trace = read_trace(tmp_path / "t.jsonl")
    # What is shown while it is recorded is what is read later.
    assert trace.events == view.events
    assert [event.role for event in trace.events] == ["error", "qmp.command", "qmp.reply"]
    assert trace.events[2].values == {
        "mon": "0x1",
        "text": RECEIVED,
        "json": {"return": [], "id": "libvirt-1"},
    }


def test_a_reply_names_no_request_that_could_not_be_written(
    output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Full, "refused", "query-block")
    with pytest.raises(TraceError):
        output.take([point("qmp.send", SENT, 1), point("qmp.reply", RECEIVED)])
    [received] = records(tmp_path)
    assert (received["name"], "answers" in received) == ("qmp.reply", False)


def test_who_called_is_written_where_an_error_follows(tmp_path: Path) -> None:
    names = {
        **{"rpc.client": roles.RPC_CLIENT, "rpc.procedure": roles.RPC_PROCEDURE},
        **{"rpc.domain": roles.RPC_DOMAIN, "error": roles.ERROR, "api.failed": roles.API_FAILED},
    }
    like = samples.HEADER["probes"][0]
    probes = [{**like, "name": name, "kind": "point", "role": role} for name, role in names.items()]
    output = Output(Answers(()), Limits(), Writer(tmp_path / "t.jsonl"), Shown())
    header: Any = {**samples.HEADER, "probes": probes}
    output.begin(header)

    def happen(*what: str, tid: int = 7) -> None:
        events = (each.partition("=") for each in what)
        output.take(
            [
                RawEvent("point", 5, tid, name, None, None, None, {"name": value})
                for name, _, value in events
            ]
        )

    happen("rpc.client=1", "rpc.procedure=get", "rpc.domain=a")
    happen("rpc.client=2", "rpc.procedure=get", tid=8)
    # Neither a thread that serves no client, nor a call without an error.
    happen("rpc.domain=z", "error=own", tid=9)
    happen("rpc.client=3", "rpc.procedure=set", *["rpc.domain=a", "rpc.domain=b"] * 3)
    happen("error=x", "error=y", "api.failed=f")
    # Of a call whose client was lost, none is known.
    happen("rpc.procedure=put", "error=z", tid=8)
    found = [(each["tid"], each["name"], each["values"]["name"]) for each in records(tmp_path)]
    assert found == [
        (9, "error", "own"),
        *((7, "rpc.client", "3"), (7, "rpc.procedure", "set")),
        *((7, "rpc.domain", "a"), (7, "rpc.domain", "b")),
        *((7, "error", "x"), (7, "error", "y"), (7, "api.failed", "f")),
        (8, "error", "z"),
    ]
