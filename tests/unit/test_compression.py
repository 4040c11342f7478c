"""Compressed traces: what is written can be read at once, and what is read has a bound."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support import samples
from tests.unit.test_writer import full_disk
from virtrace.analysis.spans import CallBuilder
from virtrace.cli.main import main
from virtrace.errors import TraceError
from virtrace.trace.bundle_reader import FOLDER, TRACE
from virtrace.trace.reader import TraceStream, read_trace
from virtrace.trace.writer import Writer, insert_before_footer

ENDINGS = (".gz", ".zst")


def written(path: Path) -> Path:
    footer: Any
    header, *events, footer = samples.records()
    writer = Writer(path)
    writer.write([header])
    for event in events:
        writer.write([event])
    writer.finish(footer)
    writer.close()
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_whatever_it_is_called(ending: str, tmp_path: Path) -> None:
    plain = read_trace(samples.write(tmp_path / "t.jsonl", samples.records()))
    packed = written(tmp_path / f"t.jsonl{ending}")
    assert read_trace(packed) == plain
    renamed = packed.rename(tmp_path / "t.jsonl.bak")
    assert read_trace(renamed) == plain


def test_other_tools_read_it(tmp_path: Path) -> None:
    lines = samples.write(tmp_path / "t.jsonl", samples.records()).read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    packed = gzip.decompress(written(tmp_path / "t.gz").read_bytes())
    assert [json.loads(line) for line in packed.splitlines()] == records
    with zstandard.open(written(tmp_path / "t.zst"), "rb") as stream:
        assert [json.loads(line) for line in stream.read().splitlines()] == records


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_written_is_there_before_the_end(ending: str, tmp_path: Path) -> None:
    """As after kill -9: nothing is closed, nothing more is written."""
    header, *events, _ = samples.records()
    writer = Writer(tmp_path / f"t{ending}")
    writer.write([header])
    for number, event in enumerate(events, 1):
        writer.write([event])
        trace = read_trace(writer.path)
        assert len(trace.events) == number
        assert trace.problems == ["no footer: the run was cut short, or is still running"]
    writer.close()


@pytest.mark.parametrize("ending", ENDINGS)
def test_cut_at_every_byte(ending: str, tmp_path: Path) -> None:
    """What was written before the cut is read, and that something is missing is told."""
    whole = written(tmp_path / f"t{ending}").read_bytes()
    alone = Writer(tmp_path / f"header{ending}")
    alone.write([samples.HEADER])
    alone.close()
    file = tmp_path / "cut"
    before = -1
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        try:
            trace = read_trace(file)
        except TraceError:
            # Not even its header is there.
            assert before < 0
            assert length < alone.path.stat().st_size
            continue
        assert len(trace.events) >= before
        assert trace.problems or trace.footer
        before = len(trace.events)
    assert before == len(samples.records()) - 2


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_command_that_shows_an_event_unpacks_it(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / f"t.jsonl{ending}")
    assert main(["explain", str(file)]) == 0
    [last] = [line for line in capsys.readouterr().out.splitlines() if " | jq " in line]
    command = last.partition("  ")[2].strip().partition(" ")[2].strip()
    if shutil.which("jq") and shutil.which(command.split()[0]):
        shown = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=True).stdout
        assert shown.strip() not in (b"", b"null")
    assert command.startswith("zcat" if ending == ".gz" else "zstdcat")


@pytest.mark.parametrize("ending", ENDINGS)
def test_damage_inside_is_told(ending: str, tmp_path: Path) -> None:
    file = written(tmp_path / f"t{ending}")
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = b"\xff" * 8
    file.write_bytes(data)
    with pytest.raises(TraceError):
        read_trace(file)


@pytest.mark.parametrize("ending", ENDINGS)
def test_records_are_inserted_before_the_footer(ending: str, tmp_path: Path) -> None:
    file = written(tmp_path / f"t{ending}")
    before = read_trace(file)
    host = {
        **{"type": "host", "collected": "", "domain": "vm1", "disk": "vda", "path": None},
        **{
            "xml": "",
            "stat": {"unavailable": "no path"},
            "file_system": "",
            "image_info": {},
            "lvm": {},
        },
    }
    insert_before_footer(file, lambda _: [host])
    insert_before_footer(file, lambda _: [host])
    after = read_trace(file)
    assert after.host == [host, host]
    assert (after.events, after.footer, after.problems) == (before.events, before.footer, [])


def test_a_full_disk_leaves_a_trace_that_goes_on(tmp_path: Path) -> None:
    footer: Any
    header, event, *_, footer = samples.records()
    writer = Writer(tmp_path / "t.gz")
    writer.write([header])
    incompressible = "".join(chr(0x4E00 + number * 7919 % 20000) for number in range(3000))
    with full_disk(), pytest.raises(TraceError, match="File too large"):
        writer.write([{**event, "values": {"text": incompressible}}])
    writer.write([event])
    footer["events"] = 1
    writer.finish(footer)
    writer.close()
    trace = read_trace(writer.path)
    assert [each.to_record() for each in trace.events] == [event]
    assert trace.problems == []


def test_a_full_disk_leaves_what_zstandard_had_written(tmp_path: Path) -> None:
    footer: Any
    header, event, *_, footer = samples.records()
    writer = Writer(tmp_path / "t.zst")
    writer.write([header])
    with full_disk(), pytest.raises(TraceError, match="File too large"):
        writer.write([{**event, "values": {"text": "".join(map(chr, range(0x4E00, 0x5E00)))}}])
    with pytest.raises(TraceError, match="cannot write the trace"):
        writer.finish(footer)
    writer.close()
    assert read_trace(writer.path).header == header


def bundle(trace: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        member = tarfile.TarInfo(FOLDER + TRACE)
        member.size = len(trace)
        packed.addfile(member, io.BytesIO(trace))
    return file.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstandard": zstandard.compress,
    "bundle": lambda trace: gzip.compress(bundle(trace)),
}


@pytest.mark.parametrize("how", sorted(PACKED))
def test_bombs(how: str, tmp_path: Path) -> None:
    header = json.dumps(samples.HEADER).encode() + b"\n"
    event = json.dumps(samples.records()[1]).encode() + b"\n"
    bombs = {
        "a line of more than 24 MiB": header + b'{"type":"x","y":"' + b"y" * (25 << 20),
        "more than 500,000 values": header + b'{"type":"x","y":[' + b"0," * 600_000,
        "expands to more than 100 times its size": header + event * ((64 << 20) // len(event)),
    }
    file = tmp_path / "bomb"
    for what, data in bombs.items():
        file.write_bytes(PACKED[how](data))
        with pytest.raises(TraceError) as raised, TraceStream(file) as stream:
            for _ in stream:
                pass
        assert what in raised.value.what


def test_calls_that_never_end(tmp_path: Path) -> None:
    header, enter = (json.dumps(record) for record in samples.records()[:2])
    first = '"span": 1,'
    assert enter.count(first) == 1
    lines = [header, *(enter.replace(first, f'"span": {n},') for n in range(200_001))]
    file = tmp_path / "t.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    with TraceStream(file) as stream, pytest.raises(TraceError, match=r"200,000 events .* open"):
        next(CallBuilder(stream.most_open).calls(stream))
