"""Calls over libvirt's socket, by the names that the recipe ``rpc`` gives its points.

A message comes in on the thread of the event loop; a worker takes it up, and that is the traced
call. The two belong together where client, program and serial number agree.
"""

from __future__ import annotations

import json

from virtrace.trace.format import Event, Record

RECEIVED = "rpc.received"
CLIENT = "rpc.client"
PROCEDURE = "rpc.procedure"
DOMAIN = "rpc.domain"
REPLY = "rpc.reply"

# virNetMessageType, virNetMessageStatus (libvirt: src/rpc/virnetprotocol.x).
_CALLS = (0, 4)
ERROR = 1


def is_call(event: Event) -> bool:
    """A message that a worker has to take up: neither keepalive nor data of a stream."""
    return event.name == RECEIVED and event.values.get("type") in _CALLS


def key(values: Record) -> str | None:
    """What a message and the call that it became agree in; None where one of them is not known."""
    agreed = [values.get(name) for name in ("client", "program", "serial")]
    known = isinstance(agreed[0], str) and all(type(value) is int for value in agreed[1:])
    return json.dumps(agreed) if known else None
