"""A trace for OpenTelemetry: OTLP/JSON Lines, as OpenTelemetry's file exporter writes them.

Each line is an ExportTraceServiceRequest: https://opentelemetry.io/docs/specs/otlp/. The names of
attributes are those of OpenTelemetry's semantic conventions, or begin with ``virtrace.``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from hashlib import sha256

from virtrace.analysis.in_qemu import dispatched
from virtrace.analysis.qmp import Exchange, error_of
from virtrace.analysis.spans import Call, Child, Point, Span
from virtrace.analysis.values.meaning import meanings
from virtrace.errors import TraceError
from virtrace.report.highlight import without_surrogates
from virtrace.trace.format import Event, Header, Json, Record, Target
from virtrace.trace.roles import ERROR
from virtrace.trace.target import in_qemu

# Of the conventions from which the names are.
SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

_INTERNAL, _SERVER, _CLIENT = 1, 2, 3
_ERROR_STATUS = 2
# By the output of `uname -m`; that of other processors is written as it is.
_PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "i686": "x86"}
# A line ends with the call that brings it to so many spans.
_SPANS_OF_LINE = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# Of a time in OTLP, ns.
_END_OF_TIME = 1 << 64


def otlp_lines(header: Header, nodes: Iterable[Call | Point | Exchange]) -> Iterator[str]:
    """Yield the requests, one a line. nodes: the calls, and what is outside of them.

    Raises: TraceError if the header does not say when the trace began, or OTLP has no such time.
    """
    encoder = _Encoder(header)
    for node in nodes:
        encoder.add(node)
        if encoder.waiting >= _SPANS_OF_LINE:
            yield encoder.taken()
    if encoder.waiting:
        yield encoder.taken()


@dataclass
class _Process:
    """A traced process, with its spans that are not written yet."""

    resource: Record
    spans: list[Record] = field(default_factory=list)


@dataclass
class _Span:
    """A span as OTLP has it.

    trace, id, parent: hexadecimal digits; parent is "" if it has none.
    tid: of the thread on which it began.
    begin_ns, end_ns: since the start of the trace; the last known time if no end was seen.
    values: of its attributes, by their names.
    problems: what is missing from it, in words.
    events: the points and source lines in it.
    error: None if it has not failed; "" if its error is not known.
    """

    trace: str
    id: str
    parent: str
    name: str
    kind: int
    tid: int
    begin_ns: int
    end_ns: int
    values: Record
    problems: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    error: str | None = None


class _Encoder:
    """Makes spans of nodes, and requests of spans."""

    def __init__(self, header: Header) -> None:
        self._began_ns = _unix_ns(header["started"])
        # The same trace has the same ids again, and another one has others.
        self._file = sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
        version = without_surrogates(header["tool"]["virtrace"])
        self._scope = {"name": "virtrace", "version": version}
        self._daemon = self._qemu = _Process(_resource(header, header["target"]))
        self._in_qemu = in_qemu(header)
        if "qemu" in header:
            self._qemu = _Process(_resource(header, header["qemu"], "qemu"))

    @property
    def waiting(self) -> int:
        """The number of spans that are not taken yet."""
        return sum(len(process.spans) for process in self._processes())

    def taken(self) -> str:
        """Return the request with these spans."""
        request = {
            "resourceSpans": [
                {
                    "resource": process.resource,
                    "scopeSpans": [{"scope": self._scope, "spans": process.spans}],
                    "schemaUrl": SCHEMA,
                }
                for process in self._processes()
                if process.spans
            ]
        }
        line = json.dumps(request, separators=(",", ":"), allow_nan=False)
        for process in self._processes():
            process.spans = []
        return line

    def add(self, node: Call | Point | Exchange) -> None:
        if isinstance(node, Call):
            self._add_call(node)
        elif isinstance(node, Exchange):
            self._add_exchange(node, self._id(16, "outside", node.send.seq), "")
        else:
            self._add_point(node.event)

    def _processes(self) -> Sequence[_Process]:
        return [self._daemon] if self._qemu is self._daemon else [self._daemon, self._qemu]

    def _add_call(self, call: Call) -> None:
        root = call.root
        trace = self._id(16, "call", call.id, root.id, root.tid, root.t_enter_ns)
        commands = {span: exchange.send.seq for span, exchange in dispatched(call).items()}
        sent: dict[int, str] = {}
        rest: list[tuple[Child, str]] = [(root, "")]
        while rest:
            node, parent = rest.pop()
            if isinstance(node, Exchange):
                sent[node.send.seq] = self._add_exchange(node, trace, parent)
            elif isinstance(node, Span):
                # What QEMU does for a command is inside the command, which comes before it.
                command = sent.get(commands.get(node.id, -1))
                span = self._function(node, trace, command or parent)
                if command:
                    span.kind = _SERVER
                if node is root:
                    _complete_root(span, call)
                self._write(span)
                rest += [(child, span.id) for child in reversed(node.children)]

    def _function(self, span: Span, trace: str, parent: str) -> _Span:
        problems = []
        if span.t_exit_ns is None:
            problems.append("its return was not seen" + (f": {span.lost}" if span.lost else ""))
        return _Span(
            trace=trace,
            id=self._id(8, trace, "span", span.id),
            parent=parent,
            name=span.name,
            kind=_INTERNAL,
            tid=span.tid,
            begin_ns=span.t_enter_ns,
            end_ns=_last_seen(span) if span.t_exit_ns is None else span.t_exit_ns,
            values={
                "code.function.name": span.name,
                **_captured("arguments", span.name, span.role, span.arguments),
                **_captured("returned", span.name, span.role, span.returned or {}),
            },
            problems=problems,
            events=[child.event for child in span.children if isinstance(child, Point)],
            error=_message(span.errors()) if span.failed else None,
        )

    def _add_exchange(self, exchange: Exchange, trace: str, parent: str) -> str:
        """Add a request with its reply; return the id of the span."""
        send, reply = exchange.send, exchange.reply
        values = _captured("sent", send.name, send.role, _without_parsed(send))
        name = send.name
        if exchange.is_qmp:
            values["rpc.system.name"] = "qmp"
            name = "QMP command of unknown name"
            if exchange.command is not None:
                values["rpc.method"], name = exchange.command, f"QMP {exchange.command}"
        error = error_of(reply) if reply is not None else None
        if reply is not None:
            values.update(_captured("received", reply.name, reply.role, _without_parsed(reply)))
            values["virtrace.reply.tid"] = reply.tid
        if error is not None:
            values["error.type"] = error.partition(":")[0]
        id_ = self._id(8, trace, "exchange", send.seq)
        self._write(
            _Span(
                trace=trace,
                id=id_,
                parent=parent,
                name=name,
                kind=_CLIENT,
                tid=send.tid,
                begin_ns=send.t_ns,
                end_ns=send.t_ns if reply is None else reply.t_ns,
                values=values,
                problems=["its reply was not seen"] if reply is None else [],
                error=error,
            )
        )
        return id_

    def _add_point(self, event: Event) -> None:
        """Add what happened outside of calls: a span without a length."""
        trace = self._id(16, "outside", event.seq)
        name, values = _event(event)
        self._write(
            _Span(
                trace=trace,
                id=self._id(8, trace, "point", event.seq),
                parent="",
                name=name,
                kind=_INTERNAL,
                tid=event.tid,
                begin_ns=event.t_ns,
                end_ns=event.t_ns,
                values=values,
                error=_message([event]) if event.role == ERROR else None,
            )
        )

    def _write(self, span: _Span) -> None:
        end_ns, problems = span.end_ns, span.problems
        if end_ns < span.begin_ns:
            end_ns, problems = span.begin_ns, [*problems, "it ends before it begins"]
        values = {"thread.id": span.tid, **span.values}
        if problems:
            values["virtrace.problems"] = problems
        record: Record = {"traceId": span.trace, "spanId": span.id}
        if span.parent:
            record["parentSpanId"] = span.parent
        record.update(
            name=without_surrogates(span.name),
            kind=span.kind,
            startTimeUnixNano=self._time(span.begin_ns),
            endTimeUnixNano=self._time(end_ns),
            attributes=_attributes(values),
        )
        if span.events:
            record["events"] = [self._event(event) for event in span.events]
        if span.error is not None:
            message = without_surrogates(span.error)
            record["status"] = {"code": _ERROR_STATUS, "message": message}
        process = self._qemu if span.name in self._in_qemu else self._daemon
        process.spans.append(record)

    def _event(self, event: Event) -> Record:
        name, values = _event(event)
        return {
            "timeUnixNano": self._time(event.t_ns),
            "name": without_surrogates(name),
            "attributes": _attributes({"thread.id": event.tid, **values}),
        }

    def _time(self, t_ns: int) -> str:
        ns = self._began_ns + t_ns
        if ns >= _END_OF_TIME:
            raise TraceError(
                f"a time of this trace is too late for OTLP: {t_ns} ns after its start",
                "take a fresh copy of the trace: virtrace writes no such times",
            )
        return str(ns)

    def _id(self, size: int, *key: str | int | None) -> str:
        """Return an id of so many bytes, which differs from key to key, and is not zero."""
        digest = sha256(json.dumps([self._file, *key]).encode()).digest()
        return f"{int.from_bytes(digest[:size], 'big') | 1:0{2 * size}x}"


def _complete_root(span: _Span, call: Call) -> None:
    """Make the span of a call, which is what a client asked for, of that of its function."""
    span.kind = _SERVER
    if call.id is not None:
        span.values["virtrace.call"] = call.id
    span.problems = call.problems
    if call.received is not None:
        span.events.insert(0, call.received)
    span.error = _message(call.errors() or call.meanwhile) if call.failed else None


def _unix_ns(started: str) -> int:
    """Return a date as ns since 1970."""
    problem = "it has no offset from UTC"
    try:
        date = datetime.fromisoformat(f"{started[:-1]}+00:00" if started[-1:] in "zZ" else started)
        if date.utcoffset() is not None:
            ns = (date - _EPOCH) // timedelta(microseconds=1) * 1000
            if ns >= 0:
                return ns
            problem = "it is before 1970"
    except (ValueError, OverflowError) as error:
        problem = str(error)
    raise TraceError(
        f"the date in the header of this trace is not usable for OTLP: {problem}",
        "export --to chrome, which needs no date",
    )


def _last_seen(span: Span) -> int:
    """Return the last time that is known in a function whose return was not seen."""
    last = span.t_enter_ns
    for node in span.nodes():
        if isinstance(node, Span):
            last = max(last, node.t_enter_ns, node.t_exit_ns or 0)
        elif isinstance(node, Exchange):
            last = max(last, (node.reply or node.send).t_ns)
        else:
            last = max(last, node.event.t_ns)
    return last


def _message(errors: Sequence[Event]) -> str:
    """Return the words of the last error, "" if there are none."""
    message = errors[-1].values.get("message") if errors else None
    return message if isinstance(message, str) else ""


def _event(event: Event) -> tuple[str, Record]:
    """Return the name and the values of a point or a source line."""
    values = _captured("values", event.name, event.role, _without_parsed(event))
    message = event.values.get("message")
    if event.role == ERROR and isinstance(message, str):
        return "exception", {"exception.message": message, "virtrace.point": event.name, **values}
    if event.type == "line":
        return "line", {"code.function.name": event.name, **values}
    return event.name, values


def _without_parsed(event: Event) -> Record:
    """Return the values of an event; of a text that is JSON, the text alone."""
    if not event.has_json:
        return event.values
    return {name: value for name, value in event.values.items() if name != "json"}


def _captured(part: str, name: str, role: str | None, values: Record) -> Record:
    """Return captured values by the names of attributes; the fields of a struct one by one."""
    found: Record = {}
    _flatten(f"virtrace.{part}", values, found)
    for value, words in meanings(name, role, values).items():
        found[f"virtrace.{part}.{value}.words"] = words
    return found


def _flatten(name: str, value: Json, found: Record) -> None:
    if isinstance(value, dict):
        for member, inner in value.items():
            _flatten(f"{name}.{member}", inner, found)
    else:
        found[name] = value


def _resource(header: Header, target: Target, service: str | None = None) -> Record:
    """Return who a process is. service: its name, if that is not the name of its file."""
    host = header["host"]
    file = os.path.basename(target["exe"])
    engine = header["tool"]["engine"]
    values = {
        "service.name": service or file or "unknown_service",
        "service.version": target["program"]["version"],
        "process.pid": target["pid"],
        "process.executable.name": file,
        "process.executable.path": target["exe"],
        "host.arch": _PROCESSORS.get(host["machine"], host["machine"]),
        "os.type": "linux",
        "os.version": host["kernel"],
        "os.description": host["system"],
        "virtrace.program": target["program"]["name"],
        "virtrace.recipe": header["recipe"].get("name"),
        "virtrace.engine": engine["name"],
        "virtrace.engine.version": engine["version"],
        "virtrace.redacted": header.get("redacted"),
    }
    known = {name: value for name, value in values.items() if value is not None}
    return {"attributes": _attributes(known)}


def _attributes(values: Record) -> list[Record]:
    typed = {without_surrogates(name): _any_value(value) for name, value in values.items()}
    return [{"key": name, "value": value} for name, value in typed.items()]


def _any_value(value: Json) -> Record:
    """Return a value with its type. What OTLP has no type for becomes text."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return {"intValue": str(value)}
    if isinstance(value, float) and math.isfinite(value):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": _elements(value)}}
    return {"stringValue": _as_text(value)}


def _elements(values: list[Json]) -> list[Record]:
    """Return the elements of an array, which are of one type: text, if they differ."""
    plain = [_as_text(each) if isinstance(each, (dict, list)) else each for each in values]
    elements = [_any_value(each) for each in plain]
    if len({name for element in elements for name in element}) <= 1:
        return elements
    return [{"stringValue": _as_text(each)} for each in plain]


def _as_text(value: Json) -> str:
    return without_surrogates(value) if isinstance(value, str) else json.dumps(value)
