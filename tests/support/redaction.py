"""Redact a text by itself, in the two passes that a bundle takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from virtrace.bundle.pseudonyms import Originals, Pseudonyms
from virtrace.bundle.redact.command_line import redact_command
from virtrace.bundle.redact.config import redact_settings
from virtrace.bundle.redact.context import Context
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.qemu_log import redact_log
from virtrace.bundle.redact.texts import Texts
from virtrace.bundle.redact.xml import redact_domain

Result = TypeVar("Result")

CONTEXT = Context()
READERS: dict[str, Callable[[Texts, str], str]] = {
    "prose": lambda texts, text: redact_prose(texts, text, CONTEXT),
    "code": lambda texts, text: redact_prose(texts, text, CONTEXT, code=True),
    "key": lambda texts, text: texts.key(text, CONTEXT),
    "xml": lambda texts, text: redact_domain(texts, text, CONTEXT),
    "log": lambda texts, text: redact_log(texts, text, CONTEXT),
    "command": lambda texts, text: redact_command(texts, text, CONTEXT),
    "settings": lambda texts, text: "\n".join(redact_settings(texts, text, CONTEXT)),
}


def in_two_passes(redact: Callable[[Texts], Result]) -> Result:
    """The result of the second pass."""
    originals = Originals()
    redact(Texts(originals))
    return redact(Texts(Pseudonyms(originals)))


def redacted(text: str, *, reader: str = "", key: str = "") -> str:
    """reader: one of READERS; without it, a text that is called `key`."""
    if reader:
        return in_two_passes(lambda texts: READERS[reader](texts, text))
    return in_two_passes(lambda texts: texts.text(text, key, CONTEXT))
