"""``virtrace export``: what other tools read of it.

What viewers of traces make of theirs is in tests/browser/test_viewers.py.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pandas
import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from tests.support import pages, samples
from tests.support.command import virtrace
from virtrace import report
from virtrace.cli.main import main
from virtrace.trace.format import unavailable

FORMS = ["perfetto", "chrome", "otlp", "csv", "folded", "speedscope", "mermaid", "svg"]


def export(file: Path, form: str, status: int = 0) -> Path:
    out = file.parent / f"exported.{form}"
    assert main(["export", str(file), "--to", form, "-o", str(out)]) == status
    return out


def chrome_events(file: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(export(file, "chrome").read_text())["traceEvents"]
    return events


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return virtrace("export", *words)


@pytest.mark.parametrize("form", FORMS)
def test_export(form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command(pages.SAMPLE, "--to", form, "-o", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    written = out.read_bytes()
    assert b"virDomainGetBlockInfo" in written
    again = command(pages.SAMPLE, "--to", form, "-o", out)
    assert again.returncode == 2
    assert "already exists" in again.stderr
    assert out.read_bytes() == written


@pytest.mark.parametrize("form", FORMS)
def test_export_of_what_holds_no_call_or_not_all(form: str, tmp_path: Path) -> None:
    empty = samples.write(tmp_path / "empty", [samples.HEADER, samples.footer([])])
    out = tmp_path / "out"
    done = command(empty, "--to", form, "-o", out)
    assert done.returncode == 2
    assert "has no calls to export" in done.stderr
    assert not out.exists()
    cut = samples.write(tmp_path / "cut", samples.records()[:-1])
    assert command(cut, "--to", form, "-o", out).returncode == 4
    assert out.exists()


def test_without_the_package_perfetto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "virtrace.report.perfetto", raising=False)
    monkeypatch.delattr(report, "perfetto", raising=False)
    monkeypatch.setitem(sys.modules, "perfetto.trace_builder.proto_builder", None)
    out = tmp_path / "out"
    assert main(["export", str(pages.SAMPLE), "--to", "perfetto", "-o", str(out)]) == 2
    assert "or --to chrome" in capsys.readouterr().err
    assert not out.exists()


def test_numbers_that_perfetto_has_no_place_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = samples.records()
    lines[1]["t_ns"] = 2**80
    file = samples.write(tmp_path / "t", lines)
    out = tmp_path / "out"
    assert main(["export", str(file), "--to", "perfetto", "-o", str(out)]) == 2
    assert "cannot be written for Perfetto" in capsys.readouterr().err
    assert not out.exists()


# Time lines


def without_the_return_of(name: str) -> list[dict[str, Any]]:
    lines = samples.records()
    [place] = [
        at
        for at, line in enumerate(lines)
        if (line.get("type"), line.get("name")) == ("exit", name)
    ]
    lines[place].update(type="lost", values={"why": "its thread ended"})
    return lines


def test_a_function_whose_return_was_not_seen_has_no_length(tmp_path: Path) -> None:
    gather = "qemuDomainBlocksStatsGather"
    file = samples.write(tmp_path / "t", without_the_return_of(gather))
    [of_chrome] = [event for event in chrome_events(file) if gather in event["name"]]
    assert (of_chrome["name"], of_chrome["ph"]) == (f"{gather} (no return seen)", "i")

    trace = protos.Trace.FromString(export(file, "perfetto").read_bytes())
    [of_perfetto] = [
        packet.track_event for packet in trace.packet if gather in packet.track_event.name
    ]
    assert of_perfetto.name == f"{gather} (no return seen)"
    assert of_perfetto.type == protos.TrackEvent.TYPE_INSTANT


@pytest.mark.parametrize("clock", ["MONOTONIC", "BOOTTIME"])
def test_the_clock_is_that_of_the_engine(tmp_path: Path, clock: str) -> None:
    lines = samples.records()
    lines[0] = {**lines[0], "clock": {"source": f"CLOCK_{clock}", "start_ns": 10**9}}
    file = samples.write(tmp_path / "t", lines)
    trace = protos.Trace.FromString(export(file, "perfetto").read_bytes())
    expected = protos.BuiltinClock.Value(f"BUILTIN_CLOCK_{clock}")
    first = trace.packet[0]
    assert first.trace_packet_defaults.timestamp_clock_id == expected
    assert first.clock_snapshot.primary_trace_clock == expected
    assert (expected, 10**9) in [
        (each.clock_id, each.timestamp) for each in first.clock_snapshot.clocks
    ]


def test_a_command_without_reply_points_to_nothing(tmp_path: Path) -> None:
    lines = [line for line in samples.records() if line.get("name") != "qmp.reply"]
    lines[-1]["events"] -= 1
    events = chrome_events(samples.write(tmp_path / "t", lines))
    [sent] = [event for event in events if event.get("cat") == "qmp"]
    assert (sent["name"], sent["ph"]) == ("qmp.send query-blockstats", "i")


def test_numbers_that_a_double_cannot_hold_stay_exact(tmp_path: Path) -> None:
    lines = samples.records()
    lines[1]["values"].update(flags=2**64 - 1, most=2**53, few=-(2**63), many=[2**60])
    events = chrome_events(samples.write(tmp_path / "t", lines))
    [call] = [event for event in events if event["name"] == "virDomainGetBlockInfo"]
    told = call["args"]["arguments"]
    assert told["flags"] == "18446744073709551615"
    assert (told["most"], told["few"], told["many"]) == (2**53, str(-(2**63)), [str(2**60)])


def test_a_trace_without_calls_has_its_points(tmp_path: Path) -> None:
    lines = samples.records(error="no such disk")
    alone = [line for line in lines[1:-1] if line["name"] == "error"]
    alone[0].update(parent=None, call=None, seq=0)
    lines = [lines[0], *alone, {**lines[-1], "events": 1}]
    events = chrome_events(samples.write(tmp_path / "t", lines))
    [error] = [event for event in events if event.get("cat") == "error"]
    assert error["args"]["message"] == "no such disk"


@pytest.mark.parametrize("form", ["chrome", "csv"])
def test_hostile_text_is_text(form: str, tmp_path: Path) -> None:
    out = export(pages.hostile_trace(tmp_path / "t"), form, status=4)
    if form == "chrome":
        assert json.loads(out.read_text())["otherData"]["started"] == pages.HOSTILE
    else:
        written = pages.HOSTILE.encode("utf-8", "backslashreplace").decode()
        assert pandas.read_csv(out)["arguments.disk"][0] == written


# The table


def test_the_table_in_pandas(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    samples.blockinfo(recorder, error='no; such\n"disk"', number=13)
    events = [event.to_record() for event in recorder.events]
    [gather] = [at for at, event in enumerate(events) if "stats" in event["values"]]
    events[gather]["values"]["stats"] = {
        **samples.STATS,
        "capacity": unavailable("not proven"),
        "wr_times": 2**64 - 1,
    }
    lines = [samples.HEADER, *events, samples.footer(recorder.events)]
    table = pandas.read_csv(
        export(samples.write(tmp_path / "t", lines), "csv"), dtype_backend="numpy_nullable"
    )
    outer = table[table["parent"].isna()]
    assert list(outer["function"]) == ["virDomainGetBlockInfo"] * 2
    assert list(outer["returned.info.capacity"]) == [samples.GIB2, 0]
    assert list(outer["failed"]) == [False, True]
    assert list(outer["complete"]) == [True, True]
    assert outer["error"].iloc[1] == 'no; such\n"disk"'
    [row] = table[table["function"] == "qemuDomainBlocksStatsGather"].to_dict("records")
    assert pandas.isna(row["returned.stats.capacity"])
    assert row["unavailable"] == "returned.stats.capacity: not proven"
    assert int(row["returned.stats.wr_times"]) == 2**64 - 1
    assert row["returned.stats.rd_bytes"] == samples.STATS["rd_bytes"]
    assert table["span"].is_unique
    assert set(table["parent"].dropna()) <= set(table["span"])


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain="=HYPERLINK(1)", disk="+1")
    events = [event.to_record() for event in recorder.events]
    lines = [samples.HEADER, *events, samples.footer(recorder.events)]
    table = pandas.read_csv(export(samples.write(tmp_path / "t", lines), "csv"), dtype=str)
    assert set(table["arguments.domain"].dropna()) == {"'=HYPERLINK(1)"}
    assert set(table["arguments.disk"].dropna()) == {"'+1"}


# Flame graphs

# What https://www.speedscope.app/file-format-schema.json asks of a file with sampled profiles.
INDEX = {"type": "integer", "minimum": 0}
SPEEDSCOPE = {
    "type": "object",
    "required": ["$schema", "shared", "profiles"],
    "properties": {
        "$schema": {"const": "https://www.speedscope.app/file-format-schema.json"},
        "exporter": {"type": "string"},
        "shared": {
            "type": "object",
            "required": ["frames"],
            "properties": {
                "frames": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}},
                    },
                }
            },
        },
        "profiles": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": [
                    *("type", "name", "unit", "startValue", "endValue", "samples", "weights"),
                ],
                "properties": {
                    "type": {"const": "sampled"},
                    "name": {"type": "string"},
                    "unit": {"enum": ["none", "nanoseconds", "bytes"]},
                    "startValue": {"type": "number"},
                    "endValue": {"type": "number"},
                    "samples": {"type": "array", "items": {"type": "array", "items": INDEX}},
                    "weights": {"type": "array", "items": {"type": "number", "minimum": 0}},
                },
            },
        },
    },
}


def folded(file: Path) -> dict[tuple[str, ...], int]:
    lines = export(file, "folded").read_text().splitlines()
    told = dict(line.rsplit(" ", 1) for line in lines)
    assert len(told) == len(lines)
    return {tuple(stack.split(";")): int(ns) for stack, ns in told.items()}


def whole(file: Path) -> int:
    """Time of all calls, from the lines of the file and nothing else."""
    events = [json.loads(line) for line in file.read_text().splitlines()]
    roots = {event["span"] for event in events if event.get("parent", 0) is None}
    sign = {"enter": -1, "exit": 1}
    return sum(
        sign[event["type"]] * event["t_ns"] for event in events if event.get("span") in roots
    )


def test_a_flame_graph_has_all_time_of_the_calls(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(pages.SAMPLE.read_bytes())
    stacks = folded(file)
    assert sum(stacks.values()) == whole(file)
    document = json.loads(export(file, "speedscope").read_text())
    jsonschema_rs.Draft202012Validator(SPEEDSCOPE).validate(document)
    names = [frame["name"] for frame in document["shared"]["frames"]]
    [profile] = document["profiles"]
    told = [tuple(names[index] for index in sample) for sample in profile["samples"]]
    assert dict(zip(told, profile["weights"])) == stacks
    assert len(profile["samples"]) == len(profile["weights"])
    assert profile["endValue"] - profile["startValue"] == sum(profile["weights"])
    assert any(stack[-1] == "QMP query-blockstats" for stack in stacks)


def test_hostile_names_in_a_flame_graph(tmp_path: Path) -> None:
    lines = samples.records()
    for line in lines:
        if line.get("name") == "virDomainGetBlockInfo":
            line["name"] = "a;b 7\n\x1b[2Jc"
    [probe] = [p for p in lines[0]["probes"] if p["name"] == "virDomainGetBlockInfo"]
    probe["name"] = "a;b 7\n\x1b[2Jc"
    text = export(samples.write(tmp_path / "t", lines), "folded").read_text()
    assert "\x1b" not in text
    assert all(line.startswith("a,b 7") for line in text.splitlines())
