"""Which request a reply answers, across threads. Does not need gdb."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from virtrace.engine.confirm import Exchange, settle
from virtrace.engine.tracer import RawEvent
from virtrace.recipe.model import Point, Span
from virtrace.trace.format import Json, is_unavailable
from virtrace.trace.json_text import RepeatedTexts

# Requests that wait for a reply: far more than a daemon has monitors and clients.
MOST_ASKED = 10_000


@dataclass
class Request:
    """What a reply gets from its request.

    parent, call: as in the event of the request.
    command: the QMP command, if it is one.
    seq: of the event; None until the event is written.
    """

    parent: int | None
    call: int | None
    command: Json
    seq: int | None = None


class Placed(NamedTuple):
    """An event that belongs into the trace.

    answers: the request that it answers, if any.
    requests: what it was recorded as, for replies to come.
    json_name: name of the text that `json` in its values was parsed from, if it has one.
    """

    event: RawEvent
    answers: Request | None = None
    requests: Request | None = None
    json_name: str | None = None


class Answers:
    """Attaches what a request led to; drops what belongs to requests that were not recorded."""

    def __init__(self, points: tuple[Point, ...], spans: tuple[Span, ...] = ()) -> None:
        self._inside = {
            span.name: span.inside for span in spans if span.inside and span.inside.of_point
        }
        # By the number of a call that a request asked for in another process: the request; None
        # where it was not recorded.
        self._joined: dict[int, Request | None] = {}
        self._points = {point.name: point for point in points}
        # Ways to recognize the replies to a point, by its name: names of values that agree.
        self._ways: dict[str, set[tuple[str, ...]]] = {}
        for point in points:
            if point.answers:
                self._ways.setdefault(point.answers.point, set()).add(point.answers.by)
        for inside in self._inside.values():
            self._ways.setdefault(inside.name, set()).add(tuple(inside.by.values()))
        self._waiting: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Request] = {}
        self._texts = RepeatedTexts()
        # QMP exchanges of the calls that are open.
        self._exchanges: dict[int, list[Exchange]] = {}

    def place(self, event: RawEvent) -> Placed | None:
        """Parse the event's JSON and find its request. None: the event answers nothing recorded."""
        if not self._join(event):
            return None
        point = self._points.get(event.name)
        if point is None or event.type != "point":
            self._settle(event)
            return Placed(event)
        json_name = point.json
        document = None if json_name is None else self._texts.parsed(event.values[json_name])
        if document is None:
            json_name = None
        else:
            event.values["json"] = document
        request = None
        if point.answers is not None:
            key = _key(event, point.answers.by)
            way = (point.answers.point, point.answers.by)
            request = self._waiting.pop((*way, key), None) if key else None
            if request is None and point.json and is_unavailable(event.values[point.json]):
                # Whose reply it is was not read: it may be of a request that was recorded.
                return Placed(event)
            if request is None:
                return None
            event.parent, event.call = request.parent, request.call
            if request.call is not None:
                exchange = (request.command, _member(event, "json.return"))
                self._exchanges.setdefault(request.call, []).append(exchange)
        return Placed(event, request, self._await_replies(event), json_name)

    def _join(self, event: RawEvent) -> bool:
        """Move what a request asked for to the request; return False if that was not recorded."""
        call = event.call
        if call is None:
            return True
        is_own = event.span == call
        inside = self._inside.get(event.name)
        if inside is not None and is_own and event.type == "enter":
            key = _key(event, tuple(inside.by))
            way = (inside.name, tuple(inside.by.values()))
            self._joined[call] = self._waiting.pop((*way, key), None) if key else None
        if call not in self._joined:
            return True
        request = self._joined[call]
        if is_own and event.type != "enter":
            del self._joined[call]
        if request is not None and request.call is not None:
            event.call = request.call
            if is_own:
                event.parent = request.parent
        return request is not None

    def _settle(self, event: RawEvent) -> None:
        if event.call is not None:
            event.values = settle(event.values, self._exchanges.get(event.call, ()))
            if event.type != "enter" and event.span == event.call:
                self._exchanges.pop(event.call, None)

    def _await_replies(self, event: RawEvent) -> Request | None:
        if event.name not in self._ways:
            return None
        request = Request(event.parent, event.call, _member(event, "json.execute"))
        for by in self._ways[event.name]:
            key = _key(event, by)
            if key:
                self._waiting[event.name, by, key] = request
        while len(self._waiting) > MOST_ASKED:
            # The oldest request is not answered any more.
            del self._waiting[next(iter(self._waiting))]
        return request


def _key(event: RawEvent, by: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return what request and reply agree in; None if a value of it is not known."""
    key = []
    for path in by:
        value = _member(event, path)
        if isinstance(value, str):
            # As all of libvirt's are. The quote tells it from the text of another value.
            key.append(f'"{value}')
        elif value is None or is_unavailable(value):
            return None
        else:
            key.append(json.dumps(value, sort_keys=True))
    return tuple(key)


def _member(event: RawEvent, path: str) -> Json:
    value: Json = event.values
    for member in path.split("."):
        value = value.get(member) if isinstance(value, dict) else None
    return value
