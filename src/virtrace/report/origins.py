"""The origins of the three numbers as a picture: the answer on top, QEMU or the host below.

A step from which several numbers were taken is drawn once. Alternatives are dashed. Ids of QMP
commands are left out, so that calls with the same story have the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from virtrace.analysis.lineage import Lineage, Origin
from virtrace.report import units
from virtrace.report.drawing import GAP, MARGIN, Box, Drawing, wrapped

_WIDTH = 26
_BESIDE = 14
_LAYERS = {"api": 0, "driver": 1, "struct": 2, "qmp": 3, "host": 3, "qemu": 4}


@dataclass
class _Node:
    """A step, or the place where an arrow crosses a layer, which has no box.

    column: of its middle; adjacent boxes are at 0, 1, 2.
    to: the nodes whose source it is, and for alternatives how many columns beside them.
    """

    layer: int
    box: Box | None
    column: float
    to: list[tuple[_Node, float]] = field(default_factory=list)
    top: tuple[float, float] = (0, 0)
    bottom: tuple[float, float] = (0, 0)


def origins_svg(lineages: Sequence[Lineage]) -> str:
    """Draw the picture as a part of a page."""
    drawing = Drawing("where the numbers came from")
    nodes = _placed(lineages)
    for node in nodes:
        if node.box is None:
            continue
        for to, aside in node.to:
            points = [node.top]
            while to.box is None:
                points += [to.bottom, to.top]
                [(to, aside)] = to.to
            kind = "maybe" if aside else ""
            drawing.arrow([to.bottom, *reversed(points)], kind, upwards=True)
    for node in nodes:
        if node.box is not None:
            drawing.box(node.box)
    return drawing.svg(alone=False)


def _placed(lineages: Sequence[Lineage]) -> list[_Node]:
    layers: dict[int, list[_Node]] = {}
    for node in _nodes(lineages):
        layers.setdefault(node.layer, []).append(node)
    boxes = [node.box for layer in layers.values() for node in layer if node.box is not None]
    pitch = max(box.width for box in boxes) + _BESIDE
    for _, layer in sorted(layers.items()):
        _spread(layer)
    nodes = [node for _, layer in sorted(layers.items()) for node in layer]
    left = min(node.column for node in nodes) - 0.5
    y = float(MARGIN)
    for _, layer in sorted(layers.items()):
        height = max(node.box.height for node in layer if node.box is not None)
        for node in layer:
            x = MARGIN + (node.column - left) * pitch
            node.top, node.bottom = (x, y), (x, y + height)
            if node.box is not None:
                node.box.x, node.box.y, node.box.least = x - node.box.width / 2, y, height
        y += height + GAP
    return nodes


def _spread(layer: list[_Node]) -> None:
    """Place each node below the node that it leads to, without overlap."""
    for node in layer:
        if len(node.to) == 1:
            node.column = node.to[0][0].column + node.to[0][1]
        elif node.to:
            node.column = sum(to.column for to, _ in node.to) / len(node.to)
    layer.sort(key=lambda node: node.column)
    wanted = sum(node.column for node in layer)
    for before, node in zip(layer, layer[1:]):
        node.column = max(node.column, before.column + 1)
    shift = (sum(node.column for node in layer) - wanted) / len(layer)
    for node in layer:
        node.column -= shift


def _nodes(lineages: Sequence[Lineage]) -> list[_Node]:
    """Return the nodes, answers first, each before its sources."""
    used = {_LAYERS[step.kind] for lineage in lineages for step in lineage.steps()}
    nodes: list[_Node] = []
    known: dict[tuple[object, ...], _Node] = {}
    for column, lineage in enumerate(lineages):
        rest: list[tuple[Origin, list[tuple[_Node, float]]]] = [(lineage.answer, [])]
        while rest:
            step, to = rest.pop(0)
            layer = _LAYERS[step.kind]
            for passed in sorted(used):
                if to and to[0][0].layer < passed < layer:
                    nodes.append(_Node(passed, None, column, to))
                    to = [(nodes[-1], 0)]
            key = (step.kind, step.where, step.path, step.value, step.meaning)
            if key in known:
                known[key].to += to
                continue
            node = known[key] = _Node(layer, _box(step, lineage), column, to)
            nodes.append(node)
            several = len(step.sources) - 1
            for index, source in enumerate(step.sources):
                # The middle one of three is an alternative too: beside it by an invisible distance.
                aside = index - several / 2 or (1e-9 if several else 0)
                rest.append((source, [(node, aside)]))
    return nodes


def _box(step: Origin, lineage: Lineage) -> Box:
    where = step.where.rpartition(" libvirt-")[0] if step.kind == "qmp" else ""
    lines = wrapped(where or step.where, _WIDTH)
    notes = wrapped(step.path, _WIDTH) if step.path else []
    value = "unknown" if step.value is None else units.quantity(lineage.number, step.value)
    if step.kind == "api":
        lines, notes = [lineage.number, value], [*lines, *notes]
    elif not step.missing and (not step.sources or step.value != lineage.answer.value):
        notes.append(value)
    if step.meaning:
        notes += wrapped(step.meaning, _WIDTH)
    if step.missing:
        notes += wrapped(f"unavailable: {step.missing}", _WIDTH)
    kind = f"{step.kind} unknown" if step.missing else step.kind
    return Box(lines, notes, kind)
