"""What strangers can put into names and texts, and what a terminal must not get of it."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

# As a line of its own it looks like one of ours.
FORGED = "virtrace: FORGED"
# Sets the clipboard and colours, clears the screen, goes back in the line.
_STEERING = "\x1b]52;c;Zm9v\x07\x1b[1;31m\x1b[2J\x9b2J\r\b\x7f"
_LINE_ENDS = "".join(f"{end}{FORGED}" for end in "\n\r\x0b\x0c\x1e\x85\u2028\u2029")
# The first and the last of each block: what turns text, or is not seen in it.
_HIDDEN = (
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1D159, 0x1D159),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
TEXT = f"{_STEERING}{_LINE_ENDS}{''.join(chr(end) for ends in _HIDDEN for end in ends)}FORGED"
# Colours, those of Pygments too, and what begins the line of progress anew.
_OURS = re.compile("\x1b\\[(?:0|1|2|1;31|3[2356]|39;49;00)m|\r\x1b\\[K")


def folder(parent: Path) -> Path:
    """One whose path has all of it; a name takes 255 bytes."""
    parts, part = [], ""
    for character in TEXT:
        if len((part + character).encode()) > 200:
            parts.append(part)
            part = ""
        part += character
    made = parent.joinpath(*parts, part)
    made.mkdir(parents=True, exist_ok=True)
    return made


def is_told(printed: bytes, *, color: bool = False) -> bool:
    """Whether some of it was printed; AssertionError where it does harm."""
    text = printed.decode()
    if color:
        assert _OURS.search(text)
        # Of a colour that could be ours.
        assert not re.search(r"\x1b\[1;31m\\u001b\[2J", text)
        text = _OURS.sub("", text)
    assert sorted({f"U+{ord(each):04X}" for each in text if _is_bad(each)}) == []
    assert not re.search(f"^{FORGED}", text, re.MULTILINE)
    assert "an error of its own" not in text
    assert "Traceback" not in text
    return "FORGED" in text


def _is_bad(character: str) -> bool:
    if character == "\n":
        return False
    number = ord(character)
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or any(
        first <= number <= last for first, last in _HIDDEN
    )
