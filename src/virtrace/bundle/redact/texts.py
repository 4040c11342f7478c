"""Redact any text or JSON value: by its key, its structure, its form, its words."""

from __future__ import annotations

import re

from virtrace.bundle import words
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact.command_line import redact_arguments, redact_command
from virtrace.bundle.redact.context import DEEPEST, Context, Names
from virtrace.bundle.redact.harmless import is_compound, is_plain, is_quantity
from virtrace.bundle.redact.json import redact_json
from virtrace.bundle.redact.kinds import (
    EVERYWHERE,
    LISTS,
    NAMES,
    PASSWORD,
    SHAPED,
    kind_of_key,
    pseudonym_kind,
)
from virtrace.bundle.redact.places import redact_place
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.shapes import (
    CODE,
    FLAGS,
    IDENTIFIER,
    KEY,
    LOOPBACK,
    TARGET,
    URI,
    shapes,
)
from virtrace.bundle.redact.uri import redact_uri
from virtrace.bundle.redact.xml import redact_xml
from virtrace.trace.format import Json, Record, is_unavailable, unavailable

# A trace has few distinct texts, apart from ids and pointers.
_MOST_CACHED = 20_000
# The keys of a text that is cut short or is not UTF-8, in the trace.
_CUT = frozenset({"text", "bytes", "length"})
# Smaller numbers are neither passwords nor WWNs.
_LARGE = 1 << 24


class Texts:
    """Redacts texts with one set of names; equal texts at equal places give equal results."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._texts: dict[tuple[str, str, bool], str] = {}
        self._keys: dict[tuple[str, bool], str] = {}

    # JSON values

    def value(self, value: Json, key: str, context: Context) -> Json:
        if isinstance(value, str):
            return self._texts.get((value, key, context.of_c)) or self.text(value, key, context)
        if isinstance(value, dict):
            return self._object(value, key, context)
        if isinstance(value, list):
            kind = LISTS.get(key)
            if kind is not None:
                return [self._named(item, kind, context) for item in value]
            return [self.value(item, key, context) for item in value]
        if type(value) is int and value >= _LARGE:
            self.names.number(value)
            if kind_of_key(key) in ("serial", "secret"):
                # A WWN is a number to QEMU.
                return self.names.add(pseudonym_kind(key), str(value))
        if type(value) is int and PASSWORD.search(key.lower()):
            return self.names.add("secret", str(value))
        return value

    def _object(self, value: Record, key: str, context: Context) -> Json:
        if is_unavailable(value):
            return unavailable(redact_prose(self, str(value["unavailable"]), context))
        if ("bytes" in value or "length" in value) and not value.keys() - _CUT:
            return self._cut(value, key)
        # `block.0.path` is a path, `file.filename` the name of a file.
        return {
            self.key(name, context): self.value(item, name.rpartition(".")[2], context)
            for name, item in value.items()
        }

    def _named(self, value: Json, kind: str, context: Context) -> Json:
        """An item of a list whose items have names."""
        if not isinstance(value, dict):
            return self.value(value, kind, context)
        return {
            self.key(name, context): self.value(
                item, kind if name in ("name", "tag") else name, context
            )
            for name, item in value.items()
        }

    def _cut(self, value: Record, key: str) -> Json:
        """The beginning of a text, or bytes: unreadable, but equal ones stay equal."""
        kind = pseudonym_kind(key)
        if isinstance(value.get("text"), str):
            return {**value, "text": self.names.add(kind, value["text"])}
        pseudonym = self.names.add(kind, str(value.get("bytes")))
        return {"text": pseudonym, "length": value["length"]} if "length" in value else pseudonym

    def key(self, key: str, context: Context) -> str:
        redacted = self._keys.get((key, context.of_c))
        if redacted is None:
            is_known = KEY.fullmatch(key) and (
                context.of_c or words.is_name(key) or is_compound(key)
            )
            redacted = self.names.replace(key) if is_known else self.names.add("text", key)
            self._keys[key, context.of_c] = redacted
        return redacted

    # Texts

    def text(self, text: str, key: str, context: Context) -> str:
        redacted = self._texts.get((text, key, context.of_c))
        if redacted is None:
            redacted = self._text(text, key, context.deeper())
            if len(self._texts) >= _MOST_CACHED:
                self._texts.clear()
            self._texts[text, key, context.of_c] = redacted
        return redacted

    def _text(self, text: str, key: str, context: Context) -> str:
        if not text.strip():
            return text
        if context.depth > DEEPEST:
            return self.names.add("text", text)
        return self.typed(text, kind_of_key(key) or key, context)

    def typed(self, text: str, kind: str, context: Context) -> str:
        if text in FLAGS and kind not in NAMES:
            return text
        if kind == "path":
            return redact_place(self, text, context)
        if kind not in KINDS:
            return self._read_as(text, kind, context)
        if kind == "volume" and "/" in text and not text.startswith("/"):
            pool, _, volume = text.partition("/")
            return f"{self.names.add('pool', pool)}/{self.names.add('volume', volume)}"
        shaped = self._shaped(text, context) if kind not in NAMES or kind in SHAPED else None
        if shaped is not None:
            return shaped
        if text in EVERYWHERE.get(kind, ()):
            return text
        if kind in ("host", "ip") and LOOPBACK.fullmatch(text):
            return text
        return self.names.add(kind, text)

    def _read_as(self, text: str, kind: str, context: Context) -> str:
        """kind: one of READ_AS, or a key that says nothing."""
        if kind == "message":
            redacted = redact_json(self, text, context) if text[0] in "{[" else None
            return redacted or redact_prose(self, text, context)
        if kind == "command":
            return redact_command(self, text, context)
        if kind == "argument":
            return redact_arguments(self, [text], context, strict=False)[0]
        if kind in ("name", "id") or (kind == "place" and "/" not in text):
            return self.name(text, context)
        if kind == "code":
            is_name = context.of_c and IDENTIFIER.fullmatch(text)
            return text if is_name else self._untyped(text, "", context)
        if kind == "source" and context.of_c and CODE.fullmatch(text):
            return text
        if kind == "disk" and TARGET.fullmatch(text):
            return text
        if kind == "disk":
            return self._shaped(text, context) or redact_place(self, text, context)
        if kind in ("place", "source"):
            return redact_place(self, text, context)
        return self._untyped(text, kind, context)

    def _untyped(self, text: str, key: str, context: Context) -> str:
        structured = self.structured(text, context) or self._shaped(text, context)
        if structured is not None:
            return structured
        if words.is_name(text) or len(text) == 1:
            return text
        if is_plain(text, self.names) or (text.isdecimal() and is_quantity(key)):
            return text
        prefixed = re.fullmatch(r"(unix|file|pipe|tcp|udp|telnet):(/.*)", text)
        if prefixed:
            return f"{prefixed[1]}:{redact_place(self, prefixed[2], context)}"
        known = self.names.known(text)
        if known is not None:
            return known
        if " " in text or next(shapes(text), None):
            return redact_prose(self, text, context)
        return self.names.add("text", text)

    def name(self, text: str, context: Context) -> str:
        known = self.names.known(text)
        return known if known is not None else self._untyped(text, "", context)

    def unknown(self, text: str, context: Context) -> str:
        known = self.names.known(text)
        if known is not None:
            return known
        structured = self.structured(text, context) or self._shaped(text, context)
        if structured is not None:
            return structured
        return text if is_plain(text, self.names) else self.names.add("text", text)

    def structured(self, text: str, context: Context) -> str | None:
        if text.startswith(("json:", "{", "[")):
            return redact_json(self, text, context)
        if text.startswith("<"):
            return redact_xml(self, text, context)
        if re.fullmatch(URI, text):
            return redact_uri(self, text, context)
        if text.startswith("/"):
            return redact_place(self, text, context)
        return None

    def _shaped(self, text: str, context: Context) -> str | None:
        """Return the replacement of a text that identifies by its form; None if it does not."""
        for kind, match in shapes(text):
            if match[0] == text:
                return self.names.add(kind, text)
        return redact_place(self, text, context) if text.startswith("/") else None
