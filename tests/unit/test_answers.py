"""Answers find what they answer, whatever thread they come on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from virtrace.engine.answers import MOST_ASKED, Answers
from virtrace.engine.tracer import RawEvent
from virtrace.recipe import catalogue
from virtrace.recipe.loader import loads
from virtrace.trace.writer import Writer

RECIPE = catalogue.find_recipe("blockinfo")


def point(name: str, text: Any, call: int | None = None, mon: str = "0x1") -> RawEvent:
    return RawEvent("point", 0, 1, name, None, call, call, {"mon": mon, "text": text})


def send(number: int, call: int, mon: str = "0x1") -> RawEvent:
    return point("qmp.send", f'{{"execute":"x","id":"libvirt-{number}"}}', call, mon)


def reply(number: int, mon: str = "0x1") -> RawEvent:
    return point("qmp.reply", f'{{"return":{{}},"id":"libvirt-{number}"}}', None, mon)


@pytest.fixture
def answers() -> Answers:
    return Answers(RECIPE.points)


def test_answers_that_cross_each_other(answers: Answers) -> None:
    assert answers.place(send(1, call=10))
    assert answers.place(send(2, call=20))
    for number, call in ((2, 20), (1, 10)):
        event = reply(number)
        assert answers.place(event)
        assert (event.parent, event.call) == (call, call)
        assert event.values["json"]["id"] == f"libvirt-{number}"


def test_the_same_id_on_another_monitor_is_another(answers: Answers) -> None:
    assert answers.place(send(1, call=10, mon="0x1"))
    assert answers.place(send(1, call=20, mon="0x2"))
    event = reply(1, mon="0x2")
    assert answers.place(event)
    assert event.call == 20


def test_what_answers_nothing_recorded_is_left_out(answers: Answers) -> None:
    assert not answers.place(reply(1))
    assert answers.place(send(1, call=10))
    assert answers.place(reply(1))
    # Once is enough.
    assert not answers.place(reply(1))


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "{", {"bytes": "/w=="}, {"unavailable": "NULL pointer"}, "[" * 100_000],
    ids=["empty", "words", "cut", "bytes", "unavailable", "deep"],
)
def test_a_text_that_cannot_be_parsed_is_kept_as_it_is(answers: Answers, text: Any) -> None:
    event = point("qmp.send", text, 10)
    assert answers.place(event)
    assert event.values == {"mon": "0x1", "text": text}


@pytest.mark.parametrize(
    "text",
    [
        '{"id":"\\ud800"}',
        '{"\\udfff":1}',
        '{"id":NaN}',
        '{"id":-Infinity}',
        '{"id":1e999}',
        # Just what the parser takes may be too deep for the one who writes it.
        *("[" * depth + "]" * depth for depth in range(900, 1020, 10)),
    ],
    ids=lambda text: text[:12],
)
def test_whatever_json_it_was_the_trace_can_be_written_and_read(
    answers: Answers, tmp_path: Path, text: str
) -> None:
    """QEMU may be anybody's: what it says must not end the trace."""
    event = point("qmp.send", text, 10)
    assert answers.place(event)
    file = tmp_path / "t.jsonl"
    writer = Writer(file)
    writer.write([event.values])
    writer.close()
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["text"] == text


def test_events_of_other_kinds_pass(answers: Answers) -> None:
    event = RawEvent("enter", 0, 1, "qmp.send", 1, None, 1, {})
    assert answers.place(event)
    assert event.values == {}


@pytest.mark.parametrize("text", ['{"execute":"a"}', '{"id":null}', "no JSON"])
def test_what_has_nothing_to_be_known_by_is_never_paired(answers: Answers, text: str) -> None:
    """Two that lack the same are no pair for it."""
    assert answers.place(point("qmp.send", text, 10))
    assert not answers.place(point("qmp.reply", text, None))


def test_what_is_unavailable_pairs_nothing(answers: Answers) -> None:
    sent, received = point("qmp.send", '{"id":"1"}', 10), point("qmp.reply", '{"id":"1"}', None)
    for event in (sent, received):
        event.values["mon"] = {"unavailable": "optimized out"}
    assert answers.place(sent)
    assert not answers.place(received)


TWO_WAYS = """
virtrace: 1
name: two-ways
about: Two points that answer one, each by what it has.
try: virsh list
points:
  - name: ask
    usdt: libvirt:ask
    module: libvirt.so.0
    arguments: void *mon, int id
    anywhere: true
    capture: {mon: mon, id: id}
  - name: by-monitor
    usdt: libvirt:one
    module: libvirt.so.0
    arguments: void *mon
    capture: {mon: mon}
    answers: {point: ask, by: [mon]}
  - name: by-id
    usdt: libvirt:two
    module: libvirt.so.0
    arguments: int id
    capture: {id: id}
    answers: {point: ask, by: [id]}
"""


def test_two_points_answer_one_each_in_its_own_way() -> None:
    answers = Answers(loads(TWO_WAYS.encode(), "two-ways.yaml").points)
    asked = RawEvent("point", 0, 1, "ask", None, 7, 7, {"mon": "0x1", "id": 3})
    assert answers.place(asked)
    for name, values in (("by-monitor", {"mon": "0x1"}), ("by-id", {"id": 3})):
        event = RawEvent("point", 0, 2, name, None, None, None, dict(values))
        assert answers.place(event)
        assert (event.parent, event.call) == (7, 7)


def test_what_is_never_answered_is_not_kept_for_ever(answers: Answers) -> None:
    for number in range(MOST_ASKED + 1):
        assert answers.place(send(number, call=10))
    assert not answers.place(reply(0))
    assert answers.place(reply(1))
    assert answers.place(reply(MOST_ASKED))
