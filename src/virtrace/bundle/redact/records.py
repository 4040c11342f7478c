"""Redact records of virtrace's own files: what traces and snapshots have in common."""

from __future__ import annotations

import re
from collections.abc import Callable

from virtrace.bundle import words
from virtrace.bundle.redact.captures import POINTER, redact_name
from virtrace.bundle.redact.context import Context
from virtrace.bundle.redact.paths import redact_path
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.texts import Texts
from virtrace.trace.format import Json, Record

OF_C = Context(of_c=True)

Redact = Callable[[Json], Json]


class RecordRedactor:
    """Redacts the fields of a record, each by its kind."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def _fields(self, record: Record, known: dict[str, Redact]) -> Record:
        """Redact each field. known: how, for some; null stays."""
        return {
            self.texts.key(key, OF_C): value
            if key == "type" or value is None
            else known.get(key, self._plain)(value)
            for key, value in record.items()
        }

    def _plain(self, value: Json, context: Context = OF_C) -> Json:
        """Numbers, and virtrace's own words."""
        if isinstance(value, str):
            return redact_prose(self.texts, value, context)
        return self.texts.value(value, "", context)

    def _prose(self, text: str) -> str:
        return redact_prose(self.texts, text, OF_C)

    def _value(self, value: Json, key: str = "") -> Json:
        return self.texts.value(value, key, OF_C)

    def _name(self, name: Json) -> str:
        return redact_name(self.texts.names, name)

    def _path(self, path: Json) -> str:
        return redact_path(self.texts.names, path)

    def _named_version(self, record: Json) -> Json:
        """A program: its name is one of virtrace's own words."""
        return self._fields(record, {"name": self._name})

    def machine(self, host: Record) -> Record:
        """The host, also with versions of what runs there."""
        return self._fields(
            host, {"machine": self._system, "kernel": self._system, "system": self._system}
        )

    def _system(self, value: Json, context: Context = OF_C) -> Json:
        """The name or version of a system: a host can have one that identifies its owner."""
        if not isinstance(value, str):
            return self._plain(value, context)
        return re.sub(
            r"[^\W_][\w.~+]*|[^\x00-\x7f]+",
            lambda match: (
                match[0] if words.is_system(match[0]) else self.texts.unknown(match[0], context)
            ),
            value,
        )

    def _pointer(self, value: Json) -> Json:
        return value if POINTER.fullmatch(str(value)) else self._plain(value)
