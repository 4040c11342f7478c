"""Capture paths: the small part of C's expressions that a recipe may use.

    domain->name          members, through pointers and inside structs
    *info  **stats        what a pointer points to
    return                the value that the function returned
    format(return, info)  a C format string with one %s, filled in with a second string
    typed(params, nparams)  an array of virTypedParameter, and how many it has
    records(retStats, return)  an array of pointers to virDomainStatsRecord, likewise
    caller()              the name of the exported function that called this one
    backtrace(job->owner)  the frames of the thread with this id

They are parsed here and walked over values by the engine; nothing of a recipe ever
reaches GDB's expression evaluator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RETURN = "return"
CALLER = "caller()"

_MEMBERS = r"(?:(?:->|\.)[A-Za-z_]\w*){,15}"
_PATH = re.compile(
    rf"(?P<stars>\*{{,3}})\s{{,9}}(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})", re.A
)
_OF_TWO = re.compile(
    r"(?P<what>format|typed|records)\(\s*"
    rf"(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})\s*,\s*"
    rf"(?P<other>[A-Za-z_]\w*)(?P<others>{_MEMBERS})\s*\)",
    re.A,
)
_BACKTRACE = re.compile(rf"backtrace\(\s*(?P<name>[A-Za-z_]\w*)(?P<members>{_MEMBERS})\s*\)", re.A)
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
    count: of typed(path, count), and, of records, of records(path, count). backtrace: it
    gives a thread's id, and the frames of that thread are meant.
    """

    text: str
    name: str
    members: tuple[str, ...] = ()
    stars: int = 0
    filler: str | None = None
    count: Path | None = None
    records: bool = False
    backtrace: bool = False

    @property
    def arguments(self) -> tuple[str, ...]:
        """What of the function it starts from."""
        count = self.count.name if self.count else None
        return tuple(name for name in (self.name, self.filler, count) if name is not None)


def parse(text: str) -> Path:
    """ValueError, with what is allowed, where ``text`` is no capture path."""
    text = text.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"{shortened(text)} is not a capture: it is longer than {_LONGEST}")
    if text == CALLER:
        return Path(text, CALLER)
    if match := _OF_TWO.fullmatch(text):
        members, others = _members(match["members"]), _members(match["others"])
        if match["what"] != "format":
            count = Path(text, match["other"], others)
            records = match["what"] == "records"
            return Path(text, match["name"], members, count=count, records=records)
        if not members and not others:
            return Path(text, match["name"], filler=match["other"])
    elif match := _BACKTRACE.fullmatch(text):
        return Path(text, match["name"], _members(match["members"]), backtrace=True)
    elif match := _PATH.fullmatch(text):
        return Path(text, match["name"], _members(match["members"]), len(match["stars"]))
    raise ValueError(
        f"{shortened(text)} is not a capture: write a C path such as disk, domain->name, *info, "
        "return, format(return, info), typed(params, nparams), records(retStats, return), "
        "caller() or backtrace(job->owner)"
    )


def _members(text: str) -> tuple[str, ...]:
    """`a->b` and `a.b` walk alike: the types know which of the two it is."""
    return tuple(name for _, name in _MEMBER.findall(text))
