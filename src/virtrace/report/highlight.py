"""How a terminal shows text: colour where it can, and nothing that could steer it.

Pygments may be missing in the Python that GDB embeds; then everything is plain.
"""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, TextIO

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

# Plain ANSI colours, which every palette keeps readable, on dark and on light ground.
_SGR = {"bold": "1", "dim": "2", "red": "1;31", "yellow": "33", "cyan": "36"}
_SEQUENCE = re.compile("\x1b\\[[0-9;]*m")
_TOKENS = {
    "Name.Tag": "cyan",
    "Literal.String": "green",
    "Literal.Number": "magenta",
    "Keyword.Constant": "yellow",
    "Name.Builtin": "yellow",
}


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
    color = _HAVE_PYGMENTS and printing.obeys(stream)
    return Style(_width(stream), color, printing.is_unicode(stream), full)


def _width(stream: TextIO) -> int:
    # A serial console is a terminal of 0 columns.
    columns = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    if not columns:
        told = os.environ.get("COLUMNS", "")
        columns = int(told) if told.isdecimal() else 0
    return max(columns or DEFAULT_WIDTH, _MIN_WIDTH)


def safe(text: str, style: Style) -> str:
    """As it will be printed: what is to be cut or padded has to be so beforehand."""
    return printing.safe(text, unicode=style.unicode)


def cells(text: str) -> int:
    """Columns that ``text`` takes in a terminal; colour takes none."""
    text = printing.without_own(text)
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
        return own(f"\x1b[{_SGR[role]}m") + text + own("\x1b[0m")
    lexer, formatter = _machinery(role)
    painted = pygments.highlight(safe(text, style), lexer, formatter)
    return _SEQUENCE.sub(lambda match: own(match[0]), painted)


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
