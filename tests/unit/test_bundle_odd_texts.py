"""Whatever stands in a trace or on a host: never a traceback, and soon done."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from tests.support.redaction import READERS, redacted
from virtrace.bundle.audit import findings
from virtrace.host.daemon import gather
from virtrace.trace.reader import read_trace

KEYS = ("odd", "path", "host", "message")
# How a text is read, and for a text without structure what it is called.
HANDLERS = [*((reader, "") for reader in READERS), *(("", key) for key in KEYS)]
LONG = 20_000
REPEATED = [
    *("a", "A1", "1", "1.", "1.1.1.1 ", "aa:", "aa-", "::", "f:", "0x", "'", '"', '"""', "`", "\\"),
    *(
        "\\303",
        "\\x41",
        "%41",
        "[",
        "]",
        "{",
        '{"a":',
        "<",
        "<a>",
        "a@",
        "@",
        "/",
        "/a",
        "a/b:",
        ",",
    ),
    *("x=y,", "=", "password:", "password=", "guest=", ";", "&&", "|", "#", "#\n", "\n", "a = [\n"),
    *(
        "a-",
        "a.b.",
        "json:",
        "tcp:",
        "nbd://",
        "?a=b&",
        "“",
        "「",
        "\uff1a",
        "é",
        "客",
        "\ud800",
        "\0",
    ),
    *("🚑", "\u0300", "-a ", "--a=", "sudo ", "set_password ", "(", "word ", "iqn.", "domain '"),
]


def nested(levels: int, texts: int) -> str:
    """JSON of so many levels, in the texts of which there is such JSON again."""
    document: Any = [1]
    for _ in range(texts):
        for _ in range(levels):
            document = [document]
        document = json.dumps(document)
    return str(document)


ODD = [
    *(nested(600, 1), nested(140, 5), nested(20, 9)),
    *("\ud800", "\x00\x1b[2J", "\ud800://\ud800:\ud800@\ud800/\ud800?\ud800=\ud800", "nbd://[::1"),
    *("<a b='\x00'/>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "a = \"\"\"\n", "a = '"),
    *("%ff%00", "nbd://%ff%fe/%00", "1" * 5000, "-1" * 9, "{" * 5000, '"\\ud800"', "1.1.1.1%"),
    "\u0661.\u0662.\u0663.\u0664",
    *("999.999.999.999", "0" * 40 + ":" * 40, "\u202e", "\\777", "\\400", "a\\", "'\\''"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "key"), HANDLERS)
def test_odd_texts(reader: str, key: str) -> None:
    for text in (*ODD, *(piece * 3 for piece in REPEATED), *(f"x {each} y" for each in ODD)):
        redacted(text, reader=reader, key=key)


@pytest.mark.parametrize(("reader", "key"), HANDLERS)
def test_long_texts_take_no_longer_than_they_are(reader: str, key: str) -> None:
    slow = {}
    for piece in REPEATED:
        began = time.process_time()
        redacted(piece * (LONG // len(piece)), reader=reader, key=key)
        seconds = time.process_time() - began
        if seconds > 1.5:
            slow[piece] = seconds
    assert slow == {}


def test_the_second_reader_takes_no_longer_than_the_texts_are() -> None:
    slow = {}
    for piece in REPEATED:
        text = piece * (LONG // len(piece))
        for file in ("host/guest-1.log", "host/guest-1.xml", "page.html", "trace.jsonl"):
            began = time.process_time()
            for _ in findings({file: text.encode("utf-8", "surrogatepass")}, ()):
                pass
            seconds = time.process_time() - began
            if seconds > 1.5:
                slow[file, piece] = seconds
    assert slow == {}


def test_odd_names_of_guests_are_asked_for(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    names = ["\ud800x", "a\0b", "../x", "x" * 300, "客户-1", "-v", ""]
    for name in names:
        samples.blockinfo(recorder, domain=name)
    header = {**samples.HEADER, "target": {**samples.HEADER["target"], "pid": os.getpid()}}
    header["target"]["modules"] = []
    records = [header, *(event.to_record() for event in recorder.events)]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    trace = read_trace(file)
    facts = gather(trace, os.getpid())
    assert {*facts.domains} == {*names} - {""}
    for told in facts.domains.values():
        assert set(told["log"]) == set(told["xml"]) == {"unavailable"}
