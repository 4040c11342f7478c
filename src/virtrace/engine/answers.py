"""Which earlier point an answer belongs to, across threads. Does not need gdb."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from virtrace.engine.confirm import Exchange, settle
from virtrace.engine.tracer import RawEvent
from virtrace.recipe.model import Point
from virtrace.trace.format import MAX_DEPTH, Json, is_deeper, is_unavailable

# Levels of JSON: a trace has it a few levels deeper.
_MAX_DEPTH = MAX_DEPTH - 10


class Answers:
    """Gives answers the span and the call of what they answer; drops those of other calls."""

    def __init__(self, points: tuple[Point, ...]) -> None:
        self._points = {point.name: point for point in points}
        self._keys = {point.answers.point: point.answers.by for point in points if point.answers}
        self._asked: dict[tuple[str, ...], RawEvent] = {}
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
            key = _key(event, point.answers.by)
            asked = self._asked.pop((point.answers.point, *key), None) if key else None
            if asked is None:
                return False
            event.parent, event.call = asked.parent, asked.call
            if asked.call is not None:
                exchange = (_member(asked, "json.execute"), _member(event, "json.return"))
                self._exchanges.setdefault(asked.call, []).append(exchange)
        elif event.name in self._keys:
            key = _key(event, self._keys[event.name])
            if key:
                self._asked[(event.name, *key)] = event
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
