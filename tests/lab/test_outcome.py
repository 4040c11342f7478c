"""What a script learns of a recording: the same as the trace says."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema_rs

from tests.lab.tracing import record, whole_trace
from tests.support.command import SECONDS, VIRTRACE, virtrace
from virtrace.cli.outcome import schema
from virtrace.errors import ANSWER_IS_NO, BAD_INPUT, INTERRUPTED
from virtrace.lab.daemon import Lab
from virtrace.trace.rotation import parts

VALIDATOR = jsonschema_rs.Draft202012Validator(schema())


def outcome(printed: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(printed)
    VALIDATOR.validate(document)
    return document


def test_a_recording_and_its_replay(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "t.jsonl.gz"
    asked = stock_lab.virsh_command("domblkinfo", "vm1", "vda")
    done = record(stock_lab, output, "--json", command=asked, engine=engine)
    said = outcome(done.stdout)
    trace = whole_trace(output)
    assert trace.footer is not None
    assert (said["command"], said["status"], said["error"]) == ("record", done.returncode, None)
    assert said["result"] == {
        **{"recipe": "blockinfo", "engine": engine, "pid": stock_lab.pid, "missing": []},
        **{"traces": [str(output)], "reason": "done", "dropped": 0},
        **{"events": len(trace.events), "hits": trace.footer["hits"]},
    }
    # The command's own output, and the call, are not lost.
    assert "Capacity:" in done.stderr
    assert "virDomainGetBlockInfo" in done.stderr
    new = tmp_path / "new.jsonl"
    words = ("replay", output, "-p", stock_lab.pid, "-o", new, "--json", "--")
    for disk, status in (("vda", 0), ("vdd", ANSWER_IS_NO)):
        again = virtrace(*words, *stock_lab.virsh_command("domblkinfo", "vm1", disk))
        assert again.returncode == status, again.stderr
        replayed = outcome(again.stdout)["result"]
        assert (replayed["equal"], replayed["traces"]) == (status == 0, [str(new)])
        new.unlink()


def test_files_by_rotation_and_one_that_exists(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "t.jsonl"
    asked = stock_lab.virsh_command("; ".join(["domblkinfo vm1 vda"] * 12))
    options = ("--json", "--rotate", "65536")
    done = record(stock_lab, output, *options, command=asked, engine=engine)
    assert done.returncode == 0, done.stderr
    files = parts(output)
    said = outcome(done.stdout)["result"]
    assert len(files) > 1
    assert said["traces"] == [*map(str, files)]
    assert said["events"] == sum(len(whole_trace(file).events) for file in files)
    refused = record(stock_lab, output, *options, command=asked, engine=engine)
    assert refused.returncode == BAD_INPUT
    document = outcome(refused.stdout)
    assert document["result"] is None
    assert "already exists" in document["error"]["what"]
    assert refused.stderr.count(f"virtrace: {document['error']['what']}\n") == 1


def test_ended_by_time_or_by_a_signal_without_a_terminal(stock_lab: Lab, tmp_path: Path) -> None:
    options = ("--json", "--seconds", "0.2")
    done = record(stock_lab, tmp_path / "timed.jsonl", *options, engine="auto")
    said = outcome(done.stdout)
    assert (done.returncode, said["result"]["reason"], said["result"]["events"]) == (0, "limit", 0)
    words = ("record", "blockinfo", "-p", str(stock_lab.pid), "-o", str(tmp_path / "ended.jsonl"))
    with subprocess.Popen(
        [*VIRTRACE, *words, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as tracing:
        assert tracing.stderr is not None
        assert any("Ctrl-C" in line for line in tracing.stderr)
        tracing.send_signal(signal.SIGTERM)
        printed, _ = tracing.communicate(timeout=SECONDS)
    assert tracing.returncode == INTERRUPTED
    assert outcome(printed)["result"]["reason"] == "interrupt"
