"""How a terminal shows text: colour where it can, and nothing that could steer it.

Pygments may be missing in the Python that GDB embeds; then everything is plain.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, TextIO

try:
    import pygments
except ImportError:
    _HAVE_PYGMENTS = False
else:
    _HAVE_PYGMENTS = True

DEFAULT_WIDTH = 80
_MIN_WIDTH = 40

# Plain ANSI colours, which every palette keeps readable, on dark and on light ground.
_SGR = {"bold": "1", "dim": "2", "red": "1;31", "yellow": "33", "cyan": "36"}
_TOKENS = {
    "Name.Tag": "cyan",
    "Literal.String": "green",
    "Literal.Number": "magenta",
    "Keyword.Constant": "yellow",
    "Name.Builtin": "yellow",
}

# Control characters, those that turn the direction of text or hide in it, and those that are
# none: a string read from the daemon could otherwise rewrite what stands on the screen.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSAFE_OR_NOT_ASCII = re.compile("[^\x20-\x7e]")
_SGR_SEQUENCE = re.compile("\x1b\\[[0-9;]*m")


@dataclass(frozen=True)
class Style:
    """What the output can show. width: columns, for everything but ``full`` JSON.

    unicode: box-drawing characters, and text beyond ASCII as it is. full: whole replies
    instead of a line of each.
    """

    width: int = DEFAULT_WIDTH
    color: bool = False
    unicode: bool = False
    full: bool = False


def style_for(stream: TextIO | None, *, full: bool = False) -> Style:
    """What ``stream`` can show, and the environment (NO_COLOR, TERM, COLUMNS) allows.

    Inside GDB ``sys.stdout`` is GDB's own object and tells nothing: give
    ``sys.__stdout__``, which is the terminal that GDB writes to (None where closed).
    """
    if stream is None:
        return Style(full=full)
    tty = stream.isatty()
    color = (
        _HAVE_PYGMENTS
        and tty
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM", "dumb") != "dumb"
    )
    return Style(_width(stream, tty), color, _is_unicode(stream), full)


def _width(stream: TextIO, tty: bool) -> int:
    # A serial console is a terminal of 0 columns.
    columns = os.get_terminal_size(stream.fileno()).columns if tty else 0
    if not columns:
        told = os.environ.get("COLUMNS", "")
        columns = int(told) if told.isdecimal() else 0
    return max(columns or DEFAULT_WIDTH, _MIN_WIDTH)


def _is_unicode(stream: TextIO) -> bool:
    # Other encodings may have the box-drawing characters, but not every name of a domain.
    try:
        return codecs.lookup(stream.encoding or "ascii").name.startswith("utf")
    except LookupError:
        return False


def safe(text: str, style: Style) -> str:
    """``text`` with what the terminal would obey or could not show written as escapes.

    The escapes are those of JSON, so that JSON text stays JSON.
    """
    return (_UNSAFE if style.unicode else _UNSAFE_OR_NOT_ASCII).sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


def cells(text: str) -> int:
    """Columns that ``text`` takes in a terminal; colour takes none."""
    text = _SGR_SEQUENCE.sub("", text)
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> int:
    """How many characters of ``text`` fit into ``width`` columns; at least one."""
    if text.isascii():
        return max(width, 1)
    used = 0
    for index, character in enumerate(text):
        used += _cells_of(character)
        if used > width and index > 0:
            return index
    return len(text)


def shorten(text: str, width: int, style: Style) -> str:
    """``text`` in at most ``width`` columns, with an ellipsis where something is left out."""
    if len(text) <= width and cells(text) <= width:
        return text
    ellipsis = "…" if style.unicode else "..."
    return text[: cut(text, width - len(ellipsis))] + ellipsis


def paint(text: str, role: str, style: Style) -> str:
    """role: one of _SGR; ``json``, ``c``, or ``call`` (C, its name bold) for source; or empty."""
    if not style.color or not role or not text:
        return text
    if role == "call":
        name, paren, arguments = text.partition("(")
        return paint(name, "bold", style) + paint(paren + arguments, "c", style)
    if role in _SGR:
        return f"\x1b[{_SGR[role]}m{text}\x1b[0m"
    lexer, formatter = _machinery(role)
    return str(pygments.highlight(text, lexer, formatter))


def prepare(style: Style) -> None:
    """Import what colour needs."""
    if style.color:
        for language in ("json", "c"):
            _machinery(language)


@functools.cache
def _machinery(language: str) -> tuple[Any, Any]:
    # Imported late: only a trace that is shown in colour pays for it.
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import CLexer, JsonLexer
    from pygments.token import string_to_tokentype

    scheme = {string_to_tokentype(name): (color, color) for name, color in _TOKENS.items()}
    scheme[string_to_tokentype("")] = ("", "")
    options = {"stripnl": False, "ensurenl": False}
    lexer = JsonLexer(**options) if language == "json" else CLexer(**options)
    return lexer, TerminalFormatter(colorscheme=scheme)
