"""Check texts and numbers of documents that a stranger may have made."""

from __future__ import annotations

import re

# The longest possible path.
MAX_TEXT = 4096
# JSON can contain characters that no C string or file name has.
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
    """Check an address in a file or process, or a size: below 2^63, as in the kernel."""
    return number(value, 0, (1 << 63) - 1)


def hexadecimal(value: object) -> int:
    """Check an address as text: ``0x1f``."""
    return address(int(text(value), 16))


def _shortened(value: object) -> str:
    """Show a value in Python's notation, limited to one line."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    said = repr(value[:60]) if isinstance(value, str) else str(value)
    return said[:60]
