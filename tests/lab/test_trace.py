"""Traces of the distribution's own libvirtd, compared with what virsh and QEMU say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.lab.conftest import bring_up
from tests.lab.tracing import (
    DISKS,
    SCRIPT,
    all_disks,
    as_measured,
    calls_of,
    exchanges,
    gdb_environment,
    printed_info,
    record,
    whole_trace,
)
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.intact import assert_untraced_and_intact
from virtrace.analysis.spans import Call, Span
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import read_trace
from virtrace.trace.rotation import parts


@dataclass(frozen=True)
class Expected:
    """What is in a trace of one domblkinfo on a stripped daemon, whatever the disk."""

    spans: list[str]
    commands: list[str]
    # What the disk written at its last sector answers with.
    last_sector_is_allocation: bool


CHAIN = ["virDomainGetBlockInfo", "qemuDomainGetBlockInfo", "qemuDomainBlocksStatsGather"]
GET_ALL = "qemuMonitorGetAllBlockStatsInfo"
QUERY = "qemuMonitorJSONQueryBlockstats"
CAPACITY = "qemuMonitorBlockStatsUpdateCapacityBlockdev"
STATS, NODES = "query-blockstats", "query-named-block-nodes"

# By the versions of libvirt that this was measured on. Any other is held to be like the last one
# before it, and fails here where it is not.
EXPECTED: dict[tuple[int, ...], Expected] = {
    (7, 0, 0): Expected([*CHAIN, GET_ALL, QUERY, CAPACITY], [STATS, NODES], True),
    (9, 0, 0): Expected([*CHAIN, GET_ALL, QUERY, QUERY, CAPACITY], [STATS, STATS, NODES], True),
    (11, 3, 0): Expected([*CHAIN, GET_ALL, QUERY, QUERY, CAPACITY], [STATS, STATS, NODES], False),
    # The query and the capacity became static functions, parts of GET_ALL.
    (12, 8, 0): Expected([*CHAIN, GET_ALL], [STATS, STATS, NODES], False),
}


@pytest.fixture
def expected(stock_lab: Lab) -> Expected:
    return as_measured(EXPECTED, stock_lab.libvirt_version)


def spans(call: Call) -> list[str]:
    return [node.name for node in call.nodes() if isinstance(node, Span)]


@pytest.fixture
def linked_script(tmp_path: Path) -> Path:
    link = tmp_path / "elsewhere" / "trace.py"
    link.parent.mkdir()
    link.symlink_to(SCRIPT)
    return link


def test_the_exact_gdb_line(
    stock_lab: Lab, expected: Expected, tmp_path: Path, linked_script: Path
) -> None:
    output = tmp_path / "trace.jsonl"
    gdb = pexpect.spawn(
        "gdb",
        ["-nx", "-x", str(linked_script), "-p", str(stock_lab.pid)],
        cwd="/",
        env={**gdb_environment(OUTPUT=str(output)), "NO_COLOR": "1"},
        encoding="utf-8",
        timeout=SECONDS,
        # On 24 lines GDB itself stops its list of threads with a prompt.
        dimensions=(60, 160),
    )
    gdb.expect("to end .*Ctrl-C")
    gdb.expect(re.escape(str(output)))
    printed = stock_lab.virsh("domblkinfo", "vm1", "vdd").stdout
    gdb.expect("virDomainGetBlockInfo.* = 0 in ")
    gdb.sendintr()
    gdb.sendintr()
    gdb.expect("detached")
    gdb.expect(r"\(gdb\) ")
    gdb.sendline("maintenance info breakpoints")
    gdb.expect(r"\(gdb\) ")
    # GDB has internal ones of other kinds, for events of shared libraries and the like.
    assert gdb.before is not None
    assert not re.search(r"^-?\d+ +(hw )?breakpoint", gdb.before, re.M)
    gdb.sendline("info inferiors")
    gdb.expect("<null>")
    gdb.sendline("quit")
    gdb.expect(pexpect.EOF)

    trace = whole_trace(output)
    assert trace.footer is not None
    assert trace.footer["reason"] == "interrupt"
    assert trace.footer["detached"] is True
    [call] = calls_of(trace)
    assert call.root.arguments == {"domain": "vm1", "disk": "vdd", "flags": 0}
    assert call.root.returned == {"result": 0, "info": printed_info(printed)[0]}
    assert [exchange.command for exchange in exchanges(call)] == expected.commands


def test_every_disk_with_its_whole_qmp_conversation(
    stock_lab: Lab, expected: Expected, tmp_path: Path, engine: str
) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(stock_lab, output, command=all_disks(stock_lab), engine=engine)
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    calls = calls_of(trace)
    assert [call.root.arguments["disk"] for call in calls] == list(DISKS)
    assert [call.root.returned["info"] for call in calls if call.root.returned] == printed_info(
        done.stdout
    )
    full = stock_lab.disk_file("vdd").stat()
    size, used = full.st_size, full.st_blocks * 512
    allocation, physical = (size, used) if expected.last_sector_is_allocation else (used, size)
    last = calls[-1].root.returned
    assert last is not None
    assert last["info"] == {"capacity": size, "allocation": allocation, "physical": physical}
    levels = {probe["name"]: probe["level"] for probe in trace.header["probes"]}
    assert levels["virDomainGetBlockInfo"] == "symbol"
    assert levels["qmp.send"] == levels["qmp.reply"] == "usdt"
    assert levels["qemuDomainGetBlockInfo"] == "inferred"
    for call in calls:
        assert call.complete
        assert call.root.arguments["domain"] == "vm1"
        assert spans(call) == expected.spans
        assert [exchange.command for exchange in exchanges(call)] == expected.commands
    # Text as it was captured, whole: it parses, and it answers the id that was sent.
    points = [event for event in trace.events if event.name.startswith("qmp.")]
    assert len(points) == 2 * len(expected.commands) * len(DISKS)
    for event in points:
        assert json.loads(event.values["text"]) == event.values["json"]
    sent = [event.values["json"]["id"] for event in points if event.name == "qmp.send"]
    answered = [event.values["json"]["id"] for event in points if event.name == "qmp.reply"]
    assert sorted(sent) == sorted(answered)
    assert len(set(sent)) == len(sent)


def test_the_last_reply_is_what_qemu_says_when_asked_directly(
    stock_lab: Lab, tmp_path: Path, engine: str
) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(
        stock_lab,
        output,
        command=stock_lab.virsh_command("domblkinfo", "vm1", "vda"),
        engine=engine,
    )
    assert done.returncode == 0, done.stderr
    [call] = calls_of(whole_trace(output))
    traced = exchanges(call)[-1]
    assert traced.reply is not None
    # The very command that libvirt sent: 7.0.0 does so without flat, the option that leaves out
    # the images below.
    command = {key: value for key, value in traced.send.values["json"].items() if key != "id"}
    assert command["execute"] == "query-named-block-nodes"
    assert traced.reply.values["json"]["return"] == stock_lab.qmp(command)["return"]


def test_eight_clients_at_once(
    stock_lab: Lab, expected: Expected, tmp_path: Path, engine: str
) -> None:
    output = tmp_path / "trace.jsonl"
    client = "; ".join(["domblkinfo vm1 {disk}"] * 50)
    clients = [
        subprocess.list2cmdline(stock_lab.virsh_command(client.format(disk=DISKS[i % 4])))
        + f" > {tmp_path}/client-{i}"
        for i in range(8)
    ]
    script = " & ".join(clients) + " & wait"
    done = record(stock_lab, output, command=["sh", "-c", script], engine=engine)
    assert done.returncode == 0, done.stderr
    printed = [printed_info((tmp_path / f"client-{i}").read_text()) for i in range(8)]
    assert [len(answers) for answers in printed] == [50] * 8

    trace = whole_trace(output)
    calls = calls_of(trace)
    assert len(calls) == 400
    assert not [event for event in trace.events if event.type == "lost"]
    assert trace.footer is not None
    assert trace.footer["dropped"] == 0
    ids: set[str] = set()
    for call in calls:
        assert call.complete
        disk = call.root.arguments["disk"]
        assert call.root.returned == {
            "result": 0,
            "info": printed[DISKS.index(disk)][0],
        }
        assert spans(call) == expected.spans
        assert [exchange.command for exchange in exchanges(call)] == expected.commands
        for exchange in exchanges(call):
            assert exchange.reply is not None
            assert exchange.id is not None
            ids.add(exchange.id)
    assert len(ids) == 400 * len(expected.commands)
    # Every client saw the same numbers throughout, so that each call can be told by its disk.
    for i, answers in enumerate(printed):
        assert all(answer == printed[i % 4][0] for answer in answers)


def test_a_call_that_fails(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(
        stock_lab,
        output,
        command=stock_lab.virsh_command("domblkinfo", "vm1", "vdz"),
        engine=engine,
    )
    assert done.returncode == 0, done.stderr
    [call] = calls_of(whole_trace(output))
    assert call.failed
    assert call.root.returned is not None
    assert call.root.returned["result"] == -1
    [error] = call.errors()
    # VIR_ERR_INVALID_ARG
    assert error.values["code"] == 8
    assert f"error: {error.values['message']}\n" in done.stderr
    assert error.values["message"] in done.stdout


def test_filters_and_limits(
    stock_lab: Lab, expected: Expected, tmp_path: Path, engine: str
) -> None:
    output = tmp_path / "trace.jsonl"
    filters = ["--where", "domain=vm1", "--where", "disk=vdc"]
    done = record(stock_lab, output, *filters, command=all_disks(stock_lab), engine=engine)
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    [call] = calls_of(trace)
    assert call.root.arguments["disk"] == "vdc"
    assert len(exchanges(call)) == len(expected.commands)
    # Replies to calls that were left out are left out too.
    assert {event.call for event in trace.events} == {call.id}

    output = tmp_path / "limited.jsonl"
    done = record(stock_lab, output, "--calls", "2", command=all_disks(stock_lab), engine=engine)
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert len(calls_of(trace)) == 2
    assert trace.footer is not None
    assert trace.footer["reason"] == "limit"
    assert len(printed_info(done.stdout)) == 4

    output = tmp_path / "timed.jsonl"
    done = record(stock_lab, output, "--seconds", "0.5", engine=engine)
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert trace.footer is not None
    assert (trace.footer["reason"], trace.footer["events"]) == ("limit", 0)


def test_a_recording_in_several_files(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    output = tmp_path / "trace.jsonl"
    command = stock_lab.virsh_command("; ".join(f"domblkinfo vm1 {disk}" for disk in DISKS * 3))
    done = record(
        stock_lab, output, "--rotate", "80000", "--host-facts", command=command, engine=engine
    )
    assert done.returncode == 0, done.stderr
    files = parts(output)
    assert files == sorted(tmp_path.iterdir())
    assert len(files) > 2
    assert f"virtrace explain {files[-1]}" in done.stdout
    told: dict[str, list[str]] = {"enter": [], "exit": []}
    for file in files:
        trace = read_trace(file)
        assert trace.footer is not None
        assert trace.footer["reason"] == ("done" if file == files[-1] else "rotated")
        roots = [event for event in trace.events if event.name == "virDomainGetBlockInfo"]
        for kind, values in told.items():
            values += [
                str(event.values.get("disk", event.values.get("result")))
                for event in roots
                if event.type == kind
            ]
        asked = {event.values["disk"] for event in roots if event.type == "enter"}
        assert {record["disk"] for record in trace.host} == (asked if file == files[-1] else set())
    assert told == {"enter": [*DISKS * 3], "exit": ["0"] * 12}
    # Each is a trace for every command; 4: one with a call that is cut.
    bundle = tmp_path / "bundle.tar.gz"
    for words in (
        ("show", files[0]),
        ("explain", files[0]),
        ("diff", files[0], files[0]),
        ("bundle", files[0], "-o", bundle),
        ("show", bundle),
    ):
        done = virtrace(*map(str, words))
        assert done.returncode in (0, 4), (words, done.stderr)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ended_by_a_signal(stock_lab: Lab, tmp_path: Path, ending: signal.Signals) -> None:
    """Sent to `virtrace record` alone; when it is killed, GDB still comes clean."""
    output = tmp_path / "trace.jsonl"
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb"]
    with subprocess.Popen(
        [*command, "-p", str(stock_lab.pid), "-o", str(output)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("Ctrl-C" in line for line in process.stdout)
        assert stock_lab.virsh("domblkinfo", "vm1", "vda").returncode == 0
        process.send_signal(ending)
        # To its end: GDB, whose output it is too, has ended when this is.
        rest = process.stdout.read()
    assert "detached" in rest
    assert process.returncode == (-ending if ending == signal.SIGKILL else 130)
    trace = whole_trace(output)
    assert trace.footer is not None
    assert trace.footer["reason"] == "interrupt"
    assert len(calls_of(trace)) == 1


def test_the_daemon_dies_mid_trace(tmp_path: Path, engine: str) -> None:
    lab = bring_up()
    try:
        output = tmp_path / "trace.jsonl"
        asked = subprocess.list2cmdline(lab.virsh_command("domblkinfo", "vm1", "vda"))
        done = record(
            lab, output, command=["sh", "-c", f"{asked}; kill -KILL {lab.pid}"], engine=engine
        )
        assert done.returncode == 4, done.stderr
        trace = whole_trace(output)
        assert trace.footer is not None
        assert trace.footer["reason"] == "target-exit"
        [call] = calls_of(trace)
        assert call.root.returned == {"result": 0, "info": printed_info(done.stdout)[0]}
    finally:
        lab.down()


def test_nothing_that_is_no_libvirt_daemon(tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    with subprocess.Popen(["sleep", "1000"]) as sleep:
        try:
            done = virtrace("record", "blockinfo", "-p", str(sleep.pid), "-o", str(output))
            assert done.returncode == 3
            assert "not a libvirt or QEMU daemon" in done.stderr
            done = subprocess.run(
                ["gdb", "-nx", "-batch", "-x", str(SCRIPT), "-p", str(sleep.pid)],
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            assert done.returncode == 3
            assert "not a libvirt or QEMU daemon" in done.stderr
            assert_untraced_and_intact(sleep.pid)
        finally:
            sleep.kill()
    done = virtrace("record", "blockinfo", "-p", str(sleep.pid), "-o", str(output))
    assert done.returncode == 3
    assert f"there is no process {sleep.pid}" in done.stderr
    assert not output.exists()


def test_gdb_that_is_attached_to_nothing() -> None:
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-x", str(SCRIPT)], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 3
    assert "attached to no process" in done.stderr
    assert "-p $(pidof libvirtd)" in done.stderr


def test_a_second_tracer(stock_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    # Older GDBs list more threads than the terminal has lines.
    unpaged = ["-iex", "set pagination off"]
    first = pexpect.spawn("gdb", ["-nx", "-q", *unpaged, "-p", str(stock_lab.pid)], timeout=SECONDS)
    first.expect(r"\(gdb\) ")
    done = record(stock_lab, output)
    first.sendline("detach")
    first.expect("detached")
    first.sendline("quit")
    first.expect(pexpect.EOF)
    assert done.returncode == 3
    assert f"already traced by gdb (pid {first.pid}" in done.stderr
    assert not output.exists()


def test_without_permission(stock_lab: Lab, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become a user who may not trace")
    # `daemon` is a user of every Debian system, and none of the lab's.
    done = virtrace("doctor", "-p", str(stock_lab.pid), user="daemon", extra_groups=[])
    assert done.returncode == 3
    done = record_as_daemon(stock_lab)
    assert done.returncode == 3
    assert "belongs to nobody, and daemon may not trace it" in done.stderr
    assert "run as root" in done.stderr


def record_as_daemon(lab: Lab) -> subprocess.CompletedProcess[str]:
    return virtrace(
        "record", "blockinfo", "-p", str(lab.pid), user="daemon", extra_groups=[], cwd="/"
    )


def test_recipes_that_are_missing_or_broken(stock_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    common = ["-p", str(stock_lab.pid), "-o", str(output)]
    done = virtrace("record", "blokinfo", *common)
    assert done.returncode == 2
    assert "did you mean 'blockinfo'?" in done.stderr
    done = virtrace("record", "./none.yaml", *common, cwd=tmp_path)
    assert done.returncode == 2
    assert "none.yaml: No such file" in done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text("virtrace: 1\nname: x\nabout: y\ntry: z\nspans:\n  - modul: libvirt.so.0\n")
    done = virtrace("record", str(broken), *common)
    assert done.returncode == 2
    assert f"{broken}:6:5: unknown key 'modul'" in done.stderr
    assert "did you mean 'module'?" in done.stderr
    done = record(stock_lab, output, command=["no-such-command"])
    assert done.returncode == 2
    assert "there is no command no-such-command" in done.stderr
    assert not output.exists()


def test_an_output_that_cannot_be_written(stock_lab: Lab, tmp_path: Path, engine: str) -> None:
    taken = tmp_path / "taken.jsonl"
    taken.write_text("precious")
    done = record(stock_lab, taken, engine=engine)
    assert done.returncode == 2
    assert "already exists" in done.stderr
    assert taken.read_text() == "precious"
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "victim")
    assert record(stock_lab, link, engine=engine).returncode == 2
    assert not (tmp_path / "victim").exists()
    done = record(stock_lab, tmp_path / "no" / "folder.jsonl", engine=engine)
    assert done.returncode == 2
    assert "No such file or directory" in done.stderr


def test_show_of_a_recorded_and_of_a_truncated_trace(stock_lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "trace.jsonl"
    done = record(stock_lab, output, command=stock_lab.virsh_command("domblkinfo", "vm1", "vdd"))
    assert done.returncode == 0, done.stderr
    shown = virtrace("show", str(output))
    assert shown.returncode == 0
    [info] = printed_info(done.stdout)
    for number in info.values():
        assert str(number) in shown.stdout
    document = json.loads(virtrace("show", "--json", str(output)).stdout)
    assert len(document["calls"]) == 1
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(output.read_bytes()[:-200])
    shown = virtrace("show", str(cut))
    assert shown.returncode == 4
    assert "virDomainGetBlockInfo" in shown.stdout
