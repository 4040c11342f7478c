"""Redact JSON in a text, as QEMU has it in ``json:`` file names and libvirt in messages."""

from __future__ import annotations

import json
import re

from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.trace.format import Json

# Objects and arrays in each other, also of texts in texts: Python has no stack for many more.
_MOST_LEVELS = 150


def redact_json(redactor: TextRedactor, text: str, context: Context) -> str | None:
    """None if the text is not a JSON object or array, or has too many levels."""
    prefix = "json:" if text.startswith("json:") else ""
    try:
        document = json.loads(text[len(prefix) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, (dict, list)):
        return None
    inner = context.keys(of_c=False).deeper(_levels(document))
    if inner.depth > _MOST_LEVELS:
        return None
    return prefix + formatted_like(text[len(prefix) :], redactor.value(document, "", inner))


def _levels(document: Json) -> int:
    levels, level = 0, [document]
    while containers := [value for value in level if isinstance(value, (dict, list))]:
        levels += 1
        level = [
            inner
            for outer in containers
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return levels


def formatted_like(text: str, document: Json) -> str:
    """A document as JSON, with the spaces of the JSON text that it was made from."""
    body = text.strip()
    start = text.index(body)
    separators = (", ", ": ") if re.match(r'[{\[]\s*"[^"]*"(?:: |, )', body) else (",", ":")
    redacted = json.dumps(document, ensure_ascii=False, separators=separators)
    return text[:start] + redacted + text[start + len(body) :]
