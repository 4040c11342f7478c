"""The commands of GDB that trace nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness import HERE, PATIENCE, SCRIPTS, Daemon

from support.intact import assert_untraced_and_intact

SAMPLE = HERE.parent / "data" / "sample-blockinfo.jsonl"


def in_gdb(*commands: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [word for command in commands for word in ("-ex", command)]
    return subprocess.run(
        ["gdb", "-nx", "-q", "-batch", "-x", str(SCRIPTS / "virtrace.py"), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "90", **variables},
    )


def test_explain_says_what_the_command_line_says() -> None:
    command = [sys.executable, "-m", "virtrace.cli.main", "explain", str(SAMPLE)]
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "90"}
    expected = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    done = in_gdb(f"virtrace explain {SAMPLE}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout


def test_explain_without_a_trace_says_what_to_do(tmp_path: Path) -> None:
    done = in_gdb("virtrace explain")
    assert done.returncode == 2
    assert done.stderr.endswith("try: virtrace explain FILE, or trace a call first\n")
    missing = in_gdb(f"virtrace explain {tmp_path}/none.jsonl")
    assert missing.returncode == 2
    assert "cannot open the trace" in missing.stderr


def test_check_leaves_the_program_alone(daemon: Daemon) -> None:
    done = in_gdb("virtrace check blockinfo", VIRTRACE_PID=str(daemon.pid))
    assert done.returncode == 0, done.stderr
    assert '"name": "qemuDomainGetBlockInfo", "kind": "span"' in done.stdout
    assert '"level": "dwarf"' in done.stdout
    assert_untraced_and_intact(daemon.pid)
    assert daemon.do("call vm1 vda")
