"""Which earlier point an answer belongs to, across threads. Does not need gdb."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from virtrace.engine.confirm import Exchange, settle
from virtrace.engine.tracer import RawEvent
from virtrace.recipe.model import Point
from virtrace.trace.format import MAX_DEPTH, Json, is_deeper, is_unavailable

# Levels of JSON: a trace has it a few levels deeper.
_MAX_DEPTH = MAX_DEPTH - 10


# That wait for an answer at a time: far more than a daemon has monitors and clients.
MOST_ASKED = 10_000


class _Asked(NamedTuple):
    """What an answer gets of what it answers. command: that QEMU was given, if any."""

    parent: int | None
    call: int | None
    command: Json


class Answers:
    """Gives answers the span and the call of what they answer; drops those of other calls."""

    def __init__(self, points: tuple[Point, ...]) -> None:
        self._points = {point.name: point for point in points}
        # By the name of a point that is answered: by what each that answers it knows it again.
        self._ways: dict[str, set[tuple[str, ...]]] = {}
        for point in points:
            if point.answers:
                self._ways.setdefault(point.answers.point, set()).add(point.answers.by)
        self._asked: dict[tuple[str, tuple[str, ...], tuple[str, ...]], _Asked] = {}
        # Of the calls that are open: what was asked and answered.
        self._exchanges: dict[int, list[Exchange]] = {}

    def place(self, event: RawEvent) -> bool:
        """Parse the event's JSON, and place it. False: it answers nothing that was recorded."""
        point = self._points.get(event.name)
        if point is None or event.type != "point":
            if event.call is not None:
                event.values = settle(event.values, self._exchanges.get(event.call, ()))
                if event.type != "enter" and event.span == event.call:
                    self._exchanges.pop(event.call, None)
            return True
        if point.json is not None:
            parsed = _parsed(event.values[point.json])
            if parsed is not None:
                event.values["json"] = parsed
        if point.answers is not None:
            by = point.answers.by
            key = _key(event, by)
            asked = self._asked.pop((point.answers.point, by, key), None) if key else None
            if asked is None:
                return False
            event.parent, event.call = asked.parent, asked.call
            if asked.call is not None:
                exchange = (asked.command, _member(event, "json.return"))
                self._exchanges.setdefault(asked.call, []).append(exchange)
        for by in self._ways.get(event.name, ()):
            key = _key(event, by)
            if key:
                command = _member(event, "json.execute")
                self._asked[event.name, by, key] = _Asked(event.parent, event.call, command)
        while len(self._asked) > MOST_ASKED:
            # What was asked so long ago is not answered any more.
            del self._asked[next(iter(self._asked))]
        return True


def _parsed(text: Json) -> Json:
    """None where the text is no JSON, or is JSON that a trace could not hold."""
    if not isinstance(text, str):
        return None
    try:
        parsed = json.loads(text, parse_constant=_finite, parse_float=_finite)
        # Half of a surrogate pair, which only an escape can make: known by writing it.
        if "\\u" in text:
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if text.count("[") + text.count("{") > _MAX_DEPTH and is_deeper(parsed, _MAX_DEPTH):
        return None
    return parsed


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number


def _key(event: RawEvent, by: tuple[str, ...]) -> tuple[str, ...] | None:
    """None where one of the values is not known: those of two events would agree in that."""
    values = [_member(event, path) for path in by]
    if any(value is None or is_unavailable(value) for value in values):
        return None
    return tuple(json.dumps(value, sort_keys=True) for value in values)


def _member(event: RawEvent, path: str) -> Json:
    value: Json = event.values
    for member in path.split("."):
        value = value.get(member) if isinstance(value, Mapping) else None
    return value
