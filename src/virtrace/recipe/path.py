"""Capture paths: the small part of C's expressions that a recipe may use.

    domain->name          members, through pointers and inside structs
    *info  **stats        what a pointer points to
    return                the value that the function returned
    format(return, info)  a C format string with one %s, filled in with a second string

They are parsed here and walked over values by the engine; nothing of a recipe ever
reaches GDB's expression evaluator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RETURN = "return"

_PATH = re.compile(
    r"(?P<stars>\**)\s*(?P<name>[A-Za-z_]\w*)(?P<members>(?:(?:->|\.)[A-Za-z_]\w*)*)"
)
_FORMAT = re.compile(r"format\(\s*(?P<name>[A-Za-z_]\w*)\s*,\s*(?P<filler>[A-Za-z_]\w*)\s*\)")
_MEMBER = re.compile(r"(->|\.)(\w+)")


@dataclass(frozen=True)
class Path:
    """``name``, then each of ``members``, then ``stars`` dereferences, as C binds them.

    name: an argument of the function, or RETURN. filler: of format(name, filler).
    """

    text: str
    name: str
    members: tuple[str, ...] = ()
    stars: int = 0
    filler: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What of the function it starts from."""
        return (self.name,) if self.filler is None else (self.name, self.filler)


def parse(text: str) -> Path:
    """ValueError, with what is allowed, where ``text`` is no capture path."""
    text = text.strip()
    if match := _FORMAT.fullmatch(text):
        return Path(text, match["name"], filler=match["filler"])
    if match := _PATH.fullmatch(text):
        # `a->b` and `a.b` walk alike: the types know which of the two it is.
        members = tuple(name for _, name in _MEMBER.findall(match["members"]))
        return Path(text, match["name"], members, len(match["stars"]))
    raise ValueError(
        f"{text!r} is not a capture: write a C path such as disk, domain->name, *info, "
        "return or format(return, info)"
    )
