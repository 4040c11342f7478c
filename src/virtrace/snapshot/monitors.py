"""Connections to QEMU and to guest agents, and what was asked over them."""

from __future__ import annotations

import json

from virtrace.snapshot.model import Command, Monitor
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek, is_pointer

_FIRST, _WORDS = 8, 45
# qemuMonitorMessage (src/qemu/qemu_monitor.h) begins with a descriptor, qemuAgentMessage
# (qemu_agent.c) with the text. Behind the text: how much of it was written, and its length.
_TEXTS = (8, 0)
_LONGEST = 1 << 16
# The agent's parser is reset by these in front of a command.
_RESET = "\n\r\xff"


def monitor_at(peek: Peek, objects: Objects, kind: str, address: int) -> Monitor:
    """Return a monitor. kind: ``qemuMonitor`` or ``qemuAgent``, the type of the object."""
    domain, command, message = None, None, None
    for word in peek.words(address, _WORDS)[_FIRST:]:
        if not is_pointer(word):
            continue
        if domain is None and objects.type_of(word) == "virDomainObj":
            domain = word
        elif command is None:
            command = _command_at(peek, word)
            message = None if command is None else word
    return Monitor(kind, address, domain, command, message)


def _command_at(peek: Peek, address: int) -> Command | None:
    """Return the command of a message: its text is JSON, and as long as the message says."""
    for at in _TEXTS:
        pointer = peek.word(address + at)
        text = peek.text(pointer, _LONGEST) if is_pointer(pointer, 1) else None
        if text is None or not text.lstrip(_RESET).startswith('{"exec'):
            continue
        written = peek.number(address + at + 8, 4, signed=True)
        length = peek.number(address + at + 12, 4, signed=True)
        if length == len(text.encode()) and written is not None and 0 <= written <= length:
            return _parsed(text.strip(_RESET), is_sent=written == length)
    return None


def _parsed(text: str, *, is_sent: bool) -> Command:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = {}
    name = said.get("execute", said.get("exec-oob")) if isinstance(said, dict) else None
    number = said.get("id") if isinstance(said, dict) else None
    return Command(
        text,
        name if isinstance(name, str) else None,
        number if isinstance(number, str) else None,
        is_sent,
    )
