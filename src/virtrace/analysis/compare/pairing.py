"""Decide which calls of two traces belong together: those that ask the same."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import starmap, zip_longest
from operator import itemgetter
from typing import Any

from virtrace.analysis.compare.model import AnswersApart, texts
from virtrace.analysis.compare.values import without_folders
from virtrace.analysis.explain import disks
from virtrace.analysis.explain.model import Explanation, Node
from virtrace.analysis.explain.trace import Explained, explain_nodes
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, CallBuilder, Child, Span
from virtrace.trace.format import is_unavailable
from virtrace.trace.reader import ReadableTrace


@dataclass(frozen=True)
class Outline:
    """What is kept of a call to pair it.

    like: the first call of the trace that asks the same.
    place: index among the calls of the trace, in the order in which they end.
    """

    like: Call
    place: int


@dataclass
class Outlines:
    """The calls of a trace in the order in which they began, and the names of all events.

    explained: what the trace means, but for the sizes of disks, which each pair of calls explains.
    """

    calls: list[Outline]
    names: list[str]
    explained: Explained[Any]


def calls_of(trace: ReadableTrace) -> Iterator[Call]:
    return CallBuilder(trace.most_open).calls(trace)


def outlines(trace: ReadableTrace) -> Outlines:
    """Read a trace once, keeping little of each call."""
    calls: list[tuple[int, Outline]] = []
    like: dict[str, Call] = {}
    names: dict[str, tuple[int, int]] = {}

    def noted() -> Iterator[Node]:
        for node in CallBuilder(trace.most_open).everything(trace):
            if isinstance(node, Call):
                note(node)
            yield node

    def note(call: Call) -> None:
        question = asked(call)
        if question not in like:
            like[question] = call.alone()
        place = len(calls)
        calls.append((call.root.t_enter_ns, Outline(like[question], place)))
        for node in call.nodes():
            met = call.root.t_enter_ns, place
            name = _name(node)
            if names.setdefault(name, met) > met:
                names[name] = met

    explained = explain_nodes(noted(), trace, without=disks.EXPLAINER)
    calls.sort(key=itemgetter(0))
    in_order = sorted(names, key=lambda name: names[name])
    return Outlines([outline for _, outline in calls], in_order, explained)


def answers_apart(a: Explained[Any], b: Explained[Any]) -> Iterator[AnswersApart]:
    """Yield the answers to one question that have another cause, or that only one trace has."""
    sides: list[dict[tuple[str, tuple[str, ...]], dict[str, Explanation[Any]]]] = [{}, {}]
    for side, explained in zip(sides, (a, b)):
        for each in explained:
            causes = side.setdefault((each.explainer, each.case.subject), {})
            causes.setdefault(each.findings[0].cause.name, each)
    for key in {**sides[0], **sides[1]}:
        of_a, of_b = (side.get(key, {}) for side in sides)
        only_a = [each for cause, each in of_a.items() if cause not in of_b]
        only_b = [each for cause, each in of_b.items() if cause not in of_a]
        yield from starmap(AnswersApart, zip_longest(only_a, only_b))


def paired(a: list[Outline], b: list[Outline]) -> Iterator[tuple[Outline | None, Outline | None]]:
    """Yield pairs in order: equal questions first, then those with differing unreadable arguments.

    The calls without a partner come last.
    """
    left = a, b
    unread = {
        name
        for outline in (*a, *b)
        for name, value in texts(outline.like).items()
        if is_unavailable(value)
    }
    for key in (asked, _asked_by_name, partial(_asked_by_name, without=unread)):
        waiting: dict[str, list[Outline]] = defaultdict(list)
        for outline in reversed(left[1]):
            waiting[key(outline.like)].append(outline)
        alone = []
        for outline in left[0]:
            same = waiting[key(outline.like)]
            if same:
                yield outline, same.pop()
            else:
                alone.append(outline)
        others = {outline.place for several in waiting.values() for outline in several}
        left = alone, [outline for outline in left[1] if outline.place in others]
    yield from ((outline, None) for outline in left[0])
    yield from ((None, outline) for outline in left[1])


def asked(call: Call, without: Collection[str] = ()) -> str:
    """The question of a call as text: the API, and its arguments without some."""
    arguments = {name: value for name, value in texts(call).items() if name not in without}
    return json.dumps([call.root.name, arguments], sort_keys=True)


def _asked_by_name(call: Call, without: Collection[str] = ()) -> str:
    return without_folders(asked(call, without))


def _name(node: Child) -> str:
    if isinstance(node, Span):
        return node.name
    return node.send.name if isinstance(node, Exchange) else node.event.name
