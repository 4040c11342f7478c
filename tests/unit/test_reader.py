from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples
from virtrace.errors import TraceError
from virtrace.trace.reader import read_trace


def test_whole_trace(tmp_path: Path) -> None:
    records = samples.records()
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    assert trace.header == records[0]
    assert [event.to_record() for event in trace.events] == records[1:-1]
    assert trace.footer == records[-1]
    assert trace.problems == []


def test_cut_at_every_byte(tmp_path: Path) -> None:
    """Every whole line before the cut is read, and the cut is always told."""
    whole = samples.write(tmp_path / "t.jsonl", samples.records(error="größer 测试")).read_bytes()
    file = tmp_path / "cut.jsonl"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        # A line that only lacks its newline is whole as well.
        complete = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")
        if complete == 0:
            with pytest.raises(TraceError, match="not a virtrace trace"):
                read_trace(file)
            continue
        trace = read_trace(file)
        has_footer = trace.footer is not None
        assert 1 + len(trace.events) + has_footer == complete
        assert has_footer == (length == len(whole) - 1)
        mid_line = not whole[:length].endswith(b"\n") and not whole[length:].startswith(b"\n")
        cut_short = f"line {complete + 1} is cut short: the run ended while it was written"
        assert (cut_short in trace.problems) == mid_line
        assert any(problem.startswith("no footer") for problem in trace.problems) != has_footer


def test_end_of_zeros_after_a_power_cut_is_a_cut(tmp_path: Path) -> None:
    file = samples.write(tmp_path / "t.jsonl", samples.records()[:3])
    with file.open("ab") as stream:
        stream.write(bytes(4096))
    trace = read_trace(file)
    assert len(trace.events) == 2
    assert trace.problems[0].startswith("line 4 is cut short")


def test_newer_version_says_which_one_is_understood(tmp_path: Path) -> None:
    records = samples.records()
    records[0] = {"type": "header", "format": "virtrace-trace", "version": 3}
    with pytest.raises(TraceError, match="version 3; this virtrace understands version 2"):
        read_trace(samples.write(tmp_path / "t.jsonl", records))


def test_what_a_later_virtrace_adds_is_no_error(tmp_path: Path) -> None:
    records = samples.records()
    for record in records:
        record["new_key"] = {"any": "thing"}
    records.insert(3, {"type": "marker", "label": "a type of record that is not known here"})
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    assert dict(trace.header)["new_key"] == {"any": "thing"}
    assert len(trace.events) == len(records) - 3
    assert trace.problems == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"type":"point","seq":', "Expecting value"),
        (b'{"type":"point"}', "'seq' is missing"),
        (b"[1]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{}", "no type"),
        (b'{"type":7}', "no type"),
        (b"\xff\xfe", "decode"),
        (b"[" * 200_000, "levels of objects and arrays"),
        (json.dumps(samples.HEADER).encode(), "two traces in one file"),
    ],
)
def test_broken_line_inside_names_file_and_line(tmp_path: Path, line: bytes, why: str) -> None:
    file = samples.write(tmp_path / "t.jsonl", samples.records())
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:4], line + b"\n", *lines[4:]]))
    with pytest.raises(TraceError) as raised:
        read_trace(file)
    assert raised.value.what.startswith(f"{file}:5: ")
    assert why in raised.value.what
    assert raised.value.remedy.endswith("head -n 4")


def test_lines_after_the_footer_are_an_error(tmp_path: Path) -> None:
    records = samples.records()
    with pytest.raises(TraceError, match="after the footer"):
        read_trace(samples.write(tmp_path / "t.jsonl", [*records, records[1]]))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seq": "1"}, "'seq' is not an integer"),
        ({"t_ns": True}, "'t_ns' is not an integer"),
        ({"values": []}, "'values' is not an object"),
        ({"span": None}, "'span' is not an integer"),
    ],
)
def test_wrong_type_in_an_event(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    records = samples.records()
    records[1].update(change)
    with pytest.raises(TraceError, match=why):
        read_trace(samples.write(tmp_path / "t.jsonl", records))


def test_wrong_type_deep_in_the_header_names_the_key(tmp_path: Path) -> None:
    records = samples.records()
    del records[0]["target"]["modules"][1]["base"]
    with pytest.raises(TraceError, match=r"'target\.modules\[1\]\.base' is missing"):
        read_trace(samples.write(tmp_path / "t.jsonl", records))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hello\n", b"\x7fELF\x00\n", b"{}\n", b'{"type":"header"}\n', b"[1,2]\n", b"{\n"],
)
def test_not_a_trace(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(content)
    with pytest.raises(TraceError, match="not a virtrace trace"):
        read_trace(file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(TraceError, match="not a regular file"):
            read_trace(path)
    with pytest.raises(TraceError, match="No such file") as raised:
        read_trace(tmp_path / "missing.jsonl")
    assert raised.value.remedy == "check the name"


def test_missing_events_are_told(tmp_path: Path) -> None:
    records = samples.records()
    records[-1]["dropped"] = 3
    count = records[-1]["events"]
    del records[5]
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    assert trace.problems == [
        f"{count - 1} of the {count} events are in the file",
        "3 events were dropped while it was recorded",
    ]


def test_large_integers_keep_every_digit(tmp_path: Path) -> None:
    records = samples.records()
    records[1]["values"]["flags"] = 2**64 - 1
    trace = read_trace(samples.write(tmp_path / "t.jsonl", records))
    assert trace.events[0].values["flags"] == 18446744073709551615
