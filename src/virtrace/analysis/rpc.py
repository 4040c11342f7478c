"""Calls over libvirt's socket.

A message is received on the thread of the event loop. A worker picks it up and makes the traced
call. Both belong together if client, program and serial number agree.
"""

from __future__ import annotations

import json

from virtrace.trace.format import Event, Record
from virtrace.trace.roles import RPC_RECEIVED

# virNetMessageType, virNetMessageStatus (libvirt: src/rpc/virnetprotocol.x).
_CALLS = (0, 4)
ERROR = 1


def is_call(event: Event) -> bool:
    """Whether a worker must pick up the message: it is neither keepalive nor stream data."""
    return event.role == RPC_RECEIVED and event.values.get("type") in _CALLS


def key(values: Record) -> str | None:
    """Return what a message and its call have in common; None if a part of it is unknown."""
    agreed = [values.get(name) for name in ("client", "program", "serial")]
    known = isinstance(agreed[0], str) and all(type(value) is int for value in agreed[1:])
    return json.dumps(agreed) if known else None


def client_words(identity: Record | None) -> str:
    """Say who a client is. identity: by libvirt's names; None if it is not known."""
    process, user = ((identity or {}).get(name) for name in ("process-id", "user-name"))
    if type(process) is not int:
        return "a client"
    return f"process {process}" + (f" of user {user}" if isinstance(user, str) else "")
