"""The same daemon traced by uprobes: the same values, and nothing that could harm it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.lab.tracing import (
    all_disks,
    calls_of,
    exchanges,
    printed_info,
    record,
    span,
    whole_trace,
)
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.gdb_check import checked_by_gdb
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import DOCS
from tests.support.waiting import wait_until
from virtrace.analysis.spans import CallBuilder
from virtrace.engines.bpftrace.run import resolve
from virtrace.lab.daemon import Lab
from virtrace.recipe import catalogue
from virtrace.targets.processes import check_traceable
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace, read_trace
from virtrace.trace.rotation import parts

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or (shutil.which("bpftrace") is None and not os.environ.get("CI")),
    reason="takes root and bpftrace: apt-get install bpftrace",
)

API = "virDomainGetBlockInfo"
# What a stripped driver does not tell by any engine.
UNPROVEN = {("qemuDomainBlocksStatsGather", "capacity")}


@pytest.fixture(scope="module")
def lab(own_files_lab: Lab) -> Lab:
    return own_files_lab


@pytest.fixture(autouse=True)
def _unharmed(lab: Lab) -> Iterator[None]:
    yield
    assert_untraced_and_intact(lab.pid)
    assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


def by_bpftrace(
    lab: Lab, output: Path, *options: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    return record(lab, output, "--engine", "bpftrace", *options, command=command)


def unavailable_values(trace: Trace) -> set[tuple[str, str]]:
    return {
        (event.name, name)
        for event in trace.events
        for name, value in event.values.items()
        if is_unavailable(value)
    }


def test_both_engines_tell_the_same(lab: Lab, tmp_path: Path) -> None:
    uprobes, breakpoints = tmp_path / "uprobes.jsonl", tmp_path / "breakpoints.jsonl"
    # In this order: docs/bpftrace.md says why.
    assert record(lab, breakpoints, command=all_disks(lab)).returncode == 0
    done = by_bpftrace(lab, uprobes, command=all_disks(lab))
    assert done.returncode == 0, done.stderr
    compared = virtrace("diff", str(uprobes), str(breakpoints))
    assert compared.returncode == 0, compared.stdout
    trace = whole_trace(uprobes)
    calls = calls_of(trace)
    shown = [returned["info"] for call in calls if (returned := span(call, API).returned)]
    assert shown == printed_info(done.stdout)
    assert unavailable_values(trace) == UNPROVEN
    assert trace.footer is not None
    assert trace.footer["stopped_ns"]["total"] == 0
    for call in calls:
        for exchange in exchanges(call):
            reply = exchange.reply
            assert reply is not None
            # Whole: it is JSON to its last bracket.
            assert json.loads(reply.values["text"]) == reply.values["json"]


def test_no_call_of_many_clients_is_missing_in_silence(lab: Lab, tmp_path: Path) -> None:
    clients, rounds = 8, 50
    output = tmp_path / "trace.jsonl"
    commands = "; ".join(["domblkinfo vm1 vda"] * rounds)
    client = subprocess.list2cmdline(lab.virsh_command(commands))
    many = " & ".join([f"{client} > /dev/null"] * clients) + " & wait"
    done = by_bpftrace(lab, output, command=["sh", "-c", many])
    trace = read_trace(output)
    assert trace.footer is not None
    lost = trace.footer["dropped"]
    # A busy host may lose some, and says so.
    assert done.returncode == (4 if lost else 0), done.stderr
    assert trace.problems == ([f"{lost} events were dropped while it was recorded"] if lost else [])
    builder = CallBuilder()
    calls = [call for event in trace.events if (call := builder.feed(event))]
    whole = [call for call in calls if call.root.returned is not None]
    assert lost or len(whole) == clients * rounds
    for call in whole:
        asked = exchanges(call)
        assert call.root.arguments == {"domain": "vm1", "disk": "vda", "flags": 0}
        assert lost or len(asked) == 3
        assert lost or all(exchange.reply is not None for exchange in asked)


def test_filters_and_limits_hold(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    commands = [lab.virsh_command("; ".join(["domblkinfo vm1 vda; domblkinfo vm1 vdb"] * 3))]
    done = by_bpftrace(lab, output, "--where", "disk=vdb", "--calls", "2", command=commands[0])
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    calls = calls_of(trace)
    assert [call.root.arguments["disk"] for call in calls] == ["vdb"] * 2
    assert trace.footer is not None
    assert trace.footer["reason"] == "limit"


def test_a_recording_in_several_files(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    command = lab.virsh_command("; ".join(["domblkinfo vm1 vda"] * 6))
    done = by_bpftrace(lab, output, "--rotate", "45000", "--keep", "3", command=command)
    assert done.returncode == 0, done.stderr
    files = parts(output)
    assert files == sorted(tmp_path.iterdir())
    assert len(files) == 3
    # Events come one by one here, and one client's calls never overlap: none is cut.
    numbers = [whole_trace(file).header["part"]["number"] for file in files]
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]
    for file in files:
        calls = calls_of(whole_trace(file))
        assert calls
        assert all(call.complete for call in calls)


@contextmanager
def recording(lab: Lab, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A recording that has begun."""
    command = [*VIRTRACE, "record", "blockinfo"]
    process = subprocess.Popen(
        [*command, "-p", str(lab.pid), "--engine", "bpftrace", "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        wait_for(process.stdout, b"to end")
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(stream: IO[bytes], wanted: bytes) -> None:
    said = b""
    while wanted not in said:
        assert select.select([stream], [], [], SECONDS)[0], said
        data = os.read(stream.fileno(), 1 << 16)
        assert data, said
        said += data


def bpftrace_of(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    names = {Path(f"/proc/{child}/comm").read_text().strip(): int(child) for child in children}
    return names["bpftrace"]


def test_interrupt_ends_it_whole(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    with recording(lab, output) as process:
        assert lab.virsh("; ".join(["domblkinfo vm1 vda"] * 100)).returncode == 0
        # Most of it has not been told by now.
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode in (130, 4), said
    trace = read_trace(output)
    assert trace.footer is not None
    assert trace.footer["reason"] == "interrupt"
    assert trace.footer["dropped"] or len(calls_of(trace)) == 100


def test_a_full_disk_keeps_what_it_took(lab: Lab, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # The header and some calls.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        calls = "; ".join(["domblkinfo vm1 vda"] * 20)
        done = by_bpftrace(lab, small / "trace.jsonl", command=lab.virsh_command(calls))
        trace = read_trace(small / "trace.jsonl")
    finally:
        subprocess.run(["umount", small], check=True)
    assert done.returncode == 4, done.stderr
    assert f"cannot write the trace {small}/trace.jsonl: No space left on device" in done.stderr
    assert "ended    stopped by an error" in done.stdout
    assert trace.events
    # There may be room for it.
    assert trace.footer is None or trace.footer["reason"] == "error"


def test_a_trace_that_somebody_removed_is_told(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = by_bpftrace(lab, output, command=["rm", str(output)])
    assert done.returncode == 4, done.stderr
    assert f"the trace {output} was removed while it was being written" in done.stderr


def test_killed_bpftrace_leaves_the_daemon_alone(lab: Lab, tmp_path: Path) -> None:
    endless = subprocess.list2cmdline(lab.virsh_command("domblkinfo vm1 vda"))
    calling = ["sh", "-c", f"while :; do {endless} > /dev/null || exit 1; done"]
    for turn in range(3):
        output = tmp_path / f"trace{turn}.jsonl"
        # One while the probes are set: more would keep bpftrace from compiling.
        clients = [subprocess.Popen(calling, start_new_session=True)]
        try:
            with recording(lab, output) as process:
                assert process.stdout is not None
                clients += [subprocess.Popen(calling, start_new_session=True) for _ in range(3)]
                # Calls go through the probes at this very moment.
                wait_for(process.stdout, b"info as in the answer")
                os.kill(bpftrace_of(process), signal.SIGKILL)
                _, said = process.communicate(timeout=SECONDS)
                assert process.returncode == 4, said
                assert b"bpftrace ended: it was ended by SIGKILL" in said
            assert all(client.poll() is None for client in clients)
        finally:
            for client in clients:
                os.killpg(client.pid, signal.SIGKILL)
                client.wait()
        footer = read_trace(output).footer
        assert footer is not None
        assert footer["reason"] == "error"
        assert_untraced_and_intact(lab.pid)
        assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


def test_killed_recording_takes_bpftrace_along(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with recording(lab, tmp_path / "trace.jsonl") as process:
        traced = os.pidfd_open(bpftrace_of(process))
        process.kill()
        assert select.select([traced], [], [], SECONDS)[0]
        os.close(traced)
    assert [*temporary.iterdir()] == []
    assert_untraced_and_intact(lab.pid)


def run_script(lab: Lab, script: Path, printed: Path) -> None:
    """The compiled recipe over one call."""
    with open(printed, "wb") as output:
        process = subprocess.Popen(
            ["sh", str(script), "1" if nested() else str(lab.pid)],
            stdout=output,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    try:
        # All probes are there when the clock's are.
        wait_until(lambda: b'"h ' in printed.read_bytes() or process.poll() is not None, "a clock")
        assert process.poll() is None, process.communicate()[1]
        assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=SECONDS)


def nested() -> bool:
    return os.readlink("/proc/self/ns/pid") != "pid:[4026531836]"


@pytest.mark.skipif(nested(), reason="bpftrace 0.17 knows a process by its number on the host only")
def test_compiled_recipe_gives_the_same_trace(lab: Lab, tmp_path: Path) -> None:
    script, printed, output = tmp_path / "run.sh", tmp_path / "printed", tmp_path / "trace.jsonl"
    compiling = ("recipe", "compile", "blockinfo", "--to", "bpftrace", "-o", str(script))
    done = virtrace(*compiling, "-p", str(lab.pid))
    assert done.returncode == 0, done.stderr
    run_script(lab, script, printed)
    done = virtrace("import", str(printed), "-o", str(output))
    assert done.returncode == 0, done.stderr
    live = tmp_path / "live.jsonl"
    command = lab.virsh_command("domblkinfo vm1 vda")
    assert by_bpftrace(lab, live, command=command).returncode == 0
    compared = virtrace("diff", str(output), str(live))
    assert compared.returncode == 0, compared.stdout
    assert whole_trace(output).header["target"]["pid"] == lab.pid


def test_script_refuses_files_of_another_build(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    compiling = ("recipe", "compile", "qmp", "--to", "bpftrace", "-o", str(script))
    assert virtrace(*compiling, "-p", str(lab.pid)).returncode == 0
    lines = script.read_text().splitlines()
    check = next(line for line in lines if line.startswith("check /"))
    other = check[:-1] + ("0" if check[-1] != "0" else "1")
    script.write_text("\n".join(lines).replace(check, other))
    done = subprocess.run(["sh", str(script), "1"], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 3
    assert "is not the file that this was made for" in done.stderr


@pytest.mark.parametrize("option", [("--max-load", "9"), ("--source", "/usr/src")], ids=str)
def test_an_option_that_means_nothing_is_refused(
    lab: Lab, tmp_path: Path, option: tuple[str, str]
) -> None:
    output = tmp_path / "t.jsonl"
    recording = ("record", "blockinfo", "-p", str(lab.pid), "--engine", "bpftrace")
    done = virtrace(*recording, *option, "-o", str(output))
    assert done.returncode == 2
    assert f"{option[0]} has no meaning here" in done.stderr
    assert not output.exists()


PAGE = DOCS / "bpftrace.md"


def table_of(lab: Lab) -> list[str]:
    """What each recipe has on a stripped libvirt 9.0.0, and what it lacks by this engine alone."""
    rows = ["| recipe | probes found | left out by this engine |", "|---|---|---|"]
    for name in catalogue.shipped():
        process = check_traceable(lab.pid)
        mine = resolve(catalogue.find_recipe(name), process, {}, ()).header["probes"]
        theirs = checked_by_gdb(name, lab.pid)["probes"]
        found = sum(probe["level"] != "missing" for probe in mine)
        lacking = [
            f"`{probe['name']}`: {', '.join(left)}"
            for probe, other in zip(mine, theirs)
            if (left := sorted({*probe["lacks"]} - {*other["lacks"]}))
        ]
        assert [probe["level"] for probe in mine] == [probe["level"] for probe in theirs]
        rows.append(f"| {name} | {found} of {len(mine)} | {'; '.join(lacking) or 'nothing'} |")
    return rows


def test_the_page_has_what_each_recipe_can(lab: Lab) -> None:
    assert "\n".join(table_of(lab)) in PAGE.read_text()


@pytest.mark.parametrize("name", catalogue.shipped())
def test_every_recipe_is_taken(lab: Lab, tmp_path: Path, name: str) -> None:
    output = tmp_path / "trace.jsonl"
    options = ("-p", str(lab.pid), "--engine", "bpftrace", "-o", str(output))
    done = virtrace("record", name, *options, "--", *lab.virsh_command("domstats vm1"))
    assert done.returncode == 0, done.stderr
    assert whole_trace(output).footer is not None


def test_a_uprobe_that_took_a_breakpoint_away_is_told(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    library = "/usr/lib/x86_64-linux-gnu/libvirt.so.0"
    program = f'uprobe:{library}:{API} {{ printf("met\\n"); exit(); }}'
    # It is set, met and gone while every call is traced.
    traced = subprocess.list2cmdline(lab.virsh_command("domblkinfo vm1 vda"))
    until_met = f"bpftrace -e '{program}' & while kill -0 $!; do {traced}; sleep 0.2; done"
    done = record(lab, output, command=["sh", "-c", until_met])
    assert done.returncode == 4, done.stderr
    assert f"another tracer (bpftrace, perf) replaced the breakpoints of {API}: " in done.stderr
    footer = read_trace(output).footer
    assert footer is not None
    assert footer["reason"] == "error"
