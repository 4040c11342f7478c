"""``virtrace show`` as a process of its own: what it prints, where, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages, samples
from tests.support.command import ENVIRONMENT, virtrace


def show(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return virtrace("show", *words, env={**ENVIRONMENT, **environment})


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return samples.write(tmp_path / "t.jsonl", samples.records())


OFF = {
    "type": "switched-off",
    "t_ns": 17_000_000,
    "name": "qemuDomainGetBlockInfo",
    "kind": "line",
    "why": "a call was held for more than 4 ms in total",
}


@pytest.mark.parametrize("form", [(), ("--summary",)])
def test_what_was_switched_off_comes_before_the_calls(tmp_path: Path, form: tuple[str]) -> None:
    records = samples.records()
    path = samples.write(tmp_path / "t.jsonl", [*records[:3], OFF, *records[3:]])
    lines = show(path, *form).stdout.splitlines()
    begin = lines.index(
        "not traced from +0.017 s on: lines of qemuDomainGetBlockInfo: a call was held"
    )
    assert lines[begin + 1] == "  for more than 4 ms in total"
    assert not [line for line in lines[:begin] if "virDomainGetBlockInfo(" in line]
    document = json.loads(show(path, "--json").stdout)
    assert document["switched_off"] == [OFF]


def test_shows_heading_tree_and_summary(trace: Path) -> None:
    done = show(trace)
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("virtrace 0.1.0: recipe blockinfo on libvirt 9.0.0")
    assert "+0.001 s virDomainGetBlockInfo(vm1, vda) = 0 in 2.3 ms" in lines
    assert lines[-1] == f"  next     virtrace show --full {trace}"
    assert "\x1b" not in done.stdout


def test_full(trace: Path) -> None:
    assert '"node-name": "libvirt-1-storage"' not in show(trace).stdout
    assert '"node-name": "libvirt-1-storage"' in show(trace, "--full").stdout


def test_cut_trace_is_shown_and_told(trace: Path) -> None:
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    done = show(trace)
    assert done.returncode == 4
    assert "  incomplete: the return of virDomainGetBlockInfo was not seen" in done.stdout
    assert "1 call, 1 incomplete, the run was cut short" in done.stdout
    assert done.stderr.startswith(f"virtrace: {trace}: line 13 is cut short: ")
    assert "\ntry: " in done.stderr


def test_not_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "other.txt"
    file.write_text("hello\n")
    done = show(file)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith(f"virtrace: {file} is not a virtrace trace")
    assert len(done.stderr.splitlines()) == 2


def test_json_document(trace: Path) -> None:
    done = show(trace, "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["format"] == "virtrace-calls"
    assert document["version"] == 1
    assert document["header"] == samples.HEADER
    assert document["footer"]["reason"] == "interrupt"
    assert document["problems"] == []
    (call,) = document["calls"]
    assert call["complete"]
    assert not call["failed"]
    root = call["root"]
    assert root["returned"]["info"] == samples.INFO
    (driver,) = root["children"]
    gather = driver["children"][0]
    assert gather["returned"]["stats"] == samples.STATS
    exchange = gather["children"][0]["children"][0]["children"][0]
    assert exchange["kind"] == "qmp"
    assert exchange["command"] == "query-blockstats"
    assert exchange["reply"]["values"]["json"]["return"] == samples.BLOCKSTATS
    assert exchange["reply"]["tid"] == 99
    assert exchange["duration_ns"] == 213_000


def test_lines_are_nodes_of_their_own_kind_in_json() -> None:
    document = json.loads(show(pages.WITH_LINES, "--json").stdout)
    [driver] = document["calls"][0]["root"]["children"]
    lines = [node for node in driver["children"] if node["kind"] == "line"]
    assert [node["values"]["line"] for node in lines][-3:] == [10944, 10945, 10845]
    assert {node["name"] for node in lines} == {"qemuDomainGetBlockInfo"}
    assert {node["kind"] for node in driver["children"]} == {"line", "span"}


def test_json_of_a_cut_trace(trace: Path) -> None:
    trace.write_bytes(trace.read_bytes()[:-100])
    done = show(trace, "--json")
    assert done.returncode == 4
    document = json.loads(done.stdout)
    assert document["footer"] is None
    assert len(document["problems"]) == 2
    assert document["calls"][0]["complete"]


def test_json_of_a_trace_without_calls(tmp_path: Path) -> None:
    trace = samples.write(tmp_path / "t.jsonl", [samples.HEADER, samples.footer([])])
    assert json.loads(show(trace, "--json").stdout)["calls"] == []


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    for number in range(300):
        samples.blockinfo(recorder, number=number)
    lines = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    trace = samples.write(tmp_path / "t.jsonl", [*lines, samples.footer(recorder.events)])
    command = f"{sys.executable} -m virtrace.cli.main show {trace} | head -n 3"
    done = subprocess.run(
        ["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


def test_names_that_the_locale_cannot_carry(tmp_path: Path) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder, domain="测试\x1b[2J\ud800")
    file = tmp_path / "t.jsonl"
    lines = [samples.HEADER, *(event.to_record() for event in recorder.events)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for encoding in ("ascii", "gbk", "utf-8"):
        done = show(file, PYTHONIOENCODING=encoding)
        assert done.returncode == 4
        assert r"\u001b[2J\ud800" in done.stdout
        assert "Traceback" not in done.stderr


def test_json_and_full_exclude_each_other(trace: Path) -> None:
    assert show(trace, "--json", "--full").returncode == 2
