"""What ran when on which thread: bars, and arrows to QEMU and back, in percent of the width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Child, Point, Span
from virtrace.report import units
from virtrace.trace.roles import ERROR

_ROW = 20
_BAR = 17
# Characters that fit into a bar, for each percent of a wide window.
_CHARACTERS = 1.6
# The lane of QEMU, which is not a thread of libvirt.
_QEMU = None
# More levels of nested functions would not make the picture clearer.
_DEEPEST = 12


@dataclass(frozen=True)
class Bar:
    """A bar. x, width: in percent. y: in pixels. target: the anchor of what it shows."""

    kind: str
    name: str
    title: str
    x: float
    width: float
    y: int
    target: str


@dataclass(frozen=True)
class Arrow:
    """An arrow. x: in percent. top, bottom: in pixels."""

    x: float
    top: int
    bottom: int


@dataclass
class Timeline:
    """A timeline. lanes: names and positions, in pixels. start, end: as text."""

    start: str
    end: str
    height: int
    lanes: list[tuple[str, int]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)


def timeline(calls: Sequence[tuple[str, Call]], anchors: dict[int, str] | None) -> Timeline:
    """Draw one call or several, each with its anchor.

    anchors: of each node, by its ``id()``, to show everything that happened; None to show the calls
    as a whole, with their QMP commands.
    """
    shown = [item for anchor, call in calls for item in _items(anchor, call, anchors)]
    start = min(_start(item.node) for item in shown)
    end = max(max(_end(item.node) or start for item in shown), start + 1)
    lanes = _lanes(shown)
    tops: dict[int | None, int] = {}
    drawn = Timeline(f"+{units.seconds(start)}", units.duration(end - start), 0)
    for lane, rows in lanes.items():
        name = "QEMU" if lane == _QEMU else f"thread {lane}"
        drawn.lanes.append((name, drawn.height + _ROW - 5))
        tops[lane] = drawn.height + _ROW
        drawn.height += (rows + 1) * _ROW

    def across(t_ns: int) -> float:
        return round(100 * (t_ns - start) / (end - start), 2)

    for item in shown:
        node = item.node
        x, ended = across(_start(node)), _end(node)
        width = round((100 if ended is None else across(ended)) - x, 2)
        took = "its end was not seen" if ended is None else units.duration(ended - _start(node))
        name, kind = _told(node)
        y = tops[item.lane] + item.row * _ROW
        inside = name if anchors is not None and len(name) <= width * _CHARACTERS else ""
        drawn.bars.append(Bar(kind, inside, f"{name}, {took}", x, width, y, item.target))
        if item.lane == _QEMU and isinstance(node, Exchange):
            caller = tops[node.send.tid] + item.caller * _ROW + _BAR
            drawn.arrows.append(Arrow(x, caller, y))
            if node.reply is not None:
                there, back = across(node.reply.t_ns), tops[node.reply.tid]
                drawn.arrows.append(Arrow(there, back, y))
                drawn.bars.append(Bar("qmp", "", f"reply to {name}", there, 0, back, item.target))
    return drawn


@dataclass(frozen=True)
class _Item:
    """row: below the top of its lane. caller: row of the function in which it happened."""

    node: Child
    lane: int | None
    row: int
    caller: int
    target: str


def _items(anchor: str, call: Call, anchors: dict[int, str] | None) -> Iterator[_Item]:
    rest: list[tuple[Child, int]] = [(call.root, 0)]
    while rest:
        node, depth = rest.pop()
        row = min(depth, _DEEPEST) if anchors is not None else 0
        caller = max(row - 1, 0)
        target = anchors.get(id(node), anchor) if anchors is not None else anchor
        if isinstance(node, Span):
            rest.extend((child, depth + 1) for child in reversed(node.children))
            if anchors is not None or node is call.root:
                yield _Item(node, node.tid, row, caller, target)
        elif isinstance(node, Exchange):
            lane, row = (_QEMU, 0) if node.is_qmp else (node.send.tid, caller)
            yield _Item(node, lane, row, caller, target)
        elif node.event.type != "line":
            yield _Item(node, node.event.tid, caller, caller, target)


def _lanes(items: Sequence[_Item]) -> dict[int | None, int]:
    """Return the number of rows of each thread: in the order of their first event, then QEMU."""
    lanes: dict[int | None, int] = {}
    for item in items:
        if item.lane != _QEMU:
            lanes[item.lane] = max(lanes.get(item.lane, 0), item.row + 1)
    in_qemu = [item.node for item in items if item.lane == _QEMU]
    for exchange in in_qemu:
        # A forged trace can have a thread of this number.
        if not isinstance(exchange, Exchange):
            continue
        lanes.setdefault(exchange.send.tid, 1)
        if exchange.reply is not None:
            lanes.setdefault(exchange.reply.tid, 1)
    return {**lanes, _QEMU: 1} if in_qemu else lanes


def _start(node: Child) -> int:
    return node.event.t_ns if isinstance(node, Point) else node.t_enter_ns


def _end(node: Child) -> int | None:
    """Return when a node ended, ns; None if that was not seen."""
    if isinstance(node, Point):
        return node.event.t_ns
    if isinstance(node, Span):
        return node.t_exit_ns
    return None if node.reply is None else node.reply.t_ns


def _told(node: Child) -> tuple[str, str]:
    """Return the name of a node, and the class of its bar."""
    if isinstance(node, Point):
        return node.event.name, "error" if node.event.role == ERROR else "point"
    if isinstance(node, Exchange):
        return node.command or "command of unknown name", "qmp" if node.is_qmp else "point"
    return node.name, "failed" if node.failed else "span"
