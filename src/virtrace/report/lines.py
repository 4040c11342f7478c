"""Terminal lines made of pieces, folded to the width of the style.

Lines have no newline. Only what is meant for copying may be wider.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import groupby

from virtrace.report.highlight import Style, cells, cut, paint, safe
from virtrace.report.pieces import Piece

# Columns that remain for the deepest line of a tree.
ROOM = 24
_LABEL = 9
# Characters that are tried for a column: some take none.
_MOST = 4


def labelled(name: str, pieces: Iterable[Piece], style: Style) -> Iterator[str]:
    """Yield the pieces after a label, which is written once."""
    return fold(pieces, style, label(name), label(""))


def copyable(name: str, text: str, style: Style) -> str:
    """Return a line with text for copying, which is not folded."""
    return paint(label(name), "dim", style) + paint(safe(text, style), "bold", style)


def label(text: str) -> str:
    """Return a label, padded to its column."""
    return f"  {text:<{_LABEL}}"


def column(names: Iterable[str], style: Style) -> int:
    """Return the width of a column of names; names beyond the limit exceed it."""
    return min(max((cells(safe(name, style)) for name in names), default=0), style.width)


def fold(
    pieces: Iterable[Piece], style: Style, first: str = "", below: str = "  "
) -> Iterator[str]:
    """Fold pieces to the style's width: ``first`` begins the first line, ``below`` the others."""
    prefix = first
    line: list[Piece] = []
    used = 0
    for raw, role in pieces:
        text = safe(raw, style)
        wide = cells(text)
        room = room_beside(prefix, style)
        if line and used + 1 + wide > room:
            yield _painted(prefix, line, style)
            prefix, line, used = below, [], 0
            room = room_beside(prefix, style)
        if wide > room or len(text) > _MOST * room:
            start, end = 0, _fitting(text, 0, room)
            while end < len(text):
                yield _painted(prefix, [(text[start:end].removesuffix(" "), role)], style)
                prefix, start = below, end
                room = room_beside(prefix, style)
                end = _fitting(text, start, room)
            text = text[start:]
            wide = cells(text)
        used += wide + (1 if line else 0)
        line.append((text, role))
    if line:
        yield _painted(prefix, line, style)


def _fitting(text: str, start: int, room: int) -> int:
    """Return where the part that fits ends, at a blank if one is in its second half.

    Reads no more text than can fit into a line.
    """
    window = text[start : start + _MOST * room]
    if cells(window) <= room:
        return start + len(window)
    end = cut(window, room)
    blank = window.rfind(" ", end // 2, end)
    return start + (end if blank < 0 else blank + 1)


def room_beside(prefix: str, style: Style) -> int:
    """Return the number of columns that remain after a prefix."""
    return max(style.width - _cells_of_prefix(prefix), ROOM)


# There are few prefixes, and each begins many lines of a tree.
_cells_of_prefix = functools.lru_cache(256)(cells)


def _painted(prefix: str, line: list[Piece], style: Style) -> str:
    runs = groupby(line, key=lambda piece: piece[1])
    return paint(prefix, "dim", style) + " ".join(
        paint(" ".join(text for text, _ in run), role, style) for role, run in runs
    )
