"""Redact configuration files of libvirt's daemons."""

from __future__ import annotations

import re
from collections.abc import Iterator

from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.bundle.redact.harmless import is_quantity
from virtrace.bundle.redact.kinds import kind_of_key

# A comment, a string, or a mark; a string in three quotes goes over lines (virconf.c of libvirt).
_TOKEN = re.compile(
    r"""\#[^\n]*|\"{3}(?s:.*?)(?:\"{3}|\Z)|"[^"\n]*"|'[^'\n]*'|\n|[\[\]=,]|[^\S\n]+"""
    r"""|[^\s\[\]=,"'\#]+|["']"""
)


def redact_settings(redactor: TextRedactor, text: str, context: Context) -> Iterator[str]:
    """The settings in a file, one a line, without comments."""
    entry: list[str] = []
    depth = 0
    for token in (*_TOKEN.findall(text), "\n"):
        depth += (token == "[") - (token == "]")
        if token == "\n" and depth <= 0:
            if entry:
                yield _redact_entry(redactor, entry, context)
            entry, depth = [], 0
        elif not token.isspace() and token[0] != "#":
            entry.append(token)


def _redact_entry(redactor: TextRedactor, entry: list[str], context: Context) -> str:
    if entry[1:2] != ["="]:
        return redactor.names.add("text", " ".join(entry))
    key, _, *value = entry
    context = context.keys(of_c=False)
    redacted = "".join(_redact_token(redactor, token, key, context) for token in value)
    return f"{redactor.key(key, context)} = {redacted}"


def _redact_token(redactor: TextRedactor, token: str, key: str, context: Context) -> str:
    if token in ("[", "]", ","):
        return {",": ", "}.get(token, token)
    is_number = re.fullmatch("[-+]?[0-9]{1,18}", token) and kind_of_key(key) not in KINDS
    if is_number and (len(token) < 7 or is_quantity(key)):
        return str(redactor.value(int(token), key, context))
    marks = 3 if token.startswith('"""') else 1 if token[0] in "\"'" else 0
    return f'"{redactor.text(token[marks : len(token) - marks], key, context)}"'
