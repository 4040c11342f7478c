"""Redact the log of a QEMU: libvirt's line at its start, the command line, QEMU's own messages."""

from __future__ import annotations

import re

from virtrace.bundle.redact.command_line import redact_command
from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.shapes import TIME


def redact_log(redactor: TextRedactor, text: str, context: Context) -> str:
    return "\n".join(_redact_line(redactor, line, context) for line in text.split("\n"))


def _redact_line(redactor: TextRedactor, line: str, context: Context) -> str:
    if re.match(rf"{TIME}: starting up libvirt version: ", line):
        before, _, host = line.partition("hostname: ")
        before = redact_prose(redactor, before, context)
        return f"{before}hostname: {redactor.text(host.strip(), 'host', context)}"
    argument = re.fullmatch(r"('?(?:-|[A-Z_]+=|/usr/\S+).*?)( ?\\?)", line)
    if argument and not line.startswith("-machine: "):
        return redact_command(redactor, argument[1], context) + argument[2]
    return redact_prose(redactor, line, context)
