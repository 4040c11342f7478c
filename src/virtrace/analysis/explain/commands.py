"""What a call asked QEMU for, and how that ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from virtrace.analysis import qmp
from virtrace.analysis.explain.messages import quoted_errors
from virtrace.analysis.explain.model import Fact, Nanoseconds
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence
from virtrace.analysis.spans import Call
from virtrace.trace.format import Event, Json

# Commands that change nothing.
_ASKING = ("query-", "qom-list", "qom-get", "device-list-properties")
_MOST_FACTS = 30


def commands_of(call: Call, *names: str) -> list[Exchange]:
    """Return the commands of a call in order of time; with names, only these."""
    return [
        node
        for node in call.nodes()
        if isinstance(node, Exchange) and node.is_qmp and (not names or node.command in names)
    ]


def arguments_of(exchange: Exchange) -> Mapping[str, Json]:
    """Return the arguments of a command; empty if there are none."""
    return _mapping(exchange.send, "arguments")


def data_of(event: Event | None) -> Mapping[str, Json]:
    """Return the data of an event of QEMU; empty if there is none."""
    return {} if event is None else _mapping(event, "data")


def _mapping(event: Event, key: str) -> Mapping[str, Json]:
    document = event.values.get("json")
    found = document.get(key) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def event_name(event: Event) -> Json:
    """Return QEMU's name of its event."""
    document = event.values.get("json")
    return document.get("event") if isinstance(document, dict) else None


def monitor_of(event: Event) -> str:
    """Return the monitor of a command or an event, as a key."""
    return str(event.values.get("mon"))


def command_facts(call: Call) -> Iterator[Fact]:
    """Yield what QEMU was asked to do, with its answer; questions are left out."""
    told = [
        each
        for each in commands_of(call)
        if each.failed or not (each.command or "").startswith(_ASKING)
    ]
    for each in told[:_MOST_FACTS]:
        ns = each.duration_ns
        error = qmp.error_of(each.reply) if each.reply is not None else None
        took = "no reply" if ns is None else Nanoseconds(ns)
        yield Fact(f"QMP {each.command or '?'}", took, error or "", each.send.seq)
    if len(told) > _MOST_FACTS:
        yield Fact("further QMP commands", len(told) - _MOST_FACTS)


def refusal(call: Call) -> list[Evidence] | None:
    """Return what QEMU and libvirt said where a call failed; None if it did not fail."""
    if not call.failed:
        return None
    said_by_qemu = [
        Evidence(f"QEMU refused {node.command}: {qmp.error_of(node.reply)}", None, node.reply.seq)
        for node in commands_of(call)
        if node.failed and node.reply is not None
    ]
    return [*said_by_qemu, *quoted_errors(call)]


def refused_with(texts: tuple[str, ...], call: Call, error: str | None) -> list[Evidence] | None:
    """Return the same if the message has one of these texts."""
    return refusal(call) if any(text in (error or "") for text in texts) else None
