"""Capture paths: the small part of C's expressions that a recipe may use.

    domain->name          members, through pointers and inside structs
    *info  **stats        what a pointer points to
    return                the value that the function returned
    format(return, info)  a C format string with one %s, filled in with a second string
    typed(params, nparams)  an array of virTypedParameter, and how many it has
    records(retStats, return)  an array of pointers to virDomainStatsRecord, likewise
    caller()              the name of the exported function that called this one

They are parsed here and walked over values by the engine; nothing of a recipe ever
reaches GDB's expression evaluator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RETURN = "return"
CALLER = "caller()"

_PATH = re.compile(
    r"(?P<stars>\*{,3})\s{,9}(?P<name>[A-Za-z_]\w*)(?P<members>(?:(?:->|\.)[A-Za-z_]\w*){,15})",
    re.A,
)
_OF_TWO = re.compile(
    r"(?P<what>format|typed|records)\(\s*(?P<name>[A-Za-z_]\w*)\s*,\s*(?P<other>[A-Za-z_]\w*)\s*\)",
    re.A,
)
_MEMBER = re.compile(r"(->|\.)(\w+)")


# Longer ones would keep regular expressions, and every stop of a daemon, busy.
_LONGEST = 200


def shortened(text: str) -> str:
    """As Python writes it, and no longer than a line."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


@dataclass(frozen=True)
class Path:
    """``name``, then each of ``members``, then ``stars`` dereferences, as C binds them.

    name: an argument of the function, RETURN or CALLER. filler: of format(name, filler);
    count: of typed(name, count), and, of records, of records(name, count).
    """

    text: str
    name: str
    members: tuple[str, ...] = ()
    stars: int = 0
    filler: str | None = None
    count: str | None = None
    records: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """What of the function it starts from."""
        return tuple(name for name in (self.name, self.filler, self.count) if name is not None)


def parse(text: str) -> Path:
    """ValueError, with what is allowed, where ``text`` is no capture path."""
    text = text.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"{shortened(text)} is not a capture: it is longer than {_LONGEST}")
    if text == CALLER:
        return Path(text, CALLER)
    if match := _OF_TWO.fullmatch(text):
        if match["what"] == "format":
            return Path(text, match["name"], filler=match["other"])
        return Path(text, match["name"], count=match["other"], records=match["what"] == "records")
    if match := _PATH.fullmatch(text):
        # `a->b` and `a.b` walk alike: the types know which of the two it is.
        members = tuple(name for _, name in _MEMBER.findall(match["members"]))
        return Path(text, match["name"], members, len(match["stars"]))
    raise ValueError(
        f"{shortened(text)} is not a capture: write a C path such as disk, domain->name, *info, "
        "return, format(return, info), typed(params, nparams), records(retStats, return) or "
        "caller()"
    )
