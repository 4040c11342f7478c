"""The second pass: searches the finished files, byte by byte, for what must not leave the host.

It knows only the originals that were to be hidden, not how the files were made.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

from virtrace.bundle.files import file_pieces
from virtrace.bundle.grams import Grams
from virtrace.bundle.pseudonyms import Pseudonyms

# The alphabet of base64 and hexadecimal; encoded originals are searched for only in such runs.
_RUN = re.compile(rb"[A-Za-z0-9+/_=-]{6,}")


@dataclass(frozen=True)
class Leak:
    """An original that is in a file. form: how it is encoded."""

    file: str
    line: int
    column: int
    original: str
    form: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.original!a} {self.form}"


def leaks(files: Mapping[str, bytes], names: Pseudonyms) -> Iterator[Leak]:
    """Yield the originals found, except those that a bundle can contain for another reason."""
    wanted = [each for each in names.hidden if not names.is_ordinary(each)]
    search = _Search(wanted)
    for file in files:
        yield from search.leaks(file, file_pieces(files, file))
    yield from search.leaks("the names of the files", ["\n".join(files).encode()])


class _Search:
    def __init__(self, wanted: list[str]) -> None:
        self._texts = {each: list(_as_text(each)) for each in wanted}
        self._encoded = {each: list(_as_code(each)) for each in wanted}

    def leaks(self, file: str, contents: Iterable[bytes]) -> Iterator[Leak]:
        """Yield the first leak of each original. contents: one file, in pieces of whole lines."""
        left = list(self._texts)
        lines = 0
        for content in contents:
            found: dict[str, Leak] = {}
            for original, form, at in self._found(content, left):
                line = lines + content.count(b"\n", 0, at) + 1
                column = at - content.rfind(b"\n", 0, at)
                found.setdefault(original, Leak(file, line, column, original, form))
            yield from found.values()
            left = [original for original in left if original not in found]
            lines += content.count(b"\n")

    def _found(self, content: bytes, wanted: list[str]) -> Iterator[tuple[str, str, int]]:
        """Yield original, form and offset; the offset is exact only after ASCII text."""
        lower = content.decode("utf-8", "surrogatepass").lower().encode("utf-8", "surrogatepass")
        runs = set(_RUN.findall(content))
        lower_runs = {run.lower() for run in runs}
        texts, codes, lower_codes = Grams.of_text(lower), Grams(runs), Grams(lower_runs)
        for original in wanted:
            for form, needle in self._texts[original]:
                at = _place(needle, lower) if texts.may_hold(needle) else -1
                if at >= 0:
                    yield original, form, at
                    break
            for form, needle in self._encoded[original]:
                is_hex = form == "hexadecimal"
                if (lower_codes if is_hex else codes).may_hold_word(needle):
                    at = (content.lower() if is_hex else content).find(needle)
                    if at >= 0:
                        yield original, form, at
                        break


def _place(needle: bytes, content: bytes) -> int:
    """Return the offset, or -1. Part of a longer number or of a deeper path is not a match."""
    at = content.find(needle)
    if needle.isdigit() or needle.startswith(b"/"):
        inner = rb"[0-9.]" if needle.isdigit() else rb"[\w.-]"
        alone = re.compile(rb"(?<!%b)%b(?![0-9])" % (inner, re.escape(needle)))
        found = alone.search(content) if at >= 0 else None
        return found.start() if found else -1
    return at


def _as_text(original: str) -> Iterator[tuple[str, bytes]]:
    """Yield each way to write an original as text, in lower case."""
    raw = original.encode("utf-8", "surrogatepass")
    escaped = json.dumps(original)[1:-1]
    forms = {
        "as it is": original,
        "as JSON": json.dumps(original, ensure_ascii=False)[1:-1],
        "as ASCII JSON": escaped,
        "as JSON inside of a string": json.dumps(escaped)[1:-1],
        "as HTML": html.escape(original),
        "as XML": html.escape(original, quote=False),
        "as a URL": quote(original, safe="", errors="surrogatepass"),
        "as a path of a URL": quote(original, errors="surrogatepass"),
        "as a form": quote_plus(original, errors="surrogatepass"),
        "as a URL of bytes": "".join(f"%{byte:02x}" for byte in raw),
    }
    seen: set[bytes] = set()
    for form, text in forms.items():
        for each in (text, text.lower()):
            needle = each.encode("utf-8", "surrogatepass").lower()
            if needle not in seen:
                seen.add(needle)
                yield form, needle


def _as_code(original: str) -> Iterator[tuple[str, bytes]]:
    raw = original.encode("utf-8", "surrogatepass")
    yield "hexadecimal", raw.hex().encode()
    for before in range(3):
        # Characters shared with the bytes before and after are left out.
        code = base64.b64encode(bytes(before) + raw)
        start = -(-before * 8 // 6)
        end = (before + len(raw)) * 8 // 6
        for each in {code[start:end], code[start:end].translate(bytes.maketrans(b"+/", b"-_"))}:
            yield "base64", each
