"""QMP commands and the replies that belong to them.

A command goes out on the thread of the API call, its reply comes in on the thread of the
event loop. The two belong together where monitor and JSON ``id`` agree, and only there.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from virtrace.trace.format import Event, Json

SEND = "qmp.send"
REPLY = "qmp.reply"
EVENT = "qmp.event"


@dataclass
class Exchange:
    """One command, and its reply once it was seen.

    id: None where the command carries none, or its text was not captured whole; such a
    command is never matched.
    """

    send: Event
    command: str | None
    id: str | None
    reply: Event | None = None

    @property
    def t_enter_ns(self) -> int:
        return self.send.t_ns

    @property
    def duration_ns(self) -> int | None:
        return None if self.reply is None else self.reply.t_ns - self.send.t_ns

    @property
    def failed(self) -> bool:
        """QEMU answered with an error."""
        return self.reply is not None and error_of(self.reply) is not None


class Pairing:
    """Matches replies to the commands that wait for one."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Exchange] = {}

    def send(self, event: Event) -> Exchange:
        command = _member(event, "execute")
        exchange = Exchange(event, command if isinstance(command, str) else None, _id(event))
        key = _key(event)
        if key is not None:
            # A monitor freed and made anew can have the address of the old one and counts
            # from 1 again: the older command under this key can no longer be answered.
            self._waiting[key] = exchange
        return exchange

    def reply(self, event: Event) -> Exchange | None:
        """The exchange that this reply completes; None where no waiting command agrees."""
        key = _key(event)
        exchange = self._waiting.pop(key, None) if key is not None else None
        if exchange is not None:
            exchange.reply = event
        return exchange

    def forget(self, exchange: Exchange) -> None:
        """Its call is over: no reply of it is waited for any more."""
        key = _key(exchange.send)
        if key is not None and self._waiting.get(key) is exchange:
            del self._waiting[key]


def error_of(reply: Event) -> str | None:
    """What QEMU said where its reply is an error: ``GenericError: ...``."""
    error = _member(reply, "error")
    return f"{error.get('class')}: {error.get('desc')}" if isinstance(error, dict) else None


def size(text: Json) -> int | None:
    """Bytes of a captured text, also of one that was cut; None where it is unavailable."""
    if isinstance(text, str):
        return len(text.encode("utf-8", "surrogatepass"))
    if isinstance(text, dict):
        length = text.get("length")
        if type(length) is int:
            return length
        encoded = text.get("bytes")
        if isinstance(encoded, str):
            try:
                return len(base64.b64decode(encoded))
            except binascii.Error:
                return None
    return None


def _member(event: Event, key: str) -> Json:
    document = event.values.get("json")
    return document.get(key) if isinstance(document, dict) else None


def _id(event: Event) -> str | None:
    value = _member(event, "id")
    return value if isinstance(value, str) else None


def _key(event: Event) -> tuple[str, str] | None:
    mon, id_ = event.values.get("mon"), _id(event)
    return (mon, id_) if isinstance(mon, str) and id_ is not None else None
