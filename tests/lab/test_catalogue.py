"""Every shipped recipe but blockinfo, on a real daemon: its values beside a second source's."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import disk_xml, file_source
from virtrace.recipe import catalogue
from virtrace.trace.format import Event
from virtrace.trace.reader import Trace

from .tracing import COUNTERS, DISKS, as_measured, exchanges, span, virtrace, whole_trace

# What virsh calls a counter, where that is not its own name.
VIRSH = {"wr_operations": "wr_req", "rd_operations": "rd_req"}


@pytest.fixture(
    params=["stock_lab", pytest.param("debug_lab", marks=pytest.mark.matrix)],
    ids=["stripped", "debug info"],
)
def lab(request: pytest.FixtureRequest) -> Lab:
    lab: Lab = request.getfixturevalue(request.param)
    return lab


def traced(lab: Lab, recipe: str, output: Path, *virsh: str) -> tuple[Trace, str, str]:
    """What a recipe saw while virsh ran, and what virsh printed as output and as errors."""
    options = ("-p", str(lab.pid), "-o", str(output))
    done = virtrace("record", recipe, *options, "--", *lab.virsh_command("; ".join(virsh)))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    assert trace.footer is not None
    assert (trace.footer["detached"], trace.footer["dropped"]) == (True, 0)
    # What no person could read is no answer: the same trace again, as text and as a page.
    shown = virtrace("show", str(output))
    assert shown.returncode == 0
    assert max(map(len, shown.stdout.splitlines()[:-2])) <= 80, shown.stdout
    page = output.with_suffix(".html")
    assert virtrace("show", str(output), "--html", str(page)).returncode == 0
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
    return missing <= {probe.name for probe in catalogue.find(recipe).probes if probe.optional}


def test_qmp(lab: Lab, tmp_path: Path) -> None:
    """Asked through virsh, so that virsh prints what QEMU said; and an API that asks by itself."""
    asked = {"execute": "query-status"}
    command = f"qemu-monitor-command vm1 '{json.dumps(asked)}'"
    trace, printed, _ = traced(
        lab, "qmp", tmp_path / "t.jsonl", command, "suspend vm1", "resume vm1"
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
        else:
            pending.setdefault(event.tid, []).append(event)
    return found


def test_errors(lab: Lab, tmp_path: Path) -> None:
    """Each beside what virsh was told; the last is one of the system's, of a file that is gone."""
    gone = lab.folder / "gone.raw"
    lab.define("vm2", tmp_path / "vm2.xml", disk_xml("file", file_source(gone), "vda"))
    asked = ["domblkinfo vm1 vdz", "blockresize vm1 vdz 1", "domstate vm1", "start vm2"]
    try:
        trace, _, told = traced(lab, "errors", tmp_path / "t.jsonl", *asked)
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
def test_dominfo(lab: Lab, tmp_path: Path, state: str) -> None:
    guest = "vm1"
    if state == "paused":
        lab.virsh_checked("suspend", guest)
    try:
        trace, printed, _ = traced(lab, "dominfo", tmp_path / "t.jsonl", f"dominfo {guest}")
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


def printed_counters(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"^\w+ (\w+) (\d+)$", text, re.M)}


@pytest.mark.parametrize("disk", DISKS)
def test_blockstats(lab: Lab, tmp_path: Path, disk: str) -> None:
    trace, printed, _ = traced(lab, "blockstats", tmp_path / "t.jsonl", f"domblkstat vm1 {disk}")
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
def test_domstats(lab: Lab, tmp_path: Path, asked: str) -> None:
    """Of a guest that runs and one that does not."""
    lab.define("vm2", tmp_path / "vm2.xml", "")
    try:
        trace, printed, _ = traced(lab, "domstats", tmp_path / "t.jsonl", asked)
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


def test_start_failure(lab: Lab, tmp_path: Path) -> None:
    """One for want of a file, one that QEMU ends by itself, and one that starts."""
    gone = lab.folder / "gone.raw"
    lab.define("vm2", tmp_path / "vm2.xml", disk_xml("file", file_source(gone), "vda"))
    lab.define("vm3", tmp_path / "vm3.xml", "", NO_SUCH_OPTION)
    lab.define("vm4", tmp_path / "vm4.xml", "")
    asked = ["start vm2", "start vm3", "start vm4", "destroy vm4"]
    try:
        trace, _, told = traced(lab, "start-failure", tmp_path / "t.jsonl", *asked)
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
    assert any("no-such-option" in message and f"error: {message}" in told for message in whole)
    if lab.libvirt_version >= (9, 0):
        assert any(str(gone) in message and f"error: {message}" in told for message in whole)


@pytest.mark.parametrize("name", catalogue.shipped())
def test_check_says_what_a_trace_would_find(lab: Lab, tmp_path: Path, name: str) -> None:
    done = virtrace("recipe", "check", name, "-p", str(lab.pid))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"{name}: every probe that is not optional was found\n")
    options = ("-p", str(lab.pid), "-o", str(tmp_path / "t.jsonl"))
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


def test_alternatives(lab: Lab, tmp_path: Path) -> None:
    """One name, whatever function it is here; the header says which, and why no other."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    trace, _, _ = traced(lab, str(file), tmp_path / "t.jsonl", "suspend vm1", "resume vm1")
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
