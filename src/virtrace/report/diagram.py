"""The call chain as a picture: functions as boxes, calls as arrows, QMP commands at the bottom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from virtrace import wording
from virtrace.analysis.chain import Link
from virtrace.report.drawing import GAP, LINE, MARGIN, Box, Drawing, wrapped
from virtrace.report.highlight import Style, safe

_NAME_WIDTH = 26
_BESIDE = 20
_UNSAFE_IN_MERMAID = re.compile("[^A-Za-z0-9 _.,-]")
_BORDER = "QMP: answered by QEMU"


def chain_svg(chains: Sequence[Link], *, alone: bool) -> str:
    """Draw the picture as SVG. alone: as a file of its own, not as a part of a page."""
    drawing = Drawing("callers and callees, down to the QMP commands")
    placed = _placed(chains)
    for node in placed:
        if node.caller is not None:
            drawing.arrow([node.caller.box.bottom, node.box.top])
    for node in placed:
        drawing.box(node.box)
    bottom = min((node.box.y for node in placed if node.link.is_qmp), default=None)
    if bottom is not None:
        drawing.border(bottom - 2 * LINE, _BORDER)
    return drawing.svg(alone=alone)


def mermaid(chains: Sequence[Link]) -> Iterator[str]:
    """Yield the lines of a flowchart in Mermaid's language."""
    yield "flowchart TD"
    nodes = _preorder(chains)
    names = {id(node): f"n{index}" for index, node in enumerate(nodes)}
    for is_qmp in (False, True):
        group = [node for node in nodes if node.link.is_qmp == is_qmp]
        if is_qmp and group:
            yield f'  subgraph qemu["{_escaped(_BORDER)}"]'
        for node in group:
            text = "<br>".join(map(_escaped, (_name(node.link), *_notes(node.link))))
            yield f'  {names[id(node)]}["{text}"]'
        if is_qmp and group:
            yield "  end"
    for node in nodes:
        if node.caller is not None:
            yield f"  {names[id(node.caller)]} --> {names[id(node)]}"


@dataclass
class _Node:
    link: Link
    caller: _Node | None
    depth: int
    box: Box
    callees: list[_Node] = field(default_factory=list)
    # In columns, of everything below it.
    width: float = 0


def _preorder(chains: Sequence[Link]) -> list[_Node]:
    nodes: list[_Node] = []
    rest: list[tuple[Link, _Node | None]] = [(link, None) for link in reversed(chains)]
    while rest:
        link, caller = rest.pop()
        kinds = [kind for kind, holds in (("qmp", link.is_qmp), ("bad", link.failed)) if holds]
        name = _name(link)
        box = Box(wrapped(name, _NAME_WIDTH), _notes(link), " ".join(kinds), name)
        node = _Node(link, caller, caller.depth + 1 if caller else 0, box)
        if caller:
            caller.callees.append(node)
        nodes.append(node)
        rest.extend((callee, node) for callee in reversed(link.callees))
    return nodes


def _placed(chains: Sequence[Link]) -> list[_Node]:
    """Place functions above their callees, in rows by depth; QMP commands in the last row."""
    nodes = _preorder(chains)
    functions = [node.depth for node in nodes if not node.link.is_qmp]
    for node in nodes:
        if node.link.is_qmp:
            node.depth = max(functions) + 1
    for node in reversed(nodes):
        below = sum(callee.width for callee in node.callees) + _BESIDE * (len(node.callees) - 1)
        node.width = max(node.box.width, below)
    heights: dict[int, float] = {}
    for node in nodes:
        heights[node.depth] = max(heights.get(node.depth, 0), node.box.height)
    tops, y = {}, float(MARGIN)
    for depth in sorted(heights):
        tops[depth] = y + (LINE * 2 if depth > max(functions) else 0)
        y += heights[depth] + GAP
    left = float(MARGIN)
    lefts: dict[int, float] = {}
    for node in nodes:
        if node.caller is None:
            start, left = left, left + node.width + _BESIDE
        else:
            start = lefts[id(node.caller)]
            lefts[id(node.caller)] += node.width + _BESIDE
        below = sum(callee.width for callee in node.callees) + _BESIDE * (len(node.callees) - 1)
        lefts[id(node)] = start + (node.width - below) / 2
        node.box.x = start + (node.width - node.box.width) / 2
        node.box.y = tops[node.depth]
    return nodes


def _name(link: Link) -> str:
    return link.name or "command of unknown name"


def _notes(link: Link) -> list[str]:
    notes = [] if link.count == 1 else [f"{link.count:,} times"]
    if link.failed:
        notes.append(f"{link.failed:,} failed")
    if link.again:
        notes.append(f"calls itself, {wording.count(link.again, 'time')}")
    return notes


def _escaped(text: str) -> str:
    """Replace characters that may be syntax of Mermaid by its entity codes."""
    return _UNSAFE_IN_MERMAID.sub(
        lambda match: f"#{ord(match[0])};", safe(text, Style(unicode=True))
    )
