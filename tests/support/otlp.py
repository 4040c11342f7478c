"""OTLP/JSON Lines, read by OpenTelemetry's own definitions."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NamedTuple

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Placed(NamedTuple):
    """A span, and the attributes of its resource."""

    span: Span
    resource: dict[str, Any]


def decoded(line: str) -> ExportTraceServiceRequest:
    """A line as protobuf reads it, which refuses what the definitions do not have."""
    request = json.loads(line)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                # OTLP has its ids in hexadecimal digits, unlike protobuf's JSON.
                for name, digits in (("traceId", 32), ("spanId", 16), ("parentSpanId", 16)):
                    if name in span:
                        assert re.fullmatch(f"[0-9a-f]{{{digits}}}", span[name])
                        assert int(span[name], 16) != 0
                        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    return json_format.ParseDict(request, ExportTraceServiceRequest())


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(each) for each in value.array_value.values]
    assert kind in ("string_value", "bool_value", "int_value", "double_value"), kind
    return getattr(value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    keys = [pair.key for pair in pairs]
    assert len(set(keys)) == len(keys)
    assert all(isinstance(pair, KeyValue) and pair.key for pair in pairs)
    return {pair.key: plain(pair.value) for pair in pairs}


def spans_of(text: str) -> list[Placed]:
    assert text.endswith("\n")
    return [
        Placed(span, attributes(resource.resource.attributes))
        for line in text.splitlines()
        for resource in decoded(line).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def the(placed: list[Placed], name: str) -> Span:
    (span,) = [each.span for each in placed if each.span.name == name]
    return span
