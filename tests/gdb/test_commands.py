"""The commands of GDB that trace nothing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.gdb.harness import HERE, NAME, SCRIPTS, Daemon
from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import DATA, REPOSITORY
from tests.support.waiting import PATIENCE
from virtrace.recipe import catalogue

SAMPLE = DATA / "sample-blockinfo.jsonl"


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
    command = [*VIRTRACE, "explain", str(SAMPLE)]
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


COMMANDS = ("check", "explain", "save", "snapshot", "start", "status", "stop")
PARAMETERS = ("calls", "output", "seconds", "source", "where")


def each(*commands: str, folder: Path = HERE) -> list[str]:
    """What each of them prints, in one GDB."""
    words = [word for command in commands for word in ("echo ====\\n", command)]
    return in_gdb(f"cd {folder}", *words).stdout.split("====\n")[1:]


def test_every_command_and_parameter_has_help() -> None:
    overview, bare, to_set, to_show = each(
        "help virtrace", "virtrace", "help set virtrace", "help show virtrace"
    )
    assert bare == overview
    # One line each, which is a sentence of its own.
    for name in COMMANDS:
        assert re.search(rf"^virtrace {name} -- [A-Z][^,\n]*\.$", overview, re.M)
    for name in PARAMETERS:
        assert re.search(rf"^set virtrace {name} -- Set .*\.$", to_set, re.M)
        assert re.search(rf"^show virtrace {name} -- Show .*\.$", to_show, re.M)
    for name, shown in zip(COMMANDS, each(*(f"help virtrace {name}" for name in COMMANDS))):
        assert f"\nUsage: virtrace {name}" in shown
        assert max(map(len, shown.splitlines())) <= 80
    for name, shown in zip(PARAMETERS, each(*(f"help set virtrace {one}" for one in PARAMETERS))):
        assert f"VIRTRACE_{name.upper()}" in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert 'Undefined virtrace command: "fly"' in in_gdb("virtrace fly").stderr


def test_the_page_has_every_command_and_parameter() -> None:
    page = (REPOSITORY / "docs" / "in-gdb.md").read_text("utf-8")
    overview, to_set = each("help virtrace", "help set virtrace")
    commands = re.findall(r"^virtrace (\S+) --", overview, re.M)
    parameters = re.findall(r"^set virtrace (\S+) --", to_set, re.M)
    assert {*commands} >= {*COMMANDS}
    assert {*parameters} >= {*PARAMETERS, "max-stop-ms", "max-load", "max-events", "max-bytes"}
    for name in commands:
        assert f"| `virtrace {name}" in page, name
    for name in parameters:
        assert f"| `set virtrace {name} " in page, name


# What is typed, and what GDB's own `complete` then offers; in a folder with a recipe, a trace,
# another file and a folder.
RECIPES = sorted([*catalogue.shipped(), "mine.yaml"])
OFFERED = {
    "virtrace st": ["virtrace start", "virtrace status", "virtrace stop"],
    "virtrace start ": [f"virtrace start {name}" for name in RECIPES],
    "virtrace check ": [f"virtrace check {name}" for name in RECIPES],
    # No part of such a name is a word of its own.
    "virtrace start start-f": ["virtrace start start-failure"],
    "virtrace start folder/o": ["virtrace start folder/other.yaml"],
    "virtrace explain ": ["virtrace explain old.jsonl"],
    "virtrace explain n": ["virtrace explain notes.txt"],
    "virtrace save n": ["virtrace save notes.txt"],
    "set virtrace output ol": ["set virtrace output old.jsonl"],
    "set virtrace s": ["set virtrace seconds", "set virtrace source"],
}


def test_what_the_tab_key_offers(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("mine.yaml", "old.jsonl", "notes.txt", "folder/other.yaml"):
        (tmp_path / name).touch()
    found = each(*(f"complete {line}" for line in OFFERED), folder=tmp_path)
    assert dict(zip(OFFERED, (offered.splitlines() for offered in found))) == OFFERED


def test_status_and_stop_say_what_is_true(daemon: Daemon, tmp_path: Path) -> None:
    before = in_gdb("virtrace status", "virtrace stop", VIRTRACE_CALLS="3")
    # They end no GDB, in a batch either.
    assert before.stdout.count("\n") == 5
    assert max(map(len, before.stdout.splitlines())) <= 80
    assert "attached  nothing" in before.stdout
    assert "set       virtrace calls 3" in before.stdout
    assert re.search(r"no trace is running.*\n.*`kill -INT \d+`$", before.stdout.strip())
    attached = in_gdb(f"attach {daemon.pid}", "virtrace status", "detach").stdout
    assert f"{daemon.folder}/{NAME}\n          pid {daemon.pid}, libvirt 9.0.0" in attached
    assert_untraced_and_intact(daemon.pid)


def test_check_leaves_the_program_alone(daemon: Daemon) -> None:
    done = in_gdb("virtrace check blockinfo", VIRTRACE_PID=str(daemon.pid))
    assert done.returncode == 0, done.stderr
    assert '"name": "qemuDomainGetBlockInfo", "kind": "span"' in done.stdout
    assert '"level": "dwarf"' in done.stdout
    assert_untraced_and_intact(daemon.pid)
    assert daemon.do("call vm1 vda")


def test_no_thread_of_gdb_is_left_that_could_take_a_signal() -> None:
    """Each time anew: GDB starts them again behind a trace."""
    program = """
import os, threading
from virtrace.inferior import target
for _ in range(50):
    with target.quiet_settings():
        print(len(os.listdir('/proc/self/task')) - threading.active_count())
"""
    done = in_gdb(f"python exec({program!r})")
    assert done.stdout.split() == ["0"] * 50, done.stderr
