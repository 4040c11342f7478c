"""libvirtd and the QEMU of a guest in one trace, on all releases: from the call to the kernel."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos

from tests.lab.test_explainers import cases_of
from tests.lab.test_qemu import RELEASES, lab_of
from tests.lab.tracing import as_measured
from tests.support.command import virtrace
from tests.support.hanging import qemu_of
from tests.support.intact import assert_untraced_and_intact
from tests.support.otlp import attributes, spans_of
from tests.support.scenarios import assert_answers
from virtrace.analysis.explain.disks import DiskCase
from virtrace.analysis.explain.trace import explain_trace
from virtrace.analysis.lineage import Origin
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Point, Span
from virtrace.errors import BAD_INPUT, DONE
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, backend
from virtrace.trace.reader import Trace, read_trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set uprobes")

BLOCK = 512


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from lab_of(request.param)


@pytest.fixture(scope="module")
def file(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of two calls, about two disks."""
    hmp = f'qemu-io -d {backend(1)} "write {MIB} 64k"'
    lab.virsh_checked("qemu-monitor-command", "vm1", "--hmp", hmp)
    file = tmp_path_factory.mktemp("query") / "t.jsonl"
    virsh = lab.virsh_command()
    both = ["sh", "-c", '"$@" domblkinfo vm1 vdb && "$@" domblkinfo vm1 vdd', "sh", *virsh]
    done = virtrace(
        *("record", "qemu-query", "-p", lab.pid, "--domain", "vm1", "-o", file, "--", *both)
    )
    assert done.returncode == DONE, done.stdout + done.stderr
    assert_untraced_and_intact(qemu_of(lab))
    assert_untraced_and_intact(lab.pid)
    return file


@pytest.fixture(scope="module")
def trace(file: Path) -> Trace:
    trace = read_trace(file)
    assert trace.problems == []
    return trace


def calls_of(trace: Trace) -> list[Call]:
    calls = list(CallBuilder().calls(trace.events))
    assert [(call.root.name, call.complete) for call in calls] == [
        ("virDomainGetBlockInfo", True)
    ] * 2
    return calls


def inside(span: Span, name: str) -> list[Any]:
    """The spans and points of a name."""
    return [
        node if isinstance(node, Span) else node.event
        for node in span.nodes()
        if (isinstance(node, Span) and node.name == name)
        or (isinstance(node, Point) and node.event.name == name)
    ]


def test_each_command_leads_to_its_handler_and_the_system_calls(lab: Lab, trace: Trace) -> None:
    for call in calls_of(trace):
        exchanges = [node for node in call.nodes() if isinstance(node, Exchange)]
        dispatched = inside(call.root, "qemu_qmp_dispatch")
        assert len(exchanges) >= 2
        assert [(each.id, each.command) for each in exchanges] == [
            (span.arguments["id"], span.arguments["command"]) for span in dispatched
        ]
        for exchange, span in zip(exchanges, dispatched):
            assert exchange.reply is not None
            # One clock: QEMU has it behind libvirt, and is done before libvirt has the reply.
            assert exchange.send.t_ns < span.t_enter_ns < span.t_exit_ns < exchange.reply.t_ns
            handler = str(exchange.command).replace("-", "_")
            (handled,) = inside(span, handler)
            answer = exchange.reply.values["json"]["return"]
            if exchange.command == "query-named-block-nodes":
                assert_system_calls(handled, answer)
            elif "query-nodes" in str(exchange.send.values["json"]):
                assert_marks(handled, answer)


def assert_system_calls(handled: Span, answer: list[Any]) -> None:
    """Each image of QEMU's answer has the blocks that the kernel reported."""
    infos = {info.arguments["node"]: info for info in inside(handled, "image_info")}
    checked = 0
    for node in answer:
        statuses = inside(infos[node["node-name"]], "fstat")
        if "backing-image" not in node["image"]:
            (status,) = statuses
            assert status.returned["blocks"] * BLOCK == node["image"]["actual-size"]
            checked += 1
    assert checked >= 4


def assert_marks(handled: Span, answer: list[Any]) -> None:
    marks = {
        event.values["node"]: event.values["highest_offset"]
        for event in inside(handled, "node_statistics")
    }
    for node in answer:
        assert marks[node["node-name"]] == node["stats"]["wr_highest_offset"]
    assert marks


def test_numbers_are_explained_by_what_qemu_read(trace: Trace) -> None:
    found = {
        each.case.block.disk: each
        for each in explain_trace(trace, "trace")
        if isinstance(each.case, DiskCase)
    }
    for disk in ("vdb", "vdd"):
        seen: list[Origin] = [
            step
            for lineage in found[disk].lineages
            for step in lineage.steps()
            if step.kind == "qemu"
        ]
        # libvirt 9.10 and later has one node for a raw disk, and reports no mark of it.
        assert {step.meaning for step in seen} >= {"st_blocks * 512, from QEMU's system call fstat"}
        for step in seen:
            (event,) = [event for event in trace.events if event.seq == step.seq]
            name = str(step.path).removeprefix(".")
            unit = BLOCK if name == "blocks" else 1
            assert event.values[name] * unit == step.value


def test_what_the_numbers_are(lab: Lab, file: Path) -> None:
    written, last = as_measured(
        {
            (7, 0, 0): ("high-water-mark", "high-water-mark"),
            (11, 3, 0): ("no-high-water-mark", "no-high-water-mark"),
        },
        lab.libvirt_version,
    )
    scenarios = {
        "sparse raw, with 64 KiB written at 1 MiB": ("vm1 vdb", written),
        "vdd of vm1: sparse raw, written at its last sector": ("vm1 vdd", last),
    }
    assert_answers(file, cases_of(file), scenarios)


def test_it_is_one_tree_everywhere(file: Path, trace: Trace, tmp_path: Path) -> None:
    shown = virtrace("show", file).stdout
    assert "qemu_qmp_dispatch(" in shown
    assert "fstat(fd=" in shown
    assert (
        f"and QEMU ({trace.header['qemu']['exe']}, pid {trace.header['qemu']['pid']})"
        in " ".join(shown.split())
    )
    page = tmp_path / "page.html"
    assert virtrace("show", "--html", page, file).returncode == DONE
    assert "qemu_qmp_dispatch" in page.read_text()
    chrome = tmp_path / "chrome.json"
    assert virtrace("export", "--to", "chrome", "-o", chrome, file).returncode == DONE
    events = json.loads(chrome.read_text())["traceEvents"]
    by_pid = {
        pid: {event["name"] for event in events if event["pid"] == pid}
        for pid in (trace.header["target"]["pid"], trace.header["qemu"]["pid"])
    }
    daemon, qemu = by_pid.values()
    assert "virDomainGetBlockInfo" in daemon
    assert {"qemu_qmp_dispatch", "query_blockstats", "fstat", "node_statistics"} <= qemu
    # Arrows lead from each command to its reply, by what QEMU does for it.
    assert daemon & qemu == {"process_name", "qmp"}
    begun, passed, ended = (
        [(event["id"], event["pid"]) for event in events if event["ph"] == part] for part in "stf"
    )
    assert [pid for _, pid in begun] == [trace.header["target"]["pid"]] * len(begun)
    assert [pid for _, pid in passed] == [trace.header["qemu"]["pid"]] * len(begun)
    assert [id_ for id_, _ in passed] == [id_ for id_, _ in ended] == [id_ for id_, _ in begun]


def test_it_is_one_trace_for_opentelemetry(file: Path, trace: Trace, tmp_path: Path) -> None:
    exported = tmp_path / "trace.otlp.jsonl"
    assert virtrace("export", "--to", "otlp", "-o", exported, file).returncode == DONE
    placed = spans_of(exported.read_text())
    by_id = {each.span.span_id: each for each in placed}
    commands = [each.span for each in placed if each.span.name.startswith("QMP ")]
    handlers = [each for each in placed if each.span.name == "qemu_qmp_dispatch"]
    assert [each.span.parent_span_id for each in handlers] == [span.span_id for span in commands]
    for span, resource in handlers:
        command = by_id[span.parent_span_id]
        assert resource["service.name"] == "qemu"
        assert resource["process.pid"] == trace.header["qemu"]["pid"]
        assert command.resource["process.pid"] == trace.header["target"]["pid"]
        assert (
            attributes(span.attributes)["virtrace.arguments.command"]
            == (attributes(command.span.attributes)["rpc.method"])
        )
        assert command.span.start_time_unix_nano < span.start_time_unix_nano
        assert span.end_time_unix_nano < command.span.end_time_unix_nano
    (qemu,) = {each.resource["process.pid"] for each in placed if each.span.name == "fstat"}
    assert qemu == trace.header["qemu"]["pid"]
    assert len({each.span.trace_id for each in placed}) == len(calls_of(trace))


def test_it_is_one_tree_in_perfetto(file: Path, trace: Trace, tmp_path: Path) -> None:
    exported = tmp_path / "trace.perfetto"
    assert virtrace("export", "--to", "perfetto", "-o", exported, file).returncode == DONE
    packets = protos.Trace.FromString(exported.read_bytes()).packet
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in packets
        if packet.HasField("track_descriptor")
    }
    daemon, qemu = trace.header["target"], trace.header["qemu"]
    processes = {
        track.process.pid: track.process.process_name
        for track in tracks.values()
        if track.HasField("process")
    }
    assert processes == {daemon["pid"]: daemon["exe"], qemu["pid"]: qemu["exe"]}
    # Each thread is one of its process, as the kernel has it.
    by_pid: dict[int, set[str]] = {daemon["pid"]: set(), qemu["pid"]: set()}
    flows: dict[int, list[tuple[int, str]]] = {}
    for packet in sorted(packets, key=lambda packet: packet.timestamp):
        event = packet.track_event
        if not event.name:
            continue
        track = tracks[event.track_uuid]
        pid = track.thread.pid
        assert tracks[track.parent_uuid].process.pid == pid
        assert Path(f"/proc/{pid}/task/{track.thread.tid}").exists()
        by_pid[pid].add(event.name)
        for flow in (*event.flow_ids, *event.terminating_flow_ids):
            flows.setdefault(flow, []).append((pid, event.name))
    assert "virDomainGetBlockInfo" in by_pid[daemon["pid"]]
    assert {"qemu_qmp_dispatch", "fstat", "node_statistics"} <= by_pid[qemu["pid"]]
    assert by_pid[daemon["pid"]].isdisjoint(by_pid[qemu["pid"]])
    commands = [
        node.command
        for call in calls_of(trace)
        for node in call.nodes()
        if isinstance(node, Exchange)
    ]
    assert list(flows.values()) == [
        [
            (daemon["pid"], f"qmp.send {command}"),
            (qemu["pid"], "qemu_qmp_dispatch"),
            (daemon["pid"], f"qmp.reply {command}"),
        ]
        for command in commands
    ]


def test_commands_of_others_are_left_out(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    command = lab.virsh_command("qemu-monitor-command", "vm1", '{"execute": "query-blockstats"}')
    done = virtrace(
        *("record", "qemu-query", "-p", lab.pid, "--domain", "vm1", "-o", file, "--", *command)
    )
    assert done.returncode == DONE, done.stderr
    trace = read_trace(file)
    assert trace.problems == []
    assert trace.events == []
    assert trace.footer is not None
    assert trace.footer["hits"]["query_blockstats"] == 1


def test_a_guest_has_to_be_named(lab: Lab, tmp_path: Path) -> None:
    done = virtrace("record", "qemu-query", "-p", lab.pid, "-o", tmp_path / "t.jsonl")
    assert done.returncode == BAD_INPUT
    assert "--domain NAME names the guest" in done.stderr
