"""How a terminal shows text: with colour if it can, and without control sequences from a trace.

Pygments may be missing in GDB's Python; all text is plain then.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from typing import Any, NamedTuple, TextIO

from virtrace import printing
from virtrace.printing import own

try:
    import pygments
except ImportError:
    _HAVE_PYGMENTS = False
else:
    _HAVE_PYGMENTS = True

DEFAULT_WIDTH = 80
_MIN_WIDTH = 40

# Plain ANSI colours: readable in every palette, on dark and on light background.
_SGR = {"bold": "1", "dim": "2", "red": "1;31", "yellow": "33", "cyan": "36"}
_SEQUENCE = re.compile("\x1b\\[[0-9;]*m")
# Characters of a text that is coloured anew each time.
_LONG = 200
_TOKENS = {
    "Name.Tag": "cyan",
    "Literal.String": "green",
    "Literal.Number": "magenta",
    "Keyword.Constant": "yellow",
    "Name.Builtin": "yellow",
}


class Style(NamedTuple):
    """What the output can show.

    width: in columns, for everything except ``full`` JSON.
    unicode: box-drawing characters, and other text beyond ASCII.
    full: whole replies instead of one line of each.
    """

    width: int = DEFAULT_WIDTH
    color: bool = False
    unicode: bool = False
    full: bool = False


def style_for(stream: TextIO | None, *, full: bool = False) -> Style:
    """Return the style that ``stream`` and the environment (NO_COLOR, TERM, COLUMNS) allow.

    Inside GDB, ``sys.stdout`` is an object of GDB that does not know its terminal: pass
    ``sys.__stdout__``, the terminal to which GDB writes (None if closed).
    """
    if stream is None:
        return Style(full=full)
    color = _HAVE_PYGMENTS and printing.obeys(stream)
    return Style(_width(stream), color, printing.is_unicode(stream), full)


def _width(stream: TextIO) -> int:
    # A serial console is a terminal with 0 columns.
    columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    if not columns:
        told = os.environ.get("COLUMNS", "")
        columns = int(told) if told.isdecimal() else 0
    return max(columns or DEFAULT_WIDTH, _MIN_WIDTH)


def safe(text: str, style: Style) -> str:
    """Return text as it will be printed. Call it before text is cut or padded."""
    return printing.safe(text, unicode=style.unicode)


def without_surrogates(text: str) -> str:
    """Return text as Unicode has it: surrogates, which JSON can contain, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cells(text: str) -> int:
    """Return the columns that ``text`` takes in a terminal; colour takes none."""
    text = printing.without_own(text)
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> int:
    """Return how many characters of ``text`` fit into ``width`` columns; at least one."""
    if text.isascii():
        return max(width, 1)
    used = 0
    for index, character in enumerate(text):
        used += _cells_of(character)
        if used > width and index > 0:
            return index
    return len(text)


def shorten(text: str, width: int, style: Style) -> str:
    """Shorten ``text`` to at most ``width`` columns, with an ellipsis if something is left out."""
    if len(text) <= width and cells(text) <= width:
        return text
    ellipsis = "…" if style.unicode else "..."
    return text[: cut(text, width - len(ellipsis))] + ellipsis


def paint(text: str, role: str, style: Style) -> str:
    """Colour a text. role: one of _SGR, ``json``, ``c``, ``call`` (C, its name bold), or empty."""
    if not style.color or not role or not text:
        return text
    if role == "call":
        name, paren, arguments = text.partition("(")
        return paint(name, "bold", style) + paint(paren + arguments, "c", style)
    if role in _SGR:
        return own(f"\x1b[{_SGR[role]}m") + text + own("\x1b[0m")
    text = safe(text, style)
    return (_highlighted_anew if len(text) > _LONG else _highlighted)(text, role)


def _highlighted_anew(text: str, language: str) -> str:
    lexer, formatter = _machinery(language)
    return _SEQUENCE.sub(lambda match: own(match[0]), pygments.highlight(text, lexer, formatter))


# Most parts of a call stand in each call, and to colour one takes far longer than to look it up.
_highlighted = functools.lru_cache(4096)(_highlighted_anew)


def prepare_colour(style: Style) -> None:
    """Import what colour needs, before rights are dropped."""
    if style.color:
        for language in ("json", "c"):
            _machinery(language)


@functools.cache
def _machinery(language: str) -> tuple[Any, Any]:
    # Imported late, because only coloured output needs it.
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import CLexer, JsonLexer
    from pygments.token import string_to_tokentype

    scheme = {string_to_tokentype(name): (color, color) for name, color in _TOKENS.items()}
    scheme[string_to_tokentype("")] = ("", "")
    options = {"stripnl": False, "ensurenl": False}
    lexer = JsonLexer(**options) if language == "json" else CLexer(**options)
    return lexer, TerminalFormatter(colorscheme=scheme)
