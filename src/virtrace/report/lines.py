"""Lines of a terminal made of pieces, never wider than the style allows.

Lines come without their newline; only what is there to be copied may be wider.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from virtrace.report.highlight import Style, cells, cut, paint, safe
from virtrace.report.pieces import Piece

# Columns that the deepest line of a tree still has for itself.
ROOM = 24
_LABEL = 9


def labelled(name: str, pieces: Iterable[Piece], style: Style) -> Iterator[str]:
    """The pieces behind the name of what they tell, which stands once."""
    return fold(pieces, style, label(name), label(""))


def copyable(name: str, text: str, style: Style) -> str:
    """What is there to be copied, however wide."""
    return paint(label(name), "dim", style) + paint(safe(text, style), "bold", style)


def label(text: str) -> str:
    """A name in its column."""
    return f"  {text:<{_LABEL}}"


def column(names: Iterable[str], style: Style) -> int:
    """Columns that names take below one another; those beyond the width stand out of line."""
    return min(max((cells(safe(name, style)) for name in names), default=0), style.width)


def fold(
    pieces: Iterable[Piece], style: Style, first: str = "", below: str = "  "
) -> Iterator[str]:
    """Lines of the style's width: ``first`` stands before the first, ``below`` before the rest."""
    prefix = first
    line: list[Piece] = []
    used = 0
    for raw, role in pieces:
        text = safe(raw, style)
        room = room_beside(prefix, style)
        if line and used + 1 + cells(text) > room:
            yield _painted(prefix, line, style)
            prefix, line, used = below, [], 0
            room = room_beside(prefix, style)
        start, end = 0, _fitting(text, 0, room)
        while end < len(text):
            yield _painted(prefix, [(text[start:end], role)], style)
            prefix, start = below, end
            room = room_beside(prefix, style)
            end = _fitting(text, start, room)
        text = text[start:]
        used += cells(text) + (1 if line else 0)
        line.append((text, role))
    if line:
        yield _painted(prefix, line, style)


def _fitting(text: str, start: int, room: int) -> int:
    """Where what fits ends. Looks at no more of a text than a line could take, be it endless."""
    window = text[start : start + 4 * room]
    return start + (cut(window, room) if cells(window) > room else len(window))


def room_beside(prefix: str, style: Style) -> int:
    """Columns that are left behind a prefix."""
    return max(style.width - cells(prefix), ROOM)


def _painted(prefix: str, line: list[Piece], style: Style) -> str:
    runs = groupby(line, key=lambda piece: piece[1])
    return paint(prefix, "dim", style) + " ".join(
        paint(" ".join(text for text, _ in run), role, style) for role, run in runs
    )
