"""Redact where something is stored: a path, a URI, or QEMU's other forms."""

from __future__ import annotations

import re

from virtrace.bundle import words
from virtrace.bundle.redact.context import DEEPEST, Context, TextRedactor
from virtrace.bundle.redact.harmless import is_code, is_plain
from virtrace.bundle.redact.json import redact_json
from virtrace.bundle.redact.paths import redact_path, redact_qom
from virtrace.bundle.redact.shapes import QOM, URI
from virtrace.bundle.redact.uri import redact_uri


def redact_place(redactor: TextRedactor, text: str, context: Context) -> str:
    if text.count(":") > DEEPEST:
        return redactor.names.add("path", text)
    if text.startswith(("json:", "{")):
        redacted = redact_json(redactor, text, context)
        if redacted is not None:
            return redacted
    if re.fullmatch(URI, text):
        return redact_uri(redactor, text, context)
    if QOM.fullmatch(text):
        return redact_qom(redactor.names, text)
    if re.fullmatch(r"/[^:]*(?::/[^:]*)+", text):
        return ":".join(redact_path(redactor.names, path) for path in text.split(":"))
    if not is_code(text) and is_plain(text, redactor.names):
        return text
    prefix, colon, rest = text.partition(":")
    if colon and not text.startswith("/") and words.is_name(prefix) and rest:
        # nbd:host:port, rbd:pool/image, fat:rw:/folder.
        return f"{prefix}:{redact_place(redactor, rest, context)}"
    return redact_path(redactor.names, text)
