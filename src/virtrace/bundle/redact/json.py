"""Redact JSON in a text, as QEMU has it in ``json:`` file names and libvirt in messages."""

from __future__ import annotations

import json
import re

from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.trace.format import Json


def redact_json(redactor: TextRedactor, text: str, context: Context) -> str | None:
    """None if the text is not a JSON object or array."""
    prefix = "json:" if text.startswith("json:") else ""
    try:
        document = json.loads(text[len(prefix) :])
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, (dict, list)):
        return None
    redacted = redactor.value(document, "", context.keys(of_c=False))
    return prefix + formatted_like(text[len(prefix) :], redacted)


def formatted_like(text: str, document: Json) -> str:
    """A document as JSON, with the spaces of the JSON text that it was made from."""
    body = text.strip()
    start = text.index(body)
    separators = (", ", ": ") if re.match(r'[{\[]\s*"[^"]*"(?:: |, )', body) else (",", ":")
    redacted = json.dumps(document, ensure_ascii=False, separators=separators)
    return text[:start] + redacted + text[start + len(body) :]
