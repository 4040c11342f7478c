"""The calling contexts of all calls of a trace, as one tree for each API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Span


@dataclass
class Link:
    """A function or QMP command, as reached by one chain of callers.

    name: None for a command whose text was not captured whole.
    count: how often it was reached, in all calls.
    failed: how many of these ended with an error.
    again: how often it was reached recursively from itself. What it did then is counted here too.
    """

    name: str | None
    is_qmp: bool
    count: int = 0
    failed: int = 0
    again: int = 0
    callees: list[Link] = field(default_factory=list)


def chains(calls: Iterable[Call]) -> list[Link]:
    """Return one tree for each API, callees in the order in which they first occur."""
    top = Link(None, False)
    for call in calls:
        # Not recursive: a trace can be deeper than Python's stack.
        rest: list[tuple[Child, tuple[Link, ...]]] = [(call.root, (top,))]
        while rest:
            node, path = rest.pop()
            if isinstance(node, Span):
                path = _entered(node, path)
                rest.extend((child, path) for child in reversed(node.children))
            elif isinstance(node, Exchange):
                _count(path[-1], node.command, node.is_qmp, failed=node.failed)
    return top.callees


def _entered(span: Span, path: tuple[Link, ...]) -> tuple[Link, ...]:
    """Return the links from the top to this function; on recursion, back to its first link."""
    for index, link in enumerate(path[1:], 2):
        if link.name == span.name:
            link.count += 1
            link.failed += span.failed
            link.again += 1
            return path[:index]
    return (*path, _count(path[-1], span.name, False, failed=span.failed))


def _count(caller: Link, name: str | None, is_qmp: bool, *, failed: bool) -> Link:
    for link in caller.callees:
        if (link.name, link.is_qmp) == (name, is_qmp):
            break
    else:
        link = Link(name, is_qmp)
        caller.callees.append(link)
    link.count += 1
    link.failed += failed
    return link
