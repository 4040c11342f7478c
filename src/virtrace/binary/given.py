"""Texts and numbers of documents that a stranger may have made: as declared, or a ValueError."""

from __future__ import annotations

import re

# As long as a path can be.
MAX_TEXT = 4096
# JSON can name what no text holds, and no C string or file has.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {_shortened(value)} where text belongs")
    if len(value) > MAX_TEXT or _NO_TEXT.search(value):
        raise ValueError(f"found {_shortened(value)}, which is too long, or not valid text")
    return value


def number(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"found {_shortened(value)} where a number from {low} to {high} belongs")
    return value


def address(value: object) -> int:
    """Of a file or of a process, or a size: below 2^63, as the kernel has them."""
    return number(value, 0, (1 << 63) - 1)


def hexadecimal(value: object) -> int:
    """An address as text: ``0x1f``."""
    return address(int(text(value), 16))


def _shortened(value: object) -> str:
    """As Python writes it, and no longer than a line."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    said = repr(value[:60]) if isinstance(value, str) else str(value)
    return said[:60]
