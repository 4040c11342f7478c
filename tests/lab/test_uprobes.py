"""The same daemon traced by the kernel's probes: the same values, and nothing that harms it."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_catalogue import frames_by_gdb, stands_for, until
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
from tests.support.recipes import FOR_LIBVIRT
from tests.support.waiting import wait_until
from virtrace.analysis.spans import CallBuilder
from virtrace.engines.uprobes.run import resolve
from virtrace.image.live import LiveImage
from virtrace.image.names import FrameNames
from virtrace.image.process import inspect, yama_scope
from virtrace.image.unwind import Unwinder
from virtrace.lab.daemon import Lab
from virtrace.recipe import catalogue
from virtrace.targets.processes import check_traceable
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import Trace, read_trace
from virtrace.trace.rotation import parts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="takes root")

API = "virDomainGetBlockInfo"
SYSTEM_PYTHON = "/usr/bin/python3"
# What a stripped driver does not tell by any engine.
UNPROVEN = {("qemuDomainBlocksStatsGather", "capacity")}


@pytest.fixture(scope="module")
def lab(stock_lab: Lab) -> Lab:
    return stock_lab


@pytest.fixture(autouse=True)
def _unharmed(lab: Lab) -> Iterator[None]:
    yield
    assert_untraced_and_intact(lab.pid)
    assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0


def by_uprobes(
    lab: Lab, output: Path, *options: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    return record(lab, output, *options, command=command, engine="uprobes")


def unavailable_values(trace: Trace) -> set[tuple[str, str]]:
    return {
        (event.name, name)
        for event in trace.events
        for name, value in event.values.items()
        if is_unavailable(value)
    }


def test_both_engines_tell_the_same(lab: Lab, tmp_path: Path) -> None:
    uprobes, breakpoints = tmp_path / "uprobes.jsonl", tmp_path / "breakpoints.jsonl"
    assert record(lab, breakpoints, command=all_disks(lab)).returncode == 0
    done = by_uprobes(lab, uprobes, command=all_disks(lab))
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
    done = by_uprobes(lab, output, command=["sh", "-c", many])
    trace = read_trace(output)
    assert trace.footer is not None
    lost = trace.footer["dropped"]
    assert done.returncode == 0, done.stderr
    assert lost == 0
    assert trace.problems == []
    builder = CallBuilder()
    calls = [call for event in trace.events if (call := builder.feed(event))]
    whole = [call for call in calls if call.root.returned is not None]
    assert len(whole) == clients * rounds
    for call in whole:
        asked = exchanges(call)
        assert call.root.arguments == {"domain": "vm1", "disk": "vda", "flags": 0}
        assert len(asked) == 3
        assert all(exchange.reply is not None for exchange in asked)


def test_filters_and_limits_hold(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    commands = [lab.virsh_command("; ".join(["domblkinfo vm1 vda; domblkinfo vm1 vdb"] * 3))]
    done = by_uprobes(lab, output, "--where", "disk=vdb", "--calls", "2", command=commands[0])
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    calls = calls_of(trace)
    assert [call.root.arguments["disk"] for call in calls] == ["vdb"] * 2
    assert trace.footer is not None
    assert trace.footer["reason"] == "limit"


def test_a_recording_in_several_files(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    command = lab.virsh_command("; ".join(["domblkinfo vm1 vda"] * 6))
    done = by_uprobes(lab, output, "--rotate", "45000", "--keep", "3", command=command)
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
def recording(lab: Lab, output: Path, engine: str = "uprobes") -> Iterator[subprocess.Popen[bytes]]:
    """A recording that has begun."""
    command = [*VIRTRACE, "record", "blockinfo"]
    process = subprocess.Popen(
        [*command, "-p", str(lab.pid), "--engine", engine, "-o", str(output)],
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


def test_interrupt_ends_it_whole(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    with recording(lab, output) as process:
        assert lab.virsh("; ".join(["domblkinfo vm1 vda"] * 100)).returncode == 0
        # Most of it has not been decoded by now.
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == 130, said
    trace = read_trace(output)
    assert trace.footer is not None
    assert trace.footer["reason"] == "interrupt"
    assert trace.footer["dropped"] == 0
    assert len(calls_of(trace)) == 100


def test_a_full_disk_keeps_what_it_took(lab: Lab, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    # The header and some calls.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        calls = "; ".join(["domblkinfo vm1 vda"] * 20)
        done = by_uprobes(lab, small / "trace.jsonl", command=lab.virsh_command(calls))
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
    done = by_uprobes(lab, output, command=["rm", str(output)])
    assert done.returncode == 4, done.stderr
    assert f"the trace {output} was removed while it was being written" in done.stderr


def test_a_killed_recording_leaves_the_daemon_alone(lab: Lab, tmp_path: Path) -> None:
    endless = subprocess.list2cmdline(lab.virsh_command("domblkinfo vm1 vda"))
    calling = ["sh", "-c", f"while :; do {endless} > /dev/null || exit 1; done"]
    clients = [subprocess.Popen(calling, start_new_session=True) for _ in range(4)]
    try:
        for turn in range(3):
            output = tmp_path / f"trace{turn}.jsonl"
            with recording(lab, output) as process:
                assert process.stdout is not None
                # Calls go through the probes at this very moment.
                wait_for(process.stdout, b"info as in the answer")
                process.kill()
                process.wait()
            assert all(client.poll() is None for client in clients)
            assert read_trace(output).footer is None
            # Nothing but the trace.
            assert output in tmp_path.iterdir()
        assert len([*tmp_path.iterdir()]) == 3
    finally:
        for client in clients:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()


def test_probes_that_cost_too_much_are_switched_off(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    commands = "; ".join(["domblkinfo vm1 vda"] * 200)
    client = subprocess.list2cmdline(lab.virsh_command(commands))
    many = " & ".join([f"{client} > /dev/null"] * 4) + " & wait"
    done = by_uprobes(lab, output, "--max-load", "0.1", command=["sh", "-c", many])
    assert done.returncode == 0, done.stderr
    trace = read_trace(output)
    assert trace.switched_off
    for one in trace.switched_off:
        assert one["why"] == "the probes held threads for more than 0.1 % of a second"
    # The rest of the trace is whole, and the daemon as before.
    assert trace.footer is not None
    assert trace.footer["dropped"] == 0


def test_an_option_that_means_nothing_is_refused(lab: Lab, tmp_path: Path) -> None:
    output, option = tmp_path / "t.jsonl", ("--max-stop-ms", "9")
    recording = ("record", "blockinfo", "-p", str(lab.pid), "--engine", "uprobes")
    done = virtrace(*recording, *option, "-o", str(output))
    assert done.returncode == 2
    assert f"{option[0]} has no meaning here" in done.stderr
    assert not output.exists()


def engine_of(output: Path) -> str | None:
    return whole_trace(output).header["tool"]["engine"]["name"]


def test_the_kernel_s_probes_are_the_default(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    recording = ("record", "blockinfo", "-p", str(lab.pid), "-o", str(output))
    done = virtrace(*recording, "--", *lab.virsh_command("domblkinfo vm1 vda"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tracing by the kernel's probes\n")
    assert engine_of(output) == "uprobes"


def test_an_option_makes_gdb_trace_and_that_is_told(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    recording = ("record", "blockinfo", "-p", str(lab.pid), "-o", str(output))
    done = virtrace(*recording, "--max-stop-ms", "900", "--", "true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "tracing by GDB: --max-stop-ms has no meaning here: the uprobes engine never stops the "
        "daemon\n"
    )
    assert engine_of(output) == "gdb"


def test_gdb_traces_for_whom_the_kernel_has_no_probes(lab: Lab) -> None:
    """Who runs the daemon, and is not root."""
    if yama_scope():
        pytest.skip("kernel.yama.ptrace_scope keeps GDB from another user's daemon")
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    output = folder / "trace.jsonl"
    recording = ("record", "blockinfo", "-p", str(lab.pid), "-o", str(output))
    nobody: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    try:
        shutil.chown(folder, "nobody")
        done = virtrace(
            *(*recording, "--", "true"),
            **nobody,
            cwd=folder,
            env={**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(
            "tracing by GDB: only root may trace by the kernel's probes\n"
        )
        assert engine_of(output) == "gdb"
    finally:
        shutil.rmtree(folder)


# --- Scripts


def compiled(lab: Lab, recipe: str, script: Path) -> Path:
    done = virtrace(
        *("recipe", "compile", recipe, "--to", "python", "-o", str(script), "-p", str(lab.pid))
    )
    assert done.returncode == 0, done.stderr
    assert f"{script}: as root, on the daemon's host: python3 run.py PID OUTPUT\n" in done.stdout
    return script


def run_script(
    lab: Lab, script: Path, output: Path, *options: str, end: signal.Signals = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """A script over one call, by a Python that has nothing of ours."""
    command = [SYSTEM_PYTHON, "-I", str(script), str(lab.pid), str(output), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, text=True
    ) as process:
        assert process.stdout is not None
        if "Ctrl-C ends it" in process.stdout.readline():
            assert lab.virsh("domblkinfo", "vm1", "vda").returncode == 0
            process.send_signal(end)
        said, errors = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def test_a_script_gives_the_same_trace(lab: Lab, tmp_path: Path) -> None:
    script = compiled(lab, "blockinfo", tmp_path / "run.py")
    records, output, live = (tmp_path / name for name in ("records", "trace.jsonl", "live.jsonl"))
    done = run_script(lab, script, records)
    assert done.returncode == 0, done.stderr
    assert f"then, where virtrace is installed: virtrace import {records} -o TRACE" in done.stdout
    assert records.stat().st_mode & 0o777 == 0o600
    done = virtrace("import", str(records), "-o", str(output))
    assert done.returncode == 0, done.stderr
    command = lab.virsh_command("domblkinfo vm1 vda")
    assert by_uprobes(lab, live, command=command).returncode == 0
    compared = virtrace("diff", str(output), str(live))
    assert compared.returncode == 0, compared.stdout
    trace = whole_trace(output)
    assert trace.header["target"]["pid"] == lab.pid
    assert unavailable_values(trace) == UNPROVEN
    assert len(calls_of(trace)) == 1


def test_what_a_killed_script_wrote_can_be_imported(lab: Lab, tmp_path: Path) -> None:
    script = compiled(lab, "blockinfo", tmp_path / "run.py")
    records, output = tmp_path / "records", tmp_path / "trace.jsonl"
    assert run_script(lab, script, records, end=signal.SIGKILL).returncode == -signal.SIGKILL
    done = virtrace("import", str(records), "-o", str(output))
    assert done.returncode == 4, done.stderr
    footer = read_trace(output).footer
    assert footer is not None
    assert footer["reason"] == "error"


@pytest.mark.parametrize("option", [("--seconds", "0.1"), ("--max-bytes", "1")], ids=" ".join)
def test_a_script_ends_by_its_limit(lab: Lab, tmp_path: Path, option: tuple[str, str]) -> None:
    script = compiled(lab, "qmp", tmp_path / "run.py")
    command = [SYSTEM_PYTHON, "-I", str(script), str(lab.pid), str(tmp_path / "records"), *option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    done = virtrace("import", str(tmp_path / "records"), "-o", str(tmp_path / "trace.jsonl"))
    assert done.returncode == 0, done.stderr


def with_another_file(script: str) -> str:
    """The script, made for files of another build."""
    [packed] = re.findall(r'main\("""\\\n(.*?)"""', script, re.S)
    about = json.loads(zlib.decompress(base64.b64decode(packed)))
    for known in about["files"].values():
        known["sha256"] = "0" * 64
    other = base64.b64encode(zlib.compress(json.dumps(about).encode())).decode()
    return script.replace(packed, other)


def test_a_script_refuses_files_of_another_build(lab: Lab, tmp_path: Path) -> None:
    script = compiled(lab, "qmp", tmp_path / "run.py")
    script.write_text(with_another_file(script.read_text()))
    done = run_script(lab, script, tmp_path / "records")
    assert done.returncode == 3
    assert "is not the file that this was made for\ntry: " in done.stderr
    assert not (tmp_path / "records").exists()


def test_a_script_refuses_code_that_another_tracer_changed(lab: Lab, tmp_path: Path) -> None:
    script = compiled(lab, "qmp", tmp_path / "run.py")
    with recording(lab, tmp_path / "other.jsonl", engine="gdb") as other:
        done = run_script(lab, script, tmp_path / "records")
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=SECONDS)
    assert done.returncode == 3
    assert f"process {lab.pid} has other code in memory than " in done.stderr
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("pid", ["1", "999999999"])
def test_a_script_refuses_what_is_no_such_daemon(lab: Lab, tmp_path: Path, pid: str) -> None:
    script = compiled(lab, "qmp", tmp_path / "run.py")
    command = [SYSTEM_PYTHON, "-I", str(script), pid, str(tmp_path / "records")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 3
    assert done.stderr.startswith(f"virtrace: process {pid} ")
    assert "\ntry: " in done.stderr


def test_a_uprobe_that_goes_takes_a_breakpoint_elsewhere_away(lab: Lab, tmp_path: Path) -> None:
    """The trace of the other daemon, which maps the same files and has had uprobes, says so."""
    other, output = bring_up(), tmp_path / "trace.jsonl"
    try:
        with recording(lab, tmp_path / "0.jsonl"):
            # It has no probe of its own, as long as it is not traced itself.
            assert_untraced_and_intact(other.pid)
        assert by_uprobes(other, tmp_path / "1.jsonl", command=["true"]).returncode == 0
        with recording(other, output, engine="gdb") as tracing:
            assert by_uprobes(lab, tmp_path / "2.jsonl", command=["true"]).returncode == 0
            tracing.send_signal(signal.SIGINT)
            _, said = tracing.communicate(timeout=SECONDS)
        assert tracing.returncode == 4
        assert b"replaced the breakpoints of " in said
        assert other.virsh("domblkinfo", "vm1", "vda").returncode == 0
    finally:
        other.down()


PAGE = DOCS / "uprobes.md"


def table_of(lab: Lab) -> list[str]:
    """What each recipe has on a stripped libvirt 9.0.0, and what it lacks by this engine alone."""
    rows = ["| recipe | probes found | left out by this engine |", "|---|---|---|"]
    for name in FOR_LIBVIRT:
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


@pytest.mark.parametrize("name", FOR_LIBVIRT)
def test_every_recipe_is_taken(lab: Lab, tmp_path: Path, name: str) -> None:
    output = tmp_path / "trace.jsonl"
    options = ("-p", str(lab.pid), "--engine", "uprobes", "-o", str(output))
    done = virtrace("record", name, *options, "--", *lab.virsh_command("domstats vm1"))
    assert done.returncode == 0, done.stderr
    assert whole_trace(output).footer is not None


def until_met_by_bpftrace(lab: Lab) -> list[str]:
    """A command that makes traced calls until a uprobe of another tool was set, met and gone."""
    library = "/usr/lib/x86_64-linux-gnu/libvirt.so.0"
    program = f'uprobe:{library}:{API} {{ printf("met\\n"); exit(); }}'
    traced = subprocess.list2cmdline(lab.virsh_command("domblkinfo vm1 vda"))
    until_met = f"bpftrace -e '{program}' & while kill -0 $!; do {traced}; sleep 0.2; done"
    return ["sh", "-c", until_met]


def test_a_uprobe_that_took_a_breakpoint_away_is_told(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(lab, output, command=until_met_by_bpftrace(lab))
    assert done.returncode == 4, done.stderr
    assert f"another tracer (bpftrace, perf) replaced the breakpoints of {API}: " in done.stderr
    footer = read_trace(output).footer
    assert footer is not None
    assert footer["reason"] == "error"


def test_a_uprobe_of_another_tool_takes_nothing_away(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = by_uprobes(lab, output, command=until_met_by_bpftrace(lab))
    assert done.returncode == 0, done.stderr
    calls = calls_of(whole_trace(output))
    assert len(calls) == len(printed_info(done.stdout)) > 0


def test_the_owner_of_a_job_is_seen_without_a_stop(lab: Lab, tmp_path: Path) -> None:
    """As GDB sees it, before any probe has put its trampoline on the stack."""
    output = tmp_path / "trace.jsonl"
    with lab.stalled():
        before = {int(task.name) for task in Path(f"/proc/{lab.pid}/task").iterdir()}
        owns = subprocess.Popen(lab.virsh_command("domblkinfo vm1 vda"), stdout=subprocess.DEVNULL)
        tid = wait_until(lambda: owner_of_job(lab.pid), "a call that waits for QEMU")
        assert tid in before
        frames = frames_by_gdb(lab.pid, tid)
        line = [*VIRTRACE, "record", "job-lock", "-p", str(lab.pid), "--engine", "uprobes"]
        running = subprocess.Popen(
            [*line, "-o", str(output), "--", *lab.virsh_command("domblkstat vm1 vda")],
            stdout=subprocess.DEVNULL,
        )
        until(output, '"owner_backtrace":["')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    assert running.wait(SECONDS) == 130
    assert owns.wait(SECONDS) == 0
    [told] = [
        event.values
        for event in read_trace(output).events
        if isinstance(event.values.get("owner_backtrace"), list)
    ]
    process = inspect(lab.pid)
    assert told["owner"] == tid
    assert len(told["owner_backtrace"]) == len(frames)
    for frame, (address, symbol) in zip(told["owner_backtrace"], frames):
        assert stands_for(frame, address, symbol, process), (frame, hex(address), symbol)


def owner_of_job(pid: int) -> int | None:
    """The thread that waits in the monitor of QEMU, by its backtrace."""
    process = inspect(pid)
    names = FrameNames(process, {})
    with LiveImage(process) as image:
        for thread in image.threads():
            frames = Unwinder(image).backtrace(thread).frames
            described = [names.describe(frame, is_innermost=False) for frame in frames]
            if any(each.startswith("qemuMonitorSend+") for each in described):
                return thread.tid
    return None
