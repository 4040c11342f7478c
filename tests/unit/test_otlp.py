"""``virtrace export --to otlp``: what OpenTelemetry's own definitions read of it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv import schemas
from opentelemetry.semconv._incubating.attributes.host_attributes import HostArchValues

from tests.support import pages, samples
from tests.support.command import virtrace
from tests.support.otlp import Placed, attributes, spans_of, the
from tests.support.paths import DATA, REPOSITORY
from virtrace.analysis.spans import CallBuilder
from virtrace.cli.main import main
from virtrace.errors import BAD_INPUT, DONE, INCOMPLETE
from virtrace.report.otlp import SCHEMA, otlp_lines
from virtrace.trace.format import unavailable
from virtrace.trace.reader import read_trace

TRACES = sorted(
    file
    for file in DATA.rglob("*.jsonl*")
    if file.suffix in (".jsonl", ".gz") and file.parent.name != "kernel-logs"
)


def exported(file: Path, folder: Path, status: int = DONE) -> list[Placed]:
    out = folder / "out.otlp.jsonl"
    out.unlink(missing_ok=True)
    assert main(["export", str(file), "--to", "otlp", "-o", str(out)]) == status
    return spans_of(out.read_text(encoding="ascii"))


def of_records(lines: list[dict[str, Any]], folder: Path, status: int = DONE) -> list[Placed]:
    return exported(samples.write(folder / "t.jsonl", lines), folder, status)


# What `show --json` has of a trace, as spans


class Expected(NamedTuple):
    name: str
    kind: int
    begin_ns: int
    end_ns: int | None
    depth: int
    events: int
    failed: bool | None


def expected_of(node: dict[str, Any], depth: int, failed: bool | None) -> Iterator[Expected]:
    """The spans of a node of the document, parents first."""
    if node["kind"] == "span":
        inside = [child for child in node["children"] if child["kind"] in ("point", "line")]
        kind = Span.SPAN_KIND_INTERNAL if depth else Span.SPAN_KIND_SERVER
        yield Expected(
            *(node["name"], kind, node["t_enter_ns"], node["t_exit_ns"], depth, len(inside)),
            failed,
        )
        for child in node["children"]:
            yield from expected_of(child, depth + 1, None) if child not in inside else ()
    elif node["kind"] in ("qmp", "exchange"):
        name = f"QMP {node['command']}" if node["kind"] == "qmp" else node["name"]
        send, reply = node["send"], node["reply"]
        end = reply["t_ns"] if reply else send["t_ns"]
        is_error = reply is not None and "error" in (reply["values"].get("json") or {})
        yield Expected(name, Span.SPAN_KIND_CLIENT, send["t_ns"], end, depth, 0, is_error)
    else:
        t_ns = node["t_ns"]
        name = "exception" if isinstance(node["values"].get("message"), str) else node["name"]
        yield Expected(name, Span.SPAN_KIND_INTERNAL, t_ns, t_ns, depth, 0, None)


@pytest.mark.parametrize("file", TRACES, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_it_is_what_show_has(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["show", "--json", str(file)])
    document = json.loads(capsys.readouterr().out)
    placed = exported(file, tmp_path, status)
    start = pandas.Timestamp(document["header"]["started"]).value
    traces: dict[bytes, list[Span]] = {}
    for each in placed:
        traces.setdefault(each.span.trace_id, []).append(each.span)
    assert len({each.span.span_id for each in placed}) == len(placed)
    wanted = [list(expected_of(node, 0, None)) for node in document["outside"]]
    for call in document["calls"]:
        first, *rest = expected_of(call["root"], 0, call["failed"])
        wanted.append([first._replace(events=first.events + bool(call["received"])), *rest])
    found = list(traces.values())
    assert len(found) == len(wanted)
    # Neither has all in the order of the file.
    for spans, nodes in zip(
        sorted(found, key=lambda spans: (spans[0].start_time_unix_nano, spans[0].name)),
        sorted(wanted, key=lambda nodes: (nodes[0].begin_ns, nodes[0].name)),
    ):
        assert_same(spans, nodes, start)


def assert_same(spans: list[Span], nodes: list[Expected], start: int) -> None:
    depths: dict[bytes, int] = {b"": -1}
    assert len(spans) == len(nodes)
    for span, node in zip(spans, nodes):
        depths[span.span_id] = depths[span.parent_span_id] + 1
        assert (span.name, span.kind) == (node.name, node.kind)
        assert depths[span.span_id] == node.depth
        assert span.start_time_unix_nano == start + node.begin_ns
        if node.end_ns is not None:
            assert span.end_time_unix_nano == start + node.end_ns
        assert span.end_time_unix_nano >= span.start_time_unix_nano
        assert len(span.events) == node.events
        if node.failed is not None:
            assert span.status.code == (
                Status.STATUS_CODE_ERROR if node.failed else Status.STATUS_CODE_UNSET
            )


# Ids and times


def test_the_ids_are_the_same_again_and_others_in_another_trace(tmp_path: Path) -> None:
    first, again = exported(pages.SAMPLE, tmp_path), exported(pages.SAMPLE, tmp_path)
    assert first == again
    lines = [json.loads(line) for line in pages.SAMPLE.read_text().splitlines()]
    lines[0]["target"]["pid"] += 1
    other = of_records(lines, tmp_path)
    assert len(other) == len(first)
    ids = [
        {id_ for each in placed for id_ in (each.span.trace_id, each.span.span_id)}
        for placed in (first, other)
    ]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("started", "ns"),
    [
        ("1970-01-01T00:00:00+00:00", 0),
        ("1970-01-01T01:00:00.000001+01:00", 1000),
        ("2026-11-22T10:30:00.123456Z", 1795343400123456000),
        ("2026-11-22T05:00:00.123456-05:30", 1795343400123456000),
    ],
)
def test_times(started: str, ns: int, tmp_path: Path) -> None:
    lines = samples.records()
    lines[0]["started"] = started
    span = the(of_records(lines, tmp_path), "virDomainGetBlockInfo")
    assert span.start_time_unix_nano == ns + lines[1]["t_ns"]
    assert span.end_time_unix_nano == ns + lines[-2]["t_ns"]


@pytest.mark.parametrize(
    ("started", "why"),
    [
        ("2026-11-22T10:30:00.123456", "it has no offset from UTC"),
        ("1969-12-31T23:59:59.999999+00:00", "it is before 1970"),
        ("0001-01-01T00:00:00+14:00", "it is before 1970"),
        ("yesterday", "Invalid isoformat string"),
        ("", "Invalid isoformat string"),
        ("Z", "Invalid isoformat string"),
    ],
)
def test_a_date_that_is_none(
    started: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = samples.records()
    lines[0]["started"] = started
    file, out = samples.write(tmp_path / "t.jsonl", lines), tmp_path / "out"
    assert main(["export", str(file), "--to", "otlp", "-o", str(out)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"is not usable for OTLP: {why}" in said
    assert "try: export --to chrome" in said
    assert not out.exists()


def test_a_time_that_otlp_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = samples.records()
    lines[-2]["t_ns"] = 2**64
    file, out = samples.write(tmp_path / "t.jsonl", lines), tmp_path / "out"
    assert main(["export", str(file), "--to", "otlp", "-o", str(out)]) == BAD_INPUT
    assert "too late for OTLP" in capsys.readouterr().err
    assert not out.exists()


def test_an_end_before_the_beginning_is_told(tmp_path: Path) -> None:
    lines = samples.records()
    lines[-2]["t_ns"] = 0
    file = samples.write(tmp_path / "t.jsonl", lines)
    trace = read_trace(file)
    text = "".join(
        f"{line}\n" for line in otlp_lines(trace.header, CallBuilder().calls(trace.events))
    )
    span = the(spans_of(text), "virDomainGetBlockInfo")
    assert span.start_time_unix_nano == span.end_time_unix_nano
    assert "it ends before it begins" in attributes(span.attributes)["virtrace.problems"]


# What a span says


def test_the_resource(tmp_path: Path) -> None:
    resource = of_records(samples.records(), tmp_path)[0].resource
    header = samples.HEADER
    assert resource["service.name"] == "libvirtd"
    assert resource["service.version"] == "9.0.0"
    assert resource["process.pid"] == header["target"]["pid"]
    assert resource["process.executable.path"] == header["target"]["exe"]
    assert resource["host.arch"] == "amd64"
    assert resource["os.version"] == header["host"]["kernel"]
    assert resource["virtrace.recipe"] == "blockinfo"


def test_what_is_not_known_of_the_process_is_left_out(tmp_path: Path) -> None:
    lines = samples.records()
    lines[0]["target"]["program"]["version"] = lines[0]["host"]["system"] = None
    resource = of_records(lines, tmp_path)[0].resource
    assert "service.version" not in resource
    assert "os.description" not in resource


def test_names_are_those_of_the_conventions(tmp_path: Path) -> None:
    assert SCHEMA in {schema.value for schema in schemas.Schemas}
    sources = list(Path(schemas.__file__).parent.rglob("*_attributes.py"))
    known = {
        name
        for file in sources
        for name in re.findall(r'^[A-Z_0-9]+: Final = "(.*)"', file.read_text(), re.MULTILINE)
    }
    used = set()
    errors = samples.records(error="no such disk")
    for placed in (exported(pages.SAMPLE, tmp_path), of_records(errors, tmp_path)):
        for span, resource in placed:
            used |= {*resource, *attributes(span.attributes)}
            used |= {key for event in span.events for key in attributes(event.attributes)}
    ours = {name for name in used if name.startswith("virtrace.")}
    assert used - ours <= known
    assert used - ours > {"service.name", "thread.id", "rpc.method", "exception.message"}
    assert {"amd64", "arm64", "x86"} <= {value.value for value in HostArchValues}


def test_values_have_their_types(tmp_path: Path) -> None:
    lines = samples.records()
    values = {
        "flags": 2**63 - 1,
        "low": -(2**63),
        "large": 2**64 - 1,
        "yes": True,
        "half": 0.5,
        "nothing": None,
        "missing": unavailable("NULL pointer"),
        "cut": {"text": "abc", "length": 300},
        "frames": ["a+0x1", "b+0x2"],
        "sizes": [1, 2],
        "structs": [{"a": 1}, {"a": unavailable("no")}],
        "mixed": [1, "two", None, [3]],
        "none": [],
        "virDomainFlags": {"state": {"deep": "er"}},
    }
    lines[1]["values"] = values
    found = attributes(the(of_records(lines, tmp_path), "virDomainGetBlockInfo").attributes)
    told = {
        name.removeprefix("virtrace.arguments."): value
        for name, value in found.items()
        if name.startswith("virtrace.arguments.") and not name.endswith(".words")
    }
    assert told == {
        "flags": 2**63 - 1,
        "low": -(2**63),
        "large": str(2**64 - 1),
        "yes": True,
        "half": 0.5,
        "nothing": "null",
        "missing.unavailable": "NULL pointer",
        "cut.text": "abc",
        "cut.length": 300,
        "frames": ["a+0x1", "b+0x2"],
        "sizes": [1, 2],
        "structs": ['{"a": 1}', '{"a": {"unavailable": "no"}}'],
        "mixed": ["1", "two", "null", "[3]"],
        "none": [],
        "virDomainFlags.state.deep": "er",
    }
    assert type(told["yes"]) is bool


def test_a_command_with_its_texts(tmp_path: Path) -> None:
    lines = samples.records()
    span = the(of_records(lines, tmp_path), "QMP query-blockstats")
    (sent,) = [line for line in lines if line.get("name") == "qmp.send"]
    (reply,) = [line for line in lines if line.get("name") == "qmp.reply"]
    found = attributes(span.attributes)
    assert found["virtrace.sent.text"] == sent["values"]["text"]
    assert found["virtrace.received.text"] == reply["values"]["text"]
    assert (found["rpc.system.name"], found["rpc.method"]) == ("qmp", "query-blockstats")
    assert (found["thread.id"], found["virtrace.reply.tid"]) == (77, 99)
    assert not any(".json" in name for name in found)


def test_a_failed_call(tmp_path: Path) -> None:
    placed = of_records(samples.records(error="no such disk"), tmp_path)
    root, inner = (
        the(placed, name) for name in ("virDomainGetBlockInfo", "qemuDomainGetBlockInfo")
    )
    for span in (root, inner):
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert span.status.message == "no such disk"
    assert not root.events
    (event,) = inner.events
    assert event.name == "exception"
    found = attributes(event.attributes)
    assert found["exception.message"] == found["virtrace.values.message"] == "no such disk"
    assert (found["virtrace.point"], found["virtrace.values.code"]) == ("error", 8)
    assert root.start_time_unix_nano < event.time_unix_nano < root.end_time_unix_nano


def test_an_error_of_qemu(tmp_path: Path) -> None:
    lines = samples.records()
    (reply,) = [line for line in lines if line.get("name") == "qmp.reply"]
    text = {"id": "libvirt-12", "error": {"class": "DeviceNotFound", "desc": "no vda"}}
    reply["values"]["text"] = json.dumps(text)
    reply["values"].pop("json", None)
    span = the(of_records(lines, tmp_path), "QMP query-blockstats")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "DeviceNotFound: no vda"
    assert attributes(span.attributes)["error.type"] == "DeviceNotFound"


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    lines = samples.records()
    for line in lines[1:-1]:
        if (line["type"], line["name"]) == ("exit", "qemuDomainBlocksStatsGather"):
            line.update(type="lost", values={"why": "its thread ended"})
    del lines[[line.get("name") for line in lines].index("qmp.reply")]
    del lines[-2]
    lines[-1]["events"] -= 2
    placed = of_records(lines, tmp_path)
    names = ("virDomainGetBlockInfo", "qemuDomainBlocksStatsGather", "QMP query-blockstats")
    root, lost, command = (the(placed, name) for name in names)
    problems = [attributes(span.attributes)["virtrace.problems"] for span in (root, lost, command)]
    assert problems[1:] == [
        ["its return was not seen: its thread ended"],
        ["its reply was not seen"],
    ]
    assert "the return of virDomainGetBlockInfo was not seen" in problems[0]
    last = max(line["t_ns"] for line in lines[1:-1] if line["type"] == "exit")
    assert root.end_time_unix_nano - root.start_time_unix_nano == last - lines[1]["t_ns"]
    assert command.end_time_unix_nano == command.start_time_unix_nano
    complete = the(placed, "qemuDomainGetBlockInfo")
    assert "virtrace.problems" not in attributes(complete.attributes)


def test_outside_of_calls(tmp_path: Path) -> None:
    lines = samples.records(error="no such disk")
    alone = [line for line in lines[1:-1] if line["name"] == "error"]
    alone[0].update(parent=None, call=None, seq=0)
    (placed,) = of_records([lines[0], *alone, {**lines[-1], "events": 1}], tmp_path)
    assert placed.span.name == "exception"
    assert placed.span.start_time_unix_nano == placed.span.end_time_unix_nano
    assert placed.span.status.message == "no such disk"


# libvirt and QEMU in one trace


def joined() -> list[dict[str, Any]]:
    """A call whose command QEMU was seen to answer, and one that it began for another client."""
    lines = samples.records()
    header, *events, footer = lines
    names = ("qemu_qmp_dispatch", "query_blockstats", "node_statistics")
    header["qemu"] = {
        "pid": 4321,
        "exe": "/usr/bin/qemu-system-x86_64",
        "program": {"name": "qemu", "version": "7.2.0"},
        "modules": [],
        "probes": list(names),
    }
    for name in names:
        header["probes"].append({**header["probes"][0], "name": name, "role": None})
    at = [event["name"] for event in events].index("qmp.send") + 1
    place = {"parent": events[at - 1]["parent"], "call": 1, "tid": 4400}

    def event(type_: str, name: str, **rest: Any) -> dict[str, Any]:
        t_ns = events[at - 1]["t_ns"] + 1000 * (len(added) + 1)
        return {"type": type_, "seq": 0, "t_ns": t_ns, "name": name, "span": None, **place, **rest}

    added: list[dict[str, Any]] = []
    for span, id_ in ((101, "libvirt-12"), (103, "libvirt-99")):
        told = {"id": id_, "command": "query-blockstats"}
        below = {"parent": span}
        for more in (
            ("enter", names[0], {"span": span, "values": told}),
            ("enter", names[1], {"span": span + 1, "values": {}, **below}),
            ("point", names[2], {"parent": span + 1, "values": {"node": "n", "offset": 5}}),
            ("exit", names[1], {"span": span + 1, "values": {}, **below}),
            ("exit", names[0], {"span": span, "values": {}}),
        ):
            added.append(event(more[0], more[1], **more[2]))
    events[at:at] = added
    for seq, each in enumerate(events):
        each["seq"] = seq
        if "answers" in each:
            each["answers"] = at - 1
    return [header, *events, {**footer, "events": len(events)}]


def test_what_qemu_does_is_inside_the_command(tmp_path: Path) -> None:
    placed = of_records(joined(), tmp_path)
    by_service = {
        service: [each for each in placed if each.resource["service.name"] == service]
        for service in ("libvirtd", "qemu")
    }
    assert len(by_service["libvirtd"]) + len(by_service["qemu"]) == len(placed)
    resource = by_service["qemu"][0].resource
    assert (resource["process.pid"], resource["service.version"]) == (4321, "7.2.0")
    command = the(placed, "QMP query-blockstats")
    caller = the(placed, "qemuMonitorJSONQueryBlockstats")
    mine, other = [span for span, _ in placed if span.name == "qemu_qmp_dispatch"]
    assert mine.parent_span_id == command.span_id
    assert mine.kind == Span.SPAN_KIND_SERVER
    # Not of this command: it stays where it was seen.
    assert other.parent_span_id == caller.span_id
    assert other.kind == Span.SPAN_KIND_INTERNAL
    assert {span.trace_id for span, _ in placed} == {command.trace_id}
    inner = [span for span, _ in by_service["qemu"] if span.name == "query_blockstats"]
    assert [span.parent_span_id for span in inner] == [mine.span_id, other.span_id]
    for span in inner:
        (event,) = span.events
        assert event.name == "node_statistics"
        assert attributes(event.attributes)["thread.id"] == 4400


def test_no_span_is_its_own_ancestor(tmp_path: Path) -> None:
    """QEMU's function is said to contain the very command that it is for."""
    lines = joined()
    (send,) = [line for line in lines if line.get("name") == "qmp.send"]
    position = lines.index(send)
    lines[position : position + 2] = [lines[position + 1], {**send, "parent": 101}]
    for seq, line in enumerate(lines[1:-1]):
        line["seq"], line["t_ns"] = seq, 1000 * seq
    parents = {span.span_id: span.parent_span_id for span, _ in of_records(lines, tmp_path)}
    for span_id in parents:
        seen = set()
        while span_id:
            assert span_id not in seen
            seen.add(span_id)
            span_id = parents[span_id]


# Texts of strangers


def test_hostile_text_is_text(tmp_path: Path) -> None:
    file = pages.hostile_trace(tmp_path / "hostile.jsonl")
    header, rest = file.read_text().split("\n", 1)
    document = {**json.loads(header), "started": samples.HEADER["started"]}
    file.write_text(f"{json.dumps(document)}\n{rest}")
    placed = exported(file, tmp_path, INCOMPLETE)
    written = pages.HOSTILE.encode("utf-8", "backslashreplace").decode()
    found = attributes(placed[0].span.attributes)
    assert found["virtrace.arguments.disk"] == written
    assert placed[0].resource["service.version"] == written
    assert any(span.status.message == written for span, _ in placed)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(values=st.dictionaries(st.text(st.characters(exclude_categories=())), JSON, max_size=4))
def test_any_value_is_read_back(values: dict[str, Any]) -> None:
    recorder = samples.Recorder()
    samples.blockinfo(recorder)
    first, *rest = recorder.events
    (call,) = CallBuilder().calls([first._replace(values=values), *rest])
    text = "".join(f"{line}\n" for line in otlp_lines(samples.HEADER, [call]))
    found = attributes(the(spans_of(text), "virDomainGetBlockInfo").attributes)
    for name, value in values.items():
        key = f"virtrace.arguments.{name}".encode("utf-8", "backslashreplace").decode()
        if isinstance(value, (bool, str)) or (
            isinstance(value, (int, float)) and -(2**63) <= value < 2**63
        ):
            told = value
            if isinstance(value, str):
                told = value.encode("utf-8", "backslashreplace").decode()
            assert type(found[key]) is type(told)
            assert found[key] == told
        elif isinstance(value, float):
            assert math.isnan(value) or not -(2**63) <= value < 2**63
            assert float(found[key]) == value or math.isnan(value)


def test_a_bundle_has_pseudonyms(tmp_path: Path) -> None:
    lines = samples.records(error="disk of secret-guest")
    lines[1]["values"]["domain"] = lines[2]["values"]["domain"] = "secret-guest"
    file, bundle = samples.write(tmp_path / "t.jsonl", lines), tmp_path / "b.tar.gz"
    assert main(["bundle", str(file), "-o", str(bundle)]) == DONE
    placed = exported(bundle, tmp_path)
    assert "secret-guest" not in str(placed)
    root = the(placed, "virDomainGetBlockInfo")
    assert attributes(root.attributes)["virtrace.arguments.domain"] == "domain-1"
    assert placed[0].resource["virtrace.redacted"] == []


# The command of the documentation


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_documented_command_brings_each_line_to_a_receiver(tmp_path: Path) -> None:
    received: list[tuple[str, str | None, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    page = (REPOSITORY / "docs/reading.md").read_text()
    (block,) = re.findall(r"(?m)^    while .*\n(?:^    .*\n)*", page)
    file = tmp_path / "trace.otlp.jsonl"
    done = virtrace("export", pages.SAMPLE, "--to", "otlp", "-o", file)
    assert done.returncode == DONE
    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            command = block.replace(":4318/", f":{server.server_port}/")
            assert command != block
            subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=60)
        finally:
            server.shutdown()
            thread.join()
    assert [body for _, _, body in received] == file.read_text().splitlines()
    assert {(path, kind) for path, kind, _ in received} == {("/v1/traces", "application/json")}
