"""Redact prose: messages of libvirt and QEMU, backtraces, lines of source."""

from __future__ import annotations

import re

from virtrace.bundle import words
from virtrace.bundle.pseudonyms import KINDS
from virtrace.bundle.redact.context import Context, TextRedactor
from virtrace.bundle.redact.harmless import are_words, is_plain
from virtrace.bundle.redact.kinds import PASSWORD, kind_of_key
from virtrace.bundle.redact.places import redact_place
from virtrace.bundle.redact.shapes import COUNTED, ESCAPED, PROSE, UNIT, shapes
from virtrace.bundle.redact.uri import redact_uri

_THREAD = re.compile(r"\(LWP [0-9]+\) \Z")
_MOST_COLONS = 16
# Between a word and the number or name to which it belongs.
_LINKING = frozenset({"of", "is", "was", "to", "at", "the", "with"})


def redact_prose(redactor: TextRedactor, text: str, context: Context, *, code: bool = False) -> str:
    """Redact prose: quoted text is a name, whatever it is; known words stay.

    code: source or stack of a program, in which only texts and paths are private.
    """
    return _Prose(redactor, context, code).redacted(text)


class _Prose:
    def __init__(self, redactor: TextRedactor, context: Context, code: bool) -> None:
        self._redactor = redactor
        self._names = redactor.names
        self._context = context
        self._code = code

    def redacted(self, text: str) -> str:
        text = ESCAPED.sub(_unescaped, text) if "\\" in text else text
        shaped = {match.start(): (match.end(), kind) for kind, match in shapes(text)}
        parts, at, before = [], 0, ""
        while at < len(text):
            known = self._names.find(text, at)
            if known is not None:
                at, before = known[0], ""
                parts.append(known[1])
                continue
            if at in shaped:
                end, kind = shaped[at]
                parts.append(self._names.add(kind, text[at:end]))
                at, before = end, ""
                continue
            match = PROSE.match(text, at)
            if match is None:
                escaped = ESCAPED.match(text, at)
                parts.append(self._names.add("text", escaped[0]) if escaped else text[at])
                at = escaped.end() if escaped else at + 1
                continue
            at = match.end()
            parts.append(self._token(match, before))
            if match.lastgroup != "word":
                before = ""
            elif match[0] not in _LINKING:
                before = match[0]
            assigned = None if self._code else self._assigned(text, at, before)
            if assigned is not None:
                parts.append(assigned[1])
                at, before = assigned[0], ""
        return "".join(parts)

    def _assigned(self, text: str, at: int, key: str) -> tuple[int, str] | None:
        """Return end and redacted value of ``key=value`` and ``password: value``."""
        name = key.rstrip(":")
        if kind_of_key(name) not in KINDS:
            return None
        between = r"\s*=\s*"
        if PASSWORD.search(name.lower()):
            between = r"\s+" if key.endswith(":") else r"\s*[=:]\s*"
        pattern = re.compile(rf"({between})(\"[^\"\n]+\"|'[^'\n]+'|[^\s,;'\"]+)")
        match = pattern.match(text, at)
        if match is None:
            return None
        value = match[2]
        quote = value[0] if value[0] in "'\"" and len(value) > 1 else ""
        inner = value[1:-1] if quote else value
        redacted = self._redactor.text(inner, name, self._context)
        return match.end(), match[1] + quote + redacted + quote

    def _token(self, match: re.Match[str], before: str) -> str:
        token, kind = match[0], match.lastgroup
        if kind == "quoted":
            return token[0] + self._quoted(match, before) + token[-1]
        if kind == "time":
            return token
        if kind == "uri":
            return redact_uri(self._redactor, token, self._context)
        if kind == "path":
            path = token.rstrip(".:")
            return redact_place(self._redactor, path, self._context) + token[len(path) :]
        return self._names.replace(token) if self._code else self._word(token, match, before)

    def _quoted(self, match: re.Match[str], before: str) -> str:
        text = match[0][1:-1]
        if self._code and text:
            # Threads of the daemon have names; those of guests have the guest's.
            start = max(0, match.start() - 24)
            is_thread = _THREAD.search(match.string, start, match.start())
            if is_thread and words.is_name(text):
                return text
            return self._redactor.unknown(text, self._context)
        key = before.strip("(:,").lower()
        if kind_of_key(key) in KINDS:
            return self._redactor.text(text, key, self._context)
        if key in ("name", "named", "called"):
            structured = self._redactor.structured(text, self._context)
            return structured or self._names.add("text", text)
        return self._redactor.text(text, "id", self._context)

    def _word(
        self,
        token: str,
        match: re.Match[str] | None = None,
        before: str = "",
        *,
        shaped: bool = True,
    ) -> str:
        """match: in the prose, if the token is a whole word of it.

        shaped: whether it may contain something that identifies by its form.
        """
        scheme, colon, place = token.partition(":")
        if place.startswith("/") and words.is_word(scheme.lower()):
            return scheme + colon + redact_place(self._redactor, place, self._context)
        pieces, at = list[str](), 0
        for kind, shape in shapes(token) if shaped else ():
            pieces.append(self._word(token[at : shape.start()], shaped=False))
            pieces.append(self._names.add(kind, shape[0]))
            at = shape.end()
        if pieces:
            return "".join(pieces) + self._word(token[at:], shaped=False)
        word = token.rstrip(".:/-%")
        if not word:
            return token
        parts = re.split("[-_./:@+]", word.lower())
        if words.is_name(word) or are_words(parts) or is_plain(word, self._names):
            return token
        if word.isdecimal() and match is not None:
            counts = COUNTED.search(before.strip("(:,").lower())
            if counts or UNIT.match(match.string, match.end()):
                return token
        rest = token[len(word) :]
        name, colon, value = word.partition(":")
        if colon and words.is_word(name.lower()) and value and value.count(":") < _MOST_COLONS:
            if PASSWORD.search(name.lower()):
                return f"{name}:{self._redactor.text(value, name, self._context)}{rest}"
            return f"{name}:{self._word(value)}{rest}"
        known = self._names.known(word)
        return (known if known is not None else self._names.add("text", word)) + rest


def _unescaped(match: re.Match[str]) -> str:
    """A name that a program in the C locale printed byte by byte."""
    raw = bytes(
        int(escape[2:], 16) if escape.startswith("\\x") else int(escape[1:], 8)
        for escape in re.findall(r"\\x..|\\...", match[0])
    )
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return match[0]
