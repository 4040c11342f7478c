"""Requests and their replies: QMP commands, and the request and reply points of any recipe.

A QMP command is sent on the thread of the API call, and its reply is received on the thread of the
event loop. The event of the reply says which request it answers.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from virtrace.trace.format import Event, Json
from virtrace.trace.roles import QMP_COMMAND


@dataclass
class Exchange:
    """A request, and its reply once it was seen."""

    send: Event
    reply: Event | None = None

    @property
    def is_qmp(self) -> bool:
        return self.send.role == QMP_COMMAND

    @property
    def command(self) -> str | None:
        """The QMP command, or the name of the request; None if the text was not captured whole."""
        command = _member(self.send, "execute") if self.is_qmp else self.send.name
        return command if isinstance(command, str) else None

    @property
    def id(self) -> str | None:
        """The id of a QMP command; None if it has none, or its text was not captured whole."""
        id_ = _member(self.send, "id") if self.is_qmp else None
        return id_ if isinstance(id_, str) else None

    @property
    def is_awaited(self) -> bool:
        """Whether its reply was not seen, and would have been recognized."""
        return self.reply is None and not (self.is_qmp and self.id is None)

    @property
    def t_enter_ns(self) -> int:
        return self.send.t_ns

    @property
    def duration_ns(self) -> int | None:
        return None if self.reply is None else self.reply.t_ns - self.send.t_ns

    @property
    def failed(self) -> bool:
        """Whether QEMU answered with an error."""
        return self.reply is not None and error_of(self.reply) is not None


def error_of(reply: Event) -> str | None:
    """Return QEMU's words if its reply is an error: ``GenericError: ...``."""
    error = _member(reply, "error")
    return f"{error.get('class')}: {error.get('desc')}" if isinstance(error, dict) else None


def size(text: Json) -> int | None:
    """Return the bytes of a captured text, also of one that was cut; None if it is unavailable."""
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
