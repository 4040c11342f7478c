"""A recording in several files: each is a trace, and together they are the recording."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, cast

import jsonschema_rs
import pytest

from tests.support import samples
from tests.unit.test_writer import full_disk
from virtrace.analysis.spans import CallBuilder
from virtrace.cli.main import main
from virtrace.errors import DONE, INCOMPLETE, TraceError
from virtrace.trace.format import ROTATED, Footer, Record
from virtrace.trace.reader import read_trace
from virtrace.trace.rotation import RotatingWriter, new_writer, parts
from virtrace.trace.schema import schema
from virtrace.trace.writer import Writer

HEADER: Any
FOOTER: Any
HEADER, *CALL, FOOTER = samples.records()
# Longer than the header, so that a file takes some calls.
SIZE = 20_000
ENDINGS = ("", ".gz", ".zst")


def call(number: int) -> list[Record]:
    """The events of the sample, as the call of this number."""
    moved: list[Record] = []
    for event in CALL:
        ids = {
            key: event[key] if event[key] is None else event[key] + 100 * number
            for key in ("span", "parent", "call")
        }
        seqs: Record = {
            key: event[key] + number * len(CALL) for key in ("seq", "answers") if key in event
        }
        moved.append({**event, **ids, **seqs, "t_ns": event["t_ns"] + number * 10**9})
    return moved


class Recorded:
    """What a session does, so far as the writer sees it."""

    def __init__(self, path: Path, rotate: int = SIZE, keep: int | None = None) -> None:
        self.writer = new_writer(path, (rotate, keep))
        self.events: list[Record] = []
        self.dropped = 0
        self.writer.begin(HEADER)

    def footer(self) -> Footer:
        counted = {"events": len(self.events), "dropped": self.dropped, "detached": False}
        return cast("Footer", {**FOOTER, **counted})

    def write(self, events: list[Record]) -> None:
        self.writer.may_rotate(self.footer())
        self.writer.write(iter(events))
        self.events += events

    def end(self) -> None:
        self.writer.finish({**self.footer(), "reason": "done", "detached": True})
        self.writer.check_there()
        self.writer.close()


def without_seq(event: Any) -> Record:
    record = event if isinstance(event, dict) else event.to_record()
    return {key: value for key, value in record.items() if key not in ("seq", "answers")}


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    found = Recorded(tmp_path / "t.jsonl")
    for number in range(40):
        for event in call(number):
            found.write([event])
    found.end()
    return found


def test_each_file_is_a_trace_and_none_cuts_a_call(recorded: Recorded, tmp_path: Path) -> None:
    files = parts(tmp_path / "t.jsonl")
    assert files == sorted(tmp_path.iterdir())
    assert [file.name for file in files[:2]] == ["t.000001.jsonl", "t.000002.jsonl"]
    assert len(files) > 3
    validator = jsonschema_rs.Draft202012Validator(schema())
    events: list[Record] = []
    for number, file in enumerate(files, 1):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for line in file.read_text().splitlines():
            validator.validate(json.loads(line))
        trace = read_trace(file)
        assert trace.problems == []
        assert trace.header == {**HEADER, "part": {"number": number, "open": []}}
        assert [event.seq for event in trace.events] == list(range(len(trace.events)))
        assert all(each.complete for each in CallBuilder().calls(trace))
        asked = [event.answers for event in trace.events if event.name == "qmp.reply"]
        assert {trace.events[seq or 0].name for seq in asked} == {"qmp.send"}
        assert trace.footer is not None
        last = file == files[-1]
        assert trace.footer["reason"] == ("done" if last else "rotated")
        assert last or SIZE <= file.stat().st_size < SIZE * 3 // 2
        assert main(["show", str(file)]) == DONE
        events += map(without_seq, trace.events)
    assert events == list(map(without_seq, recorded.events))
    assert recorded.writer.size == sum(file.stat().st_size for file in files)


def test_a_reply_names_no_request_of_an_earlier_file(tmp_path: Path) -> None:
    found = Recorded(tmp_path / "t.jsonl")
    [sent] = [event for event in CALL if event["name"] == "qmp.send"]
    [reply] = [event for event in CALL if event["name"] == "qmp.reply"]
    for seq in range(100):
        found.write([{**sent, "seq": seq, "span": None, "parent": None, "call": None}])
    found.write([{**reply, "seq": 100, "parent": None, "call": None, "answers": 1}])
    found.write([{**reply, "seq": 101, "parent": None, "call": None, "answers": 99}])
    found.end()
    *_, before, last = parts(tmp_path / "t.jsonl")
    first = sum(len(read_trace(file).events) for file in parts(tmp_path / "t.jsonl")[:-1])
    assert before != last
    assert [event.answers for event in read_trace(last).events[-2:]] == [None, 99 - first]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_name_keeps_its_end(ending: str, tmp_path: Path) -> None:
    recording = Recorded(tmp_path / f"night.jsonl{ending}", rotate=600)
    for number in range(4):
        recording.write(call(number))
    recording.end()
    files = parts(tmp_path / f"night.jsonl{ending}")
    assert [file.name for file in files] == [
        f"night.{number:06}.jsonl{ending}" for number in range(1, 5)
    ]
    for file in files:
        assert len(read_trace(file).events) == len(CALL)
        assert read_trace(file).problems == []


def test_what_is_dropped_is_told_of_the_file_that_it_is_missing_from(tmp_path: Path) -> None:
    recording = Recorded(tmp_path / "t", rotate=1)
    for number in range(3):
        recording.write(call(number))
        recording.dropped += number == 1
    recording.end()
    dropped = [read_trace(file).footer["dropped"] for file in parts(tmp_path / "t")]  # type: ignore[index]
    assert dropped == [0, 1, 0]


def test_calls_that_overlap_all_the_time_are_cut_and_both_files_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = Recorded(tmp_path / "t.jsonl")
    enter, *inside = call(900)
    # Open from the first file to the last one, whose other calls are whole.
    recording.write([enter])
    for number in range(80):
        recording.write(call(number))
    recording.write(inside)
    recording.end()
    files = parts(tmp_path / "t.jsonl")
    assert len(files) > 2
    for file in files:
        trace = read_trace(file)
        first, last = file == files[0], file == files[-1]
        assert trace.header["part"]["open"] == ([] if first else [enter["call"]])
        assert last or 2 * SIZE <= file.stat().st_size < 3 * SIZE
        lost = [event for event in trace.events if event.type == "lost"]
        assert [event.values for event in lost] == ([{"why": ROTATED}] if first else [])
        assert trace.footer is not None
        assert trace.footer["events"] == len(trace.events)
        found = list(CallBuilder().calls(trace))
        incomplete = [each.id for each in found if not each.complete]
        # Its other events are in the last one.
        assert incomplete == ([enter["call"]] if first or last else [])
        said = f"begun in an earlier file and open at the start: calls {enter['call']}"
        assert trace.problems == ([] if first else [said])
        assert main(["show", str(file)]) == (DONE if first else INCOMPLETE)
        assert "the recording continues in the next one" in capsys.readouterr().out or last


def test_what_was_switched_off_is_in_every_file_that_lacks_it(tmp_path: Path) -> None:
    off = {"type": "switched-off", "t_ns": 5, "name": "f", "kind": "line", "why": "too dear"}
    recording = Recorded(tmp_path / "t", rotate=1)
    recording.write(call(0))
    recording.write(call(1))
    recording.writer.write([off])
    recording.write(call(2))
    recording.end()
    told = [read_trace(file).switched_off for file in parts(tmp_path / "t")]
    assert told[0] == []
    assert told[-1] == [off]


def test_only_the_last_files_are_kept_and_those_of_others_left_alone(tmp_path: Path) -> None:
    recording = Recorded(tmp_path / "t.jsonl", rotate=1, keep=2)
    recording.write(call(0))
    recording.write(call(1))
    first = tmp_path / "t.000001.jsonl"
    first.rename(tmp_path / "mine.jsonl")
    first.write_text("not of this recording")
    (tmp_path / "t.000000.jsonl").write_text("older")
    for number in range(2, 6):
        recording.write(call(number))
        size = recording.writer.size
    recording.end()
    assert first.read_text() == "not of this recording"
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"t.000000.jsonl", first.name, "mine.jsonl", "t.000005.jsonl", "t.000006.jsonl"}
    # Of all that was written, for --max-bytes.
    assert size > sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_file_of_any_number_that_exists_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "t.000007.jsonl").symlink_to("elsewhere")
    with pytest.raises(TraceError, match=r"t\.000007\.jsonl already exists"):
        RotatingWriter(tmp_path / "t.jsonl", 1, None)
    assert [file.name for file in tmp_path.iterdir()] == ["t.000007.jsonl"]
    RotatingWriter(tmp_path / "t.jsonl.gz", 1, None).discard()
    assert [file.name for file in tmp_path.iterdir()] == ["t.000007.jsonl"]
    with pytest.raises(TraceError, match="No such file or directory"):
        RotatingWriter(tmp_path / "no" / "t.jsonl", 1, None)


@pytest.mark.parametrize("ending", ENDINGS)
def test_where_no_file_can_follow_the_last_one_goes_on(ending: str, tmp_path: Path) -> None:
    """As a session does it, which ends by the error and writes what there is room for."""
    path = tmp_path / f"t{ending}"
    recording = Recorded(path, rotate=1)
    recording.write(call(0))
    taken = recording.writer.path.with_name(f"t.000002{ending}")
    taken.write_text("of another")
    with pytest.raises(TraceError, match="already exists"):
        recording.write(call(1))
    recording.write(call(1))
    recording.end()
    assert taken.read_text() == "of another"
    trace = read_trace(tmp_path / f"t.000001{ending}")
    assert trace.problems == []
    assert list(map(without_seq, trace.events)) == list(map(without_seq, recording.events))


def test_a_full_disk_leaves_no_file_without_its_header(tmp_path: Path) -> None:
    recording = Recorded(tmp_path / "t", rotate=1)
    recording.write(call(0))
    with full_disk(), pytest.raises(TraceError, match="File too large"):
        recording.write(call(1))
    recording.write(call(1))
    recording.end()
    assert [file.name for file in tmp_path.iterdir()] == ["t.000001"]
    trace = read_trace(tmp_path / "t.000001")
    assert trace.problems == []
    assert len(trace.events) == 2 * len(CALL)


def test_without_a_size_there_is_one_file_of_the_very_name(tmp_path: Path) -> None:
    writer = new_writer(tmp_path / "t.jsonl", None)
    assert type(writer) is Writer
    writer.close()
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]
