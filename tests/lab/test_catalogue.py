"""Every shipped recipe but blockinfo, on a real daemon: its values beside a second source's."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from tests.lab.tracing import DISKS, as_measured, exchanges, span, whole_trace
from tests.support.block_stats import COUNTERS
from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.intact import assert_untraced_and_intact
from tests.support.recipes import FOR_LIBVIRT
from tests.support.waiting import wait_until
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.analysis.waiting import ended_ns, waiting
from virtrace.cli.main import main
from virtrace.image.process import Process, inspect
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import disk_xml, file_source
from virtrace.lab.stage import Stage
from virtrace.recipe import catalogue
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace, read_trace

# What virsh calls a counter, where that is not its own name.
VIRSH = {"wr_operations": "wr_req", "rd_operations": "rd_req"}


# What prints its own process id before it becomes a command.
OWN_PID = ("sh", "-c", 'echo $$; exec "$@"', "sh")


def traced(
    lab: Lab, engine: str, recipe: str, output: Path, *virsh: str, by: tuple[str, ...] = ()
) -> tuple[Trace, str, str]:
    """What a recipe saw while virsh ran, and what virsh printed as output and as errors.

    by: what runs virsh.
    """
    options = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
    done = virtrace("record", recipe, *options, "--", *by, *lab.virsh_command("; ".join(virsh)))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert trace.footer is not None
    assert (trace.footer["detached"], trace.footer["dropped"]) == (True, 0)
    # What no person could read is no answer: the same trace again, as text and as a page.
    with redirect_stdout(StringIO()) as shown:
        assert main(["show", str(output)]) == 0
        assert max(map(len, shown.getvalue().splitlines()[:-2])) <= 80, shown.getvalue()
        assert main(["show", str(output), "--html", str(output.with_suffix(".html"))]) == 0
    return trace, done.stdout, done.stderr


def apart(trace: Trace) -> list[Point | Exchange]:
    nodes = [*CallBuilder().everything(trace.events)]
    assert not any(isinstance(node, Call) for node in nodes)
    return [node for node in nodes if not isinstance(node, Call)]


def calls(trace: Trace) -> list[Call]:
    nodes = [*CallBuilder().everything(trace.events)]
    found = [node for node in nodes if isinstance(node, Call)]
    assert len(found) == len(nodes)
    assert all(call.complete for call in found)
    return found


def levels(trace: Trace) -> dict[str, str]:
    return {probe["name"]: probe["level"] for probe in trace.header["probes"]}


def only_optional_is_missing(trace: Trace, recipe: str) -> bool:
    missing = {name for name, level in levels(trace).items() if level == "missing"}
    return missing <= {
        probe.name for probe in catalogue.find_recipe(recipe).probes if probe.optional
    }


def test_qmp(lab: Lab, engine: str, tmp_path: Path) -> None:
    """Asked through virsh, so that virsh prints what QEMU said; and an API that asks by itself."""
    asked = {"execute": "query-status"}
    command = f"qemu-monitor-command vm1 '{json.dumps(asked)}'"
    trace, printed, _ = traced(
        lab, engine, "qmp", tmp_path / "t.jsonl", command, "suspend vm1", "resume vm1"
    )
    assert set(levels(trace).values()) == {"usdt"}
    nodes = apart(trace)
    told = [node for node in nodes if isinstance(node, Exchange)]
    assert [one.command for one in told] == ["query-status", "stop", "cont"]
    assert all(one.reply is not None for one in told)
    status = told[0]
    assert status.reply is not None
    [said] = [json.loads(line) for line in printed.splitlines() if line.startswith('{"return"')]
    assert status.reply.values["json"]["return"] == said["return"]
    assert status.id == said["id"]
    events = [node.event for node in nodes if isinstance(node, Point)]
    assert [event.values["json"]["event"] for event in events] == ["STOP", "RESUME"]
    # Text as it was captured, whole, and of one and the same monitor.
    points = [event for event in trace.events if event.type == "point"]
    assert len(points) == 2 * len(told) + len(events)
    for event in points:
        assert json.loads(event.values["text"]) == event.values["json"]
    assert len({event.values["mon"] for event in points}) == 1
    shown = virtrace("show", str(tmp_path / "t.jsonl")).stdout
    assert re.search(r"monitor 0x[0-9a-f]+ QMP event STOP$", shown, re.M)
    assert re.search(r"monitor 0x[0-9a-f]+ QMP stop libvirt-\d+ -> \d+ bytes", shown)
    document = json.loads(virtrace("show", "--json", str(tmp_path / "t.jsonl")).stdout)
    assert document["calls"] == []
    assert [node.get("command") for node in document["outside"]] == [
        one.command if isinstance(one, Exchange) else None for one in nodes
    ]
    summary = virtrace("show", "--summary", "--json", str(tmp_path / "t.jsonl")).stdout
    assert [row["name"] for row in json.loads(summary)["commands"]] == [
        *("query-status", "stop", "cont")
    ]


@dataclass(frozen=True)
class Failed:
    """A failed API, with what was raised on its thread before."""

    api: str
    raised: list[Event]


def failures(trace: Trace) -> list[Failed]:
    pending: dict[int, list[Event]] = {}
    found = []
    for node in apart(trace):
        assert isinstance(node, Point)
        event = node.event
        if event.name == "api.failed":
            found.append(Failed(event.values["api"], pending.pop(event.tid)))
        elif event.name.startswith("error"):
            pending.setdefault(event.tid, []).append(event)
    return found


def test_errors(lab: Lab, engine: str, tmp_path: Path) -> None:
    """Each beside what virsh was told; the last is one of the system's, of a file that is gone."""
    gone = lab.folder / "gone.raw"
    lab.define("vm2", tmp_path / "vm2.xml", disk_xml("file", file_source(gone), "vda"))
    asked = ["domblkinfo vm1 vdz", "blockresize vm1 vdz 1", "domstate vm1", "start vm2"]
    try:
        trace, _, told = traced(lab, engine, "errors", tmp_path / "t.jsonl", *asked)
    finally:
        lab.virsh_checked("undefine", "vm2")
    assert set(levels(trace).values()) in ({"symbol"}, {"dwarf"})
    failed = failures(trace)
    assert [one.api for one in failed] == [
        *("virDomainGetBlockInfo", "virDomainBlockResize", "virDomainCreate")
    ]
    # Where every error goes through virRaiseErrorFull, and the detail of one of the system's
    # comes to virErrorMsg as a template.
    full = as_measured({(7, 0, 0): True, (9, 0, 0): False}, lab.libvirt_version)
    for one in failed:
        place, error, *again = one.raised
        assert [event.name for event in again] == ["error.full"] * full
        assert place.name == ("error.system" if one is failed[-1] else "error.raised")
        assert error.name == "error"
        last = (again or [error])[-1].values
        assert f"error: {last['message']}\n" in told
        if full and one is failed[-1]:
            assert "may be a template" in error.values["message"]["unavailable"]
        else:
            assert error.values["message"] == last["message"]
        for event in again:
            for name in ("file", "function", "line", "domain"):
                assert event.values[name] == place.values[name]
    first, _, last_of_all = failed
    assert first.raised[0].values["function"] == "qemuDomainGetBlockInfo"
    assert first.raised[0].values["code"] == first.raised[1].values["code"] == 8
    assert last_of_all.raised[0].values["errno"] == errno.ENOENT
    assert str(gone) in last_of_all.raised[-1].values["message"]


STATES = {"no state": 0, "running": 1, "paused": 3, "shut off": 5}


def printed_fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([^:\n]+): +(.+)$", text, re.M))


@pytest.mark.parametrize("state", ["running", "paused", "shut off"])
def test_dominfo(lab: Lab, engine: str, tmp_path: Path, state: str) -> None:
    guest = "vm1"
    if state == "paused":
        lab.virsh_checked("suspend", guest)
    try:
        trace, printed, _ = traced(lab, engine, "dominfo", tmp_path / "t.jsonl", f"dominfo {guest}")
    finally:
        if state == "paused":
            lab.virsh_checked("resume", guest)
    assert only_optional_is_missing(trace, "dominfo")
    [call] = calls(trace)
    assert call.root.arguments == {"domain": guest}
    assert call.root.returned is not None
    info = call.root.returned["info"]
    said = printed_fields(printed)
    assert info == {
        "state": STATES[said["State"]],
        "maxMem": int(said["Max memory"].split()[0]),
        "memory": int(said["Used memory"].split()[0]),
        "nrVirtCpu": int(said["CPU(s)"]),
        "cpuTime": info["cpuTime"],
    }
    assert f"{info['cpuTime'] / 1e9:.1f}s" == said["CPU time"]


def test_memory(lab: Lab, engine: str, tmp_path: Path) -> None:
    """Beside what virsh prints of both."""
    asked = ("dommemstat vm1", "dominfo vm1")
    trace, printed, _ = traced(lab, engine, "memory", tmp_path / "t.jsonl", *asked)
    assert only_optional_is_missing(trace, "memory")
    found = {call.root.name: call for call in calls(trace)}
    assert found["virDomainGetInfo"].root.returned is not None
    info = found["virDomainGetInfo"].root.returned["info"]
    said = printed_fields(printed)
    assert info["maxMem"] == int(said["Max memory"].split()[0])
    assert info["memory"] == int(said["Used memory"].split()[0])
    stats = found["virDomainMemoryStats"]
    assert stats.root.arguments["domain"] == "vm1"
    assert stats.root.returned is not None
    # The guest has no balloon, which could tell more.
    shown = re.findall(r"^(?:actual|rss|last_update|unused|available) \d+$", printed, re.M)
    assert (stats.root.returned["result"], exchanges(stats)) == (len(shown), [])


def printed_counters(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^\w+ (\w+) (\d+)$", text, re.M)}


@pytest.mark.parametrize("disk", DISKS)
def test_blockstats(lab: Lab, engine: str, tmp_path: Path, disk: str) -> None:
    trace, printed, _ = traced(
        lab, engine, "blockstats", tmp_path / "t.jsonl", f"domblkstat vm1 {disk}"
    )
    assert only_optional_is_missing(trace, "blockstats")
    how_many, numbers = calls(trace)
    assert how_many.root.returned is not None
    assert how_many.root.returned["nparams"] == 8
    assert set(how_many.root.returned["params"]) == {"unavailable"}
    assert numbers.root.arguments["domain"] == "vm1"
    assert numbers.root.arguments["disk"] == disk
    assert numbers.root.returned is not None
    assert (numbers.root.returned["result"], numbers.root.returned["nparams"]) == (0, 8)
    params = numbers.root.returned["params"]
    said = printed_counters(printed)
    assert {VIRSH.get(name, name): value for name, value in params.items()} == said
    entries = lab.qmp({"execute": "query-blockstats"})["return"]
    [entry] = [one for one in entries if f"/virtio-disk{DISKS.index(disk)}/" in one["qdev"]]
    gathered = span(numbers, "qemuDomainBlocksStatsGather").returned
    assert gathered is not None
    stats = gathered["stats"]
    for name, qmp_name in COUNTERS.items():
        assert stats[name] == entry["stats"][qmp_name]
    # Sizes are not wanted here, until libvirt has them along with the rest.
    asked = as_measured({(7, 0, 0): False, (12, 8, 0): True}, lab.libvirt_version)
    commands = {one.command for one in exchanges(numbers)}
    assert ("query-named-block-nodes" in commands) is asked
    assert bool(stats["capacity"]) is asked


def printed_statistics(text: str) -> dict[str, dict[str, str]]:
    """By domain: what virsh domstats printed."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"Domain: '(.+)'", line):
            found[match[1]] = {}
        elif match := re.fullmatch(r"  ([\w.-]+)=(.*)", line):
            found[[*found][-1]][match[1]] = match[2]
    return found


@pytest.mark.parametrize("asked", ["domstats", "domstats vm1"], ids=["all", "one"])
def test_domstats(lab: Lab, engine: str, tmp_path: Path, asked: str) -> None:
    """Of a guest that runs and one that does not."""
    lab.define("vm2", tmp_path / "vm2.xml", "")
    try:
        trace, printed, _ = traced(lab, engine, "domstats", tmp_path / "t.jsonl", asked)
    finally:
        lab.virsh_checked("undefine", "vm2")
    assert only_optional_is_missing(trace, "domstats")
    [call] = calls(trace)
    one = asked.endswith("vm1")
    assert call.root.name == ("virDomainListGetStats" if one else "virConnectGetAllDomainStats")
    assert call.root.returned is not None
    records = call.root.returned["records"]
    assert call.root.returned["result"] == len(records) == 2 - one
    assert {
        domain: {name: {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool)
                 else str(value) for name, value in values.items()}
        for domain, values in records.items()
    } == printed_statistics(printed)  # fmt: skip
    assert len(records["vm1"]) > 40
    told = {exchange.command: exchange for exchange in exchanges(call)}
    assert "query-blockstats" in told


STEPS = ("qemuProcessInit", "qemuProcessPrepareDomain", "qemuProcessPrepareHost")
NO_SUCH_OPTION = """
  <qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:arg value='-no-such-option'/>
  </qemu:commandline>"""


def test_start_failure(lab: Lab, engine: str, tmp_path: Path) -> None:
    """One for want of a file, one that QEMU ends by itself, and one that starts."""
    gone = lab.folder / "gone.raw"
    lab.define("vm2", tmp_path / "vm2.xml", disk_xml("file", file_source(gone), "vda"))
    lab.define("vm3", tmp_path / "vm3.xml", "", NO_SUCH_OPTION)
    lab.define("vm4", tmp_path / "vm4.xml", "")
    asked = ["start vm2", "start vm3", "start vm4", "destroy vm4"]
    try:
        trace, _, told = traced(lab, engine, "start-failure", tmp_path / "t.jsonl", *asked)
    finally:
        for guest in ("vm2", "vm3", "vm4"):
            lab.virsh_checked("undefine", guest)
    assert only_optional_is_missing(trace, "start-failure")
    nodes = [*CallBuilder().everything(trace.events)]
    no_file, by_qemu, started = [node for node in nodes if isinstance(node, Call)]
    found = {call.root.arguments["domain"]: call for call in (no_file, by_qemu, started)}
    assert [*found] == ["vm2", "vm3", "vm4"]
    assert [call.failed for call in found.values()] == [True, True, False]
    assert all(call.complete for call in found.values())
    for call in found.values():
        [start] = [one for one in call.root.children if isinstance(one, Span)]
        steps = [one for one in start.children if isinstance(one, Span)]
        names = [one.name for one in steps]
        assert start.name == "qemuProcessStart"
        assert start.failed is call.failed
        assert names[:3] == [*STEPS]
        assert ("qemuProcessLaunch" in names) is (call is not no_file)
        assert ("qemuProcessStop" in names) is call.failed
        broken = [one.name for one in steps if one.failed]
        assert broken == {
            "vm2": ["qemuProcessPrepareHost"], "vm3": ["qemuProcessLaunch"], "vm4": []
        }[call.root.arguments["domain"]]  # fmt: skip
    system = next(one.event.values for one in no_file.nodes() if isinstance(one, Point))
    assert system["errno"] == errno.ENOENT
    raised = [*no_file.errors(), *by_qemu.errors()]
    messages = [event.values["message"] for event in raised]
    messages += [
        node.event.values["message"]
        for node in nodes
        if isinstance(node, Point) and node.event.name == "error"
    ]
    whole = [message for message in messages if isinstance(message, str)]
    reported = [message for message in whole if f"error: {message}" in told]
    # QEMU may have ended before libvirt connects to it: it has not read its words then.
    of_qemu = ("no-such-option", "failed to connect to monitor socket: Connection refused")
    assert any(words in message for message in reported for words in of_qemu)
    if lab.libvirt_version >= (9, 0):
        assert any(str(gone) in message for message in reported)


@contextmanager
def recording(
    lab: Lab, engine: str, recipe: str, output: Path, *virsh: str
) -> Iterator[subprocess.Popen[bytes]]:
    """virtrace, while it records what virsh asks of a guest that gives no answer meanwhile."""
    line = [*VIRTRACE, "record", recipe]
    options = ("-p", str(lab.pid), "--engine", engine, "-o", str(output))
    command = lab.virsh_command("; ".join(virsh))
    with lab.stalled():
        running = subprocess.Popen([*line, *options, "--", *command], stdout=subprocess.DEVNULL)
        try:
            yield running
        except BaseException:
            running.kill()
            raise


def until(output: Path, what: str) -> None:
    """Wait until the trace has a record with this text."""
    wait_until(lambda: output.exists() and what in output.read_text(encoding="utf-8"), what)


def test_monitor_stall(lab: Lab, engine: str, tmp_path: Path) -> None:
    """A command that had no reply when the trace ended, and one that QEMU answers late."""
    output = tmp_path / "open.jsonl"
    with recording(lab, engine, "monitor-stall", output, "domblkinfo vm1 vda") as running:
        until(output, '"name":"qmp.send","span"')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
    # QEMU goes on by now, and virsh had its answer.
    assert running.wait(SECONDS) == 130
    trace = read_trace(output)
    assert only_optional_is_missing(trace, "monitor-stall")
    assert trace.footer is not None
    [send] = [event for event in trace.events if event.name == "qmp.send"]
    [one] = waiting(CallBuilder().everything(trace.events), ended_ns(trace))
    assert isinstance(one.node, Exchange)
    assert one.node.send is send
    assert one.ns == trace.footer["t_ns"] - send.t_ns > 0
    assert one.call is not None
    assert one.call.procedure == "remoteDispatchDomainGetBlockInfo"
    assert (one.call.domain, one.call.complete) == ("vm1", False)
    assert one.call.client is not None
    shown = virtrace("show", str(output)).stdout
    assert max(map(len, shown.splitlines()[:-2])) <= 80, shown
    _, answer, *_ = shown.split("\n\n")
    process = one.call.client["process-id"]
    assert re.fullmatch(
        "still waiting when the trace ended, since: "
        rf"[\d.]+ m?s QMP query-blockstats {one.node.id} to monitor {send.values['mon']} "
        rf"in remoteDispatchDomainGetBlockInfo\(vm1\) of process {process}",
        " ".join(answer.split()),
    )

    output = tmp_path / "late.jsonl"
    with recording(lab, engine, "monitor-stall", output, "domblkinfo vm1 vda") as running:
        until(output, '"name":"qmp.send","span"')
        held_ns = time.monotonic_ns()
        # Longer than any other command takes.
        time.sleep(0.1)
    assert running.wait(SECONDS) == 0
    trace = whole_trace(output)
    assert waiting(CallBuilder().everything(trace.events), ended_ns(trace)) == []
    [call] = [one for one in calls(trace) if one.procedure == "remoteDispatchDomainGetBlockInfo"]
    late, *others = exchanges(call)
    assert late.reply is not None
    # By the clock of this test: sent before, answered after QEMU was let go.
    start_ns = trace.header["clock"]["start_ns"]
    assert start_ns + late.send.t_ns < held_ns < start_ns + late.reply.t_ns
    assert late.duration_ns == max(one.duration_ns or 0 for one in (late, *others))


def frames_by_gdb(pid: int, tid: int) -> list[tuple[int, str]]:
    """Address and symbol of each frame of a thread, as a GDB without virtrace finds them."""
    script = Path(__file__).with_name("gdb_frames.py")
    done = subprocess.run(
        ["gdb", "-nx", "-nh", "-batch", "-p", str(pid), "-x", str(script)],
        env={**os.environ, "GDB_FRAMES_TID": str(tid)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    frames: list[tuple[int, str]] = json.loads(done.stdout.splitlines()[-2])
    return frames


def stands_for(frame: str, address: int, symbol: str, process: Process) -> bool:
    """Whether a recorded frame names this address. symbol: what GDB says is there."""
    found = re.fullmatch(r"(.+)\+(0x[0-9a-f]+)(?: \((.+)\))?", frame)
    assert found, frame
    module = process.module(found[3] or found[1])
    assert module is not None
    offset = int(found[2], 16)
    if found[3] is None:
        return module.base + offset == address
    exported = [start for start, _, name in module.elf.exported_functions() if name == found[1]]
    if not exported:
        return symbol.startswith(f"{found[1]} + {offset} in section ")
    # glibc has several functions of a name, for old programs.
    return address - offset - module.base in exported


def test_job_lock(lab: Lab, engine: str, tmp_path: Path) -> None:
    """A client that waits for a job, which another holds while QEMU does not answer it."""
    output = tmp_path / "t.jsonl"
    before_ms = time.time_ns() // 1_000_000
    with recording(lab, engine, "job-lock", output, "domblkinfo vm1 vda") as running:
        until(output, '"name":"qmp.send","span"')
        after_ms = time.time_ns() // 1_000_000
        command = lab.virsh_command("domblkstat", "vm1", "vda")
        with open(tmp_path / "printed", "w") as printed:
            waits = subprocess.Popen(command, stdout=printed)
        until(output, '"owner_api":"remoteDispatchDomainGetBlockInfo"')
        running.send_signal(signal.SIGINT)
        until(output, '"type":"footer"')
        [tid] = {event.tid for event in read_trace(output).events if event.name == "qmp.send"}
        # It still waits for its reply. Where the kernel's probes had been, GDB finds no caller, as
        # their trampoline is still on the stack (test_uprobes has the frames).
        frames = frames_by_gdb(lab.pid, tid) if engine == "gdb" else []
    assert running.wait(SECONDS) == 130
    # It had its turn.
    assert waits.wait(SECONDS) == 0
    assert printed_counters((tmp_path / "printed").read_text())
    trace = read_trace(output)
    assert only_optional_is_missing(trace, "job-lock")
    nodes = [*CallBuilder().everything(trace.events)]
    owner, waiter = waiting(nodes, ended_ns(trace))
    assert owner.call is not None
    assert waiter.call is not None
    assert isinstance(owner.node, Exchange)
    assert isinstance(waiter.node, Span)
    assert waiter.ns < owner.ns
    assert waiter.call.client is not None
    assert (waiter.call.procedure, waiter.call.domain, waiter.call.client["process-id"]) == (
        "remoteDispatchDomainBlockStatsFlags", "vm1", waits.pid
    )  # fmt: skip
    # What libvirt keeps of the owner, beside what the owner itself was seen to do.
    told = waiter.node.arguments
    process = inspect(lab.pid)
    if engine == "gdb":
        assert len(told["owner_backtrace"]) == len(frames)
    for frame, (address, symbol) in zip(told["owner_backtrace"], frames):
        assert stands_for(frame, address, symbol, process), (frame, hex(address), symbol)
    functions = [frame.partition("+")[0] for frame in told["owner_backtrace"]]
    waits_in = ("virCondWait", "qemuMonitorSend", "virDomainGetBlockInfo")
    assert [name for name in functions if name in waits_in] == [*waits_in]
    assert told["async_owner_backtrace"] == {"unavailable": "no thread holds it (owner is 0)"}
    taken, *_ = [
        span for span in owner.call.nodes() if isinstance(span, Span) and "Job" in span.name
    ]
    assert (taken.returned, taken.arguments["obj"]) == ({"result": 0}, told["obj"])
    assert (taken.arguments["owner"], taken.arguments["owner_since_ms"]) == (0, 0)
    assert (told["owner"], told["owner_api"]) == (taken.tid, owner.call.procedure)
    assert (told["async_owner"], told["async_owner_since_ms"]) == (0, 0)
    assert before_ms <= told["owner_since_ms"] <= after_ms
    # Of the jobs that were begun all but the owner's had ended.
    ended = [event for event in trace.events if event.name.startswith("job.end")]
    assert {event.values["obj"] for event in ended} <= {told["obj"]}
    assert taken.tid not in {event.tid for event in ended if event.t_ns > taken.t_enter_ns}
    shown = " ".join(virtrace("show", str(output)).stdout.split("\n\n")[1].split())
    assert f"for a job that thread {taken.tid} holds, {owner.call.procedure}, since " in shown
    # Below the call that waits.
    below = "".join(f" #{n} {frame}" for n, frame in enumerate(told["owner_backtrace"]))
    words = " ".join(virtrace("show", str(output)).stdout.replace("│", "").split())
    assert f"└─ owner_backtrace on entry{below}" in words


def test_slow(lab: Lab, engine: str, tmp_path: Path) -> None:
    """One client waits for QEMU, another for the job of the first, both as long as is measured."""
    output = tmp_path / "t.jsonl"
    asked = ("domblkinfo vm1 vda", "event vm1 lifecycle")
    with recording(lab, engine, "slow", output, *asked) as running:
        until(output, '"name":"qmp.send","span"')
        began = time.monotonic_ns()
        command = lab.virsh_command("domblkstat", "vm1", "vda")
        waits = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(output, '"owner_api":"remoteDispatchDomainGetBlockInfo"')
        both_wait = time.monotonic_ns()
        wait_until(lambda: time.monotonic_ns() - both_wait > 200_000_000, "a wait to measure")
        least_ns = time.monotonic_ns() - both_wait
    assert waits.wait(SECONDS) == 0
    most_ns = time.monotonic_ns() - began
    # What the first client waits for; it ends the trace.
    for state in ("suspend", "resume"):
        lab.virsh_checked(state, "vm1")
    assert running.wait(SECONDS) == 0
    trace = whole_trace(output)
    assert only_optional_is_missing(trace, "slow")
    told = virtrace("show", "--summary", "--json", str(output)).stdout
    spent = json.loads(told)["time"]
    assert spent["unknown"] is None
    apis = {row["name"]: row for row in spent["apis"]}
    asks, waited = apis["remoteDispatchDomainGetBlockInfo"], apis[LATE]
    assert (asks["lock_ns"] < least_ns < asks["qemu_ns"], asks["count"]) == (True, 1)
    assert waited["qemu_ns"] < least_ns < waited["lock_ns"] < most_ns
    for row in (*spent["all"], *spent["apis"], *spent["domains"], *spent["clients"]):
        assert row["worker_ns"] > 0
        assert row["rest_ns"] > 0
    [domain] = [row for row in spent["domains"] if row["name"] == "vm1"]
    assert domain["lock_ns"] >= waited["lock_ns"]
    [client] = [row for row in spent["clients"] if row["name"] == f"process {waits.pid}"]
    assert client["lock_ns"] == waited["lock_ns"]
    flame = tmp_path / "folded"
    assert main(["export", str(output), "--to", "folded", "-o", str(flame)]) == 0
    stacks = dict(line.rsplit(" ", 1) for line in flame.read_text().splitlines())
    [taken] = [ns for stack, ns in stacks.items() if re.fullmatch(f"{LATE};.*BeginJob.*", stack)]
    assert int(taken) == waited["lock_ns"]


LATE = "remoteDispatchDomainBlockStatsFlags"

# The wire protocol's numbers of REMOTE_PROC_*, which never change.
PROCEDURES = {
    "remoteDispatchConnectOpen": 1,
    "remoteDispatchConnectClose": 2,
    "remoteDispatchDomainLookupByName": 23,
    "remoteDispatchAuthList": 66,
    "remoteDispatchDomainGetBlockInfo": 194,
    "remoteDispatchDomainGetState": 212,
}


def test_rpc(lab: Lab, engine: str, tmp_path: Path) -> None:
    """Of a client whose process id, user and commands are known."""
    asked = ["domblkinfo vm1 vda", "domstate vm1", "domstate no-such-domain"]
    trace, printed, _ = traced(lab, engine, "rpc", tmp_path / "t.jsonl", *asked, by=OWN_PID)
    assert set(levels(trace).values()) in ({"symbol", "usdt"}, {"dwarf", "usdt"})
    found = calls(trace)
    [pid] = [int(line) for line in printed.splitlines() if line.isdigit()]
    for call in found:
        assert call.client is not None
        assert call.client["process-id"] == pid
        assert call.client["unix-user-id"] == os.getuid()
        assert call.client["unix-group-id"] == os.getgid()
        assert call.received is not None
        assert call.received.values["procedure"] == call.root.arguments["procedure"]
        assert call.queued_ns is not None
        assert call.queued_ns > 0
        [reply] = [node.event for node in call.nodes()
                   if isinstance(node, Point) and node.event.name == "rpc.reply"]  # fmt: skip
        assert reply.values["serial"] == call.root.arguments["serial"]
    assert [call.root.arguments["serial"] for call in found] == [*range(len(found))]
    named = {call.procedure: call.root.arguments["procedure"] for call in found}
    assert {name: named.get(name) for name in PROCEDURES} == PROCEDURES
    commands = ("remoteDispatchDomainGetBlockInfo", "remoteDispatchDomainGetState")
    assert [call.procedure for call in found if call.procedure in commands] == [*commands]
    [failed] = [call for call in found if call.failed]
    assert failed.procedure == "remoteDispatchDomainLookupByName"
    [error] = failed.errors()
    assert "no-such-domain" in error.values["message"]
    shown = " ".join(virtrace("show", str(tmp_path / "t.jsonl")).stdout.split())
    assert f" remoteDispatchDomainGetBlockInfo of process {pid} = 0 in " in shown
    summary = virtrace("show", "--summary", "--json", str(tmp_path / "t.jsonl")).stdout
    functions = {row["name"]: row for row in json.loads(summary)["functions"]}
    assert [*functions] == [*dict.fromkeys(call.procedure for call in found)]
    assert functions["remoteDispatchDomainLookupByName"]["errors"] == 1


PIVOT = 2
PULL, COPY, ACTIVE_COMMIT = 1, 2, 4
COMPLETED, CANCELLED, READY = 0, 2, 3


def test_blockjob(lab: Lab, engine: str, tmp_path: Path) -> None:
    """A commit and a copy that are pivoted to, a pull, a copy that is aborted, and nothing."""
    stage = Stage(lab)
    copy = stage.images / "copy.qcow2"
    snapshot = "snapshot-create-as vm2 --disk-only --no-metadata --diskspec vda,file="
    asked = (
        f"{snapshot}{stage.images / 'first.qcow2'}",
        "blockcommit vm2 vda --active --pivot --wait --verbose",
        f"blockcopy vm2 vda {copy} --transient-job --pivot --wait --verbose",
        f"{snapshot}{stage.images / 'second.qcow2'}",
        "blockpull vm2 vda --wait --verbose",
        f"blockcopy vm2 vda {stage.images / 'aborted.qcow2'} --transient-job --wait --verbose",
        *["blockjob vm2 vda --abort"] * 2,
    )
    try:
        image = stage.image("vda.qcow2", 1 << 20, "qcow2")
        stage.start(disk_xml("file", file_source(image), "vda", "type='qcow2'"))
        trace, printed, told = traced(lab, engine, "blockjob", tmp_path / "t.jsonl", *asked)
        assert lab.qmp({"execute": "query-jobs"}, "vm2")["return"] == []
        used = lab.virsh_checked("domblklist", "vm2").split()
        assert str(stage.images / "second.qcow2") in used
    finally:
        stage.clear()
    assert only_optional_is_missing(trace, "blockjob")
    assert printed.count("Successfully pivoted") == 2
    assert printed.count("Pull complete") == 1
    assert printed.count("Now in mirroring phase") == 1
    nodes = [*CallBuilder().everything(trace.events)]
    found = [node for node in nodes if isinstance(node, Call)]
    commit, pivot, copied, pivot_again, pulled, begun, aborted, late = found
    assert all((call.root.arguments["domain"], call.root.arguments["disk"]) == ("vm2", "vda")
               for call in found)  # fmt: skip
    for call in found:
        [driver] = [one for one in call.root.children if isinstance(one, Span)]
        assert driver.name == call.root.name.replace("vir", "qemu", 1)
    assert [call.failed for call in found] == [*[False] * 7, True]
    [error] = late.errors()
    assert f"error: {error.values['message']}\n" in told
    flags = [call.root.arguments["flags"] for call in (pivot, pivot_again, aborted)]
    assert flags == [PIVOT, PIVOT, 0]
    assert str(copy) in copied.root.arguments["destination"]
    points = [event for event in trace.events if event.type == "point"]
    clients = [event.values for event in points if event.name == "blockjob.told"]
    assert {values["disk"] for values in clients} == {"vda"}
    assert [(values["type"], values["status"]) for values in clients] == [
        *((ACTIVE_COMMIT, READY), (ACTIVE_COMMIT, COMPLETED)),
        *((COPY, READY), (COPY, COMPLETED)),
        (PULL, COMPLETED),
        *((COPY, READY), (COPY, CANCELLED)),
    ]
    # Each job that a call began by its command, through all of QEMU's events of it.
    changes: dict[str, list[str]] = {}
    for event in points:
        data = event.values.get("json", {}).get("data", {})
        if event.name == "qmp.event" and event.values["json"]["event"] == "JOB_STATUS_CHANGE":
            changes.setdefault(data["id"], []).append(data["status"])
    begins = ("block-commit", "blockdev-mirror", "block-stream", "blockdev-mirror")
    jobs = []
    for call, command in zip((commit, copied, pulled, begun), begins):
        [sent] = [one for one in exchanges(call) if one.command == command]
        jobs.append(sent.send.values["json"]["arguments"]["job-id"])
    assert len(set(jobs)) == 4
    for job in jobs:
        first, second, *_, last_but_one, last = changes[job]
        assert (first, second, last_but_one, last) == ("created", "running", "concluded", "null")
        assert ("ready" in changes[job]) is (job != jobs[2])


PHASES = ("virDomainMigrateBegin3Params", "virDomainMigratePerform3Params",
          "virDomainMigrateConfirm3Params")  # fmt: skip
# What virsh calls QEMU's figures of a migration.
FIGURES = {"Setup time": "setup-time", "Constant pages": "duplicate", "Normal pages": "normal"}


def figures_of(call: Call) -> dict[str, int]:
    """QEMU's last word on the migration."""
    last = [one for one in exchanges(call) if one.command == "query-migrate"][-1]
    assert last.reply is not None
    told = last.reply.values["json"]["return"]
    assert told["status"] == "completed"
    return {**told, **told["ram"]}


def assert_told_alike(lab: Lab, call: Call) -> None:
    figures = figures_of(call)
    said = printed_fields(lab.virsh_checked("domjobinfo", "vm2", "--completed"))
    assert {name: figures[ours] for name, ours in FIGURES.items()} == {
        name: int(said[name].split()[0]) for name in FIGURES
    }


def test_migration(lab: Lab, engine: str, other_host: Lab, tmp_path: Path) -> None:
    """To another daemon, led by the client; and back, peer to peer."""
    there, back = (f"unix://{one.folder}/run/migration.sock" for one in (other_host, lab))
    lab.define("vm2", tmp_path / "vm2.xml", "")
    try:
        lab.virsh_checked("start", "vm2")
        asked = f"migrate vm2 {other_host.uri} --live --migrateuri {there}"
        trace, _, _ = traced(lab, engine, "migration", tmp_path / "t.jsonl", asked)
        assert lab.virsh_checked("domstate", "vm2").strip() == "shut off"
        assert other_host.virsh_checked("domstate", "vm2").strip() == "running"
        begin, perform, confirm = led = [
            node for node in CallBuilder().everything(trace.events) if isinstance(node, Call)
        ]
        assert_told_alike(lab, perform)

        asked = f"migrate vm2 {lab.uri} --live --p2p --migrateuri {back}"
        returning, _, _ = traced(other_host, engine, "migration", tmp_path / "p2p.jsonl", asked)
        assert lab.virsh_checked("domstate", "vm2").strip() == "running"
        assert_untraced_and_intact(other_host.pid)
        [alone] = [
            node for node in CallBuilder().everything(returning.events) if isinstance(node, Call)
        ]
        assert_told_alike(lab, alone)
    finally:
        lab.virsh("destroy", "vm2")
        lab.virsh_checked("undefine", "vm2")
    for one in (trace, returning):
        assert only_optional_is_missing(one, "migration")
        events = [event.values["json"] for event in one.events if event.name == "qmp.event"]
        states = [each["data"]["status"] for each in events if each["event"] == "MIGRATION"]
        assert (states[0], states[-1]) == ("setup", "completed")
        assert "STOP" in [each["event"] for each in events]
    assert [call.root.name for call in led] == [*PHASES]
    assert all((call.root.arguments["domain"], call.failed, call.complete) == ("vm2", False, True)
               for call in (*led, alone))  # fmt: skip
    assert begin.root.returned is not None
    assert "<name>vm2</name>" in begin.root.returned["result"]
    for call, uri in ((perform, there), (alone, back)):
        assert call.root.arguments["params"]["migrate_uri"] == uri
        assert span(call, "qemuMigrationSrcPerform").returned == {"result": 0}
        assert "migrate" in [one.command for one in exchanges(call)]
    assert alone.root.arguments["destination"] == lab.uri
    assert confirm.root.arguments["cancelled"] == 0
    assert span(confirm, "qemuMigrationSrcConfirm").returned == {"result": 0}
    assert span(confirm, "qemuProcessStop")


FILE, FOLDER = 0, 2


def test_pool_refresh(stock_lab: Lab, engine: str, tmp_path: Path) -> None:
    """Of a folder with two files and a folder, and then of none, which ends the pool."""
    lab, stage = stock_lab, Stage(stock_lab)
    pool, gone = stage.images / "pool", stage.images / "gone"
    try:
        pool.mkdir()
        os.chown(pool, lab.system.uid, lab.system.gid)
        lab.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
        for file in (pool / "a.raw", pool / "b.raw"):
            file.write_bytes(bytes(512))
            file.chmod(0o644)
        (pool / "folder").mkdir(mode=0o755)
        asked = ("pool-refresh pool", "vol-list pool")
        trace, printed, _ = traced(lab, engine, "pool-refresh", tmp_path / "t.jsonl", *asked)
        pool.rename(gone)
        failing, _, told = traced(
            lab, engine, "pool-refresh", tmp_path / "f.jsonl", "pool-refresh pool"
        )
        assert "pool" not in lab.virsh_checked("pool-list", "--all").split()
    finally:
        lab.virsh("pool-destroy", "pool")
        stage.clear()
    assert set(levels(trace).values()) == {"symbol", "inferred"}
    [call] = calls(trace)
    driver = span(call, "storagePoolRefresh")
    for refresh in (call.root, driver):
        assert (refresh.arguments, refresh.returned) == (
            {"pool": "pool", "flags": 0}, {"result": 0}
        )  # fmt: skip
    volumes = [
        node.event.values
        for node in driver.children
        if isinstance(node, Point) and node.event.name == "volume"
    ]
    listed = dict(re.findall(rf"^ (\S+) +({re.escape(str(pool))}/\S+) *$", printed, re.M))
    assert {values["name"]: values["key"] for values in volumes} == listed
    assert {values["name"]: values["type"] for values in volumes} == {
        "a.raw": FILE, "b.raw": FILE, "folder": FOLDER
    }  # fmt: skip
    [call] = calls(failing)
    assert call.failed
    assert span(call, "storagePoolRefresh").failed
    raised, *messages = [node.event for node in call.nodes() if isinstance(node, Point)]
    assert (raised.name, raised.values["errno"]) == ("error.system", errno.ENOENT)
    message = messages[-1].values["message"]
    assert str(pool) in message
    assert f"error: {message}\n" in told


# With debug info, tests/lab/test_resolution.py compares all of them.
CHECKED = [
    *(("stock_lab", name) for name in FOR_LIBVIRT),
    pytest.param("debug_lab", "blockinfo", marks=pytest.mark.matrix),
]


@pytest.mark.parametrize(("where", "name"), CHECKED)
def test_check_says_what_a_trace_would_find(
    request: pytest.FixtureRequest, tmp_path: Path, where: str, name: str
) -> None:
    """The command reads the files without GDB, which the trace is made by."""
    lab: Lab = request.getfixturevalue(where)
    done = virtrace("recipe", "check", name, "-p", str(lab.pid))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"{name}: every probe that is not optional was found\n")
    options = ("-p", str(lab.pid), "--engine", "gdb", "-o", str(tmp_path / "t.jsonl"))
    assert virtrace("record", name, *options, "--", "true").returncode == 0
    for probe in whole_trace(tmp_path / "t.jsonl").header["probes"]:
        line = rf"^ +{re.escape(probe['name'])} +{probe['level']} +\+{probe['offset']}"
        assert bool(re.search(line, done.stdout, re.M)) is (probe["level"] != "missing")
        told = " ".join(done.stdout.split())
        if probe["lacks"]:
            assert f"without {', '.join(probe['lacks'])}" in told


@pytest.mark.parametrize("optional", ["true", "false"])
def test_check_of_a_function_that_is_not_there(lab: Lab, tmp_path: Path, optional: str) -> None:
    file = tmp_path / "r.yaml"
    spans = f"""
  - prototype: int virNoSuchFunction(int a)
    module: libvirt.so.0
    root: true
    optional: {optional}
"""
    file.write_text(f"virtrace: 1\nname: r\nabout: a\ntry: t\nspans:{spans}")
    done = virtrace("recipe", "check", str(file), "-p", str(lab.pid))
    assert done.returncode == (0 if optional == "true" else 1), done.stderr
    assert ("r: not found, and not optional: virNoSuchFunction" in done.stdout) is (
        optional == "false"
    )
    why = "this build of libvirt.so.0 (does not export it|has no such function)"
    assert re.search(why, " ".join(done.stdout.split()))


# By what each version has first: virDomainObjBeginJob came with 8.10, instead of a job of each
# driver's own.
JOB = """
virtrace: 1
name: job
about: Where a job begins.
try: virsh suspend DOMAIN
spans:
  - prototype: int virDomainSuspend(virDomainPtr domain)
    module: libvirt.so.0
    root: true
    enter: {domain: domain->name}
  - name: beginJob
    exit: {result: return}
    any_of:
      - prototype: int virDomainObjBeginJob(virDomainObj *obj, int job)
        module: libvirt.so.0
        enter: {job: job}
      - prototype: int qemuDomainObjBeginJob(virQEMUDriver *driver, virDomainObj *obj, int job)
        module: libvirt_driver_qemu.so
        enter: {job: job}
points:
  - name: sent
    any_of:
      - {usdt: 'libvirt:no_such_probe', module: libvirt_driver_qemu.so, arguments: char *text}
      - usdt: libvirt:qemu_monitor_send_msg
        module: libvirt_driver_qemu.so
        arguments: void *mon, const char *text, int fd
    capture: {text: text}
"""
# VIR_JOB_SUSPEND, and QEMU_JOB_SUSPEND before it.
SUSPEND = 3


def test_alternatives(lab: Lab, engine: str, tmp_path: Path) -> None:
    """One name, whatever function it is here; the header says which, and why no other."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    trace, _, _ = traced(lab, engine, str(file), tmp_path / "t.jsonl", "suspend vm1", "resume vm1")
    [call] = calls(trace)
    job = span(call, "beginJob")
    assert (job.arguments, job.returned) == ({"job": SUSPEND}, {"result": 0})
    [sent] = [node.event for node in call.nodes() if isinstance(node, Point)]
    assert json.loads(sent.values["text"])["execute"] == "stop"
    _, begin, asked = trace.header["probes"]
    taken, why = as_measured(
        {
            (7, 0, 0): (
                "qemuDomainObjBeginJob",
                "not virDomainObjBeginJob: this build of libvirt.so.0 does not export it",
            ),
            (9, 0, 0): ("virDomainObjBeginJob", None),
        },
        lab.libvirt_version,
    )
    assert (begin["taken"], begin["why"]) == (taken, why)
    assert asked["taken"] == "libvirt:qemu_monitor_send_msg"
    assert asked["why"] == (
        "not libvirt:no_such_probe: this build of libvirt_driver_qemu.so has no static probe "
        "libvirt:no_such_probe"
    )
    checked = virtrace("recipe", "check", str(file), "-p", str(lab.pid))
    assert checked.returncode == 0
    assert f"({taken}" in " ".join(checked.stdout.split())


def test_no_alternative_is_there(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("ObjBeginJob", "ObjNoSuchJob"))
    done = virtrace("recipe", "check", str(file), "-p", str(lab.pid))
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "job: not found, and not optional: beginJob" in told
    for name in ("virDomainObjNoSuchJob", "qemuDomainObjNoSuchJob"):
        assert re.search(
            rf"not {name}: this build of [\w.]+ (does not export it|has no such)", told
        )
