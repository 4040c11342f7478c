"""Boxes and arrows as SVG: a file of its own, or a part of a page, which has the colours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from virtrace import resources
from virtrace.report.highlight import Style, cells, cut, safe, shorten

CHARACTER = 7.8
LINE = 18
MARGIN = 12
# Between two rows of boxes, in pixels.
GAP = 36
_PAD = 10
_HEAD = 5
# Style sheets of a picture that is not part of a page.
SHEETS = ("palette.css", "drawing.css")
_STYLE = Style(unicode=True)
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[-_.: ])|(?=/)")


@cache
def style_sheet(name: str) -> str:
    """Return a style sheet by its file name."""
    return resources.text(Path(__file__).with_name("page") / name)


def wrapped(text: str, width: int, most: int = 3) -> list[str]:
    """Break text at word ends into at most ``most`` lines of ``width`` columns."""
    lines = [""]
    for word in _WORD_ENDS.split(safe(text, _STYLE)):
        while word:
            if lines[-1] and cells(lines[-1] + word.rstrip()) > width:
                lines.append("")
            end = cut(word, width)
            lines[-1] += word[:end]
            word = word[end:]
    if len(lines) > most:
        lines[most - 1 :] = [shorten("".join(lines[most - 1 :]), width, _STYLE)]
    return [line.rstrip() for line in lines]


@dataclass
class Box:
    """A box.

    lines: its text.
    notes: less important text below.
    x, y: top left corner, in pixels.
    least: minimum height, in pixels.
    """

    lines: Sequence[str]
    notes: Sequence[str] = ()
    kind: str = ""
    title: str = ""
    x: float = 0
    y: float = 0
    least: float = 0

    @property
    def width(self) -> float:
        return max(map(cells, (*self.lines, *self.notes))) * CHARACTER + 2 * _PAD

    @property
    def height(self) -> float:
        return max((len(self.lines) + len(self.notes)) * LINE + _PAD, self.least)

    @property
    def top(self) -> tuple[float, float]:
        """The middle of its upper edge."""
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """The middle of its lower edge."""
        return self.x + self.width / 2, self.y + self.height

    @property
    def left(self) -> tuple[float, float]:
        """Of its left edge, beside the first line."""
        return self.x, self.y + (LINE + _PAD) / 2

    @property
    def right(self) -> tuple[float, float]:
        """Of its right edge, beside the first line."""
        return self.x + self.width, self.y + (LINE + _PAD) / 2


@dataclass
class Drawing:
    """A drawing; later elements cover earlier ones. label: text for screen readers."""

    label: str
    _parts: list[ElementTree.Element] = field(default_factory=list)
    _width: float = 0
    _height: float = 0

    def box(self, box: Box) -> None:
        self._cover(box.x + box.width, box.y + box.height)
        group = self._add("g", {"class": f"box {box.kind}".strip()})
        if box.title:
            ElementTree.SubElement(group, "title").text = safe(box.title, _STYLE)
        place = {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "rx": 4}
        ElementTree.SubElement(group, "rect", _attributes(place))
        for index, line in enumerate((*box.lines, *box.notes)):
            baseline = box.y + _PAD / 2 + (index + 0.75) * LINE
            kind = "note" if index >= len(box.lines) else ""
            group.append(_text(line, box.top[0], baseline, kind))

    def arrow(
        self, points: Sequence[tuple[float, float]], kind: str = "", *, upwards: bool = False
    ) -> None:
        """Draw a line down through the points; upwards: with its head at the first, not the last.

        The line changes columns right below a point, in the gap between two rows.
        """
        (x, y), *rest = points
        path = f"M{x:.1f} {y:.1f}"
        for to_x, to_y in rest:
            if to_x != x:
                path += f"C{x:.1f} {y + GAP:.1f} {to_x:.1f} {y:.1f} {to_x:.1f} {y + GAP:.1f}"
            path += f"V{to_y:.1f}"
            x, y = to_x, to_y
        self._add("path", {"class": f"arrow {kind}".strip(), "d": path})
        (x, y), back = (points[0], _HEAD + 2) if upwards else (points[-1], -_HEAD - 2)
        head = f"M{x:.1f} {y:.1f}l{-_HEAD} {back}h{2 * _HEAD}z"
        self._add("path", {"class": "head", "d": head})

    def across(self, to: tuple[float, float], start: tuple[float, float]) -> None:
        """Draw an arrow that leads to the left."""
        (x, y), (start_x, start_y) = to, start
        # All that lead to one box come together in front of it.
        turn = start_x - GAP
        path = f"M{start_x:.1f} {start_y:.1f}C{turn:.1f} {start_y:.1f} {start_x:.1f} {y:.1f} "
        self._add("path", {"class": "arrow", "d": f"{path}{turn:.1f} {y:.1f}H{x:.1f}"})
        head = f"M{x:.1f} {y:.1f}l{_HEAD + 2} {-_HEAD}v{2 * _HEAD}z"
        self._add("path", {"class": "head", "d": head})

    def border(self, y: float, text: str) -> None:
        """Draw a dashed line over the whole width; the text at the bottom says what is below it."""
        place = {"x1": MARGIN, "x2": self._width - MARGIN, "y1": y, "y2": y}
        self._add("line", {"class": "border", **_attributes(place)})
        self._parts.append(_text(text, MARGIN, self._height + LINE / 2, "side"))
        self._cover(2 * MARGIN + cells(text) * CHARACTER, self._height + LINE / 2)

    def svg(self, *, alone: bool) -> str:
        """Return the element. alone: as a file, with its own colours and background."""
        size = {"width": self._width, "height": self._height}
        root = ElementTree.Element(
            "svg",
            {
                "class": "drawing",
                "role": "img",
                "aria-label": safe(self.label, _STYLE),
                "viewBox": f"0 0 {self._width:.1f} {self._height:.1f}",
                **_attributes(size),
            },
        )
        if alone:
            root.set("xmlns", "http://www.w3.org/2000/svg")
            ElementTree.SubElement(root, "title").text = safe(self.label, _STYLE)
            sheets = "".join(map(style_sheet, SHEETS))
            ElementTree.SubElement(root, "style").text = sheets
            ElementTree.SubElement(root, "rect", {"class": "ground", **_attributes(size)})
        root.extend(self._parts)
        return ElementTree.tostring(root, encoding="unicode")

    def _add(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        element = ElementTree.Element(tag, attributes)
        self._parts.append(element)
        return element

    def _cover(self, x: float, y: float) -> None:
        self._width, self._height = max(self._width, x + MARGIN), max(self._height, y + MARGIN)


def _attributes(numbers: dict[str, float]) -> dict[str, str]:
    return {name: f"{number:.1f}".removesuffix(".0") for name, number in numbers.items()}


def _text(text: str, x: float, y: float, kind: str) -> ElementTree.Element:
    # The length is given so that the text fits whatever the font is.
    length = {"x": x, "y": y, "textLength": cells(text) * CHARACTER}
    attributes = {"class": kind} if kind else {}
    element = ElementTree.Element("text", {**attributes, **_attributes(length)})
    element.text = text
    return element
