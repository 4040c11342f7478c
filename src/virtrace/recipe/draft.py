"""Recipes that are written by the toolkit: spans, and in comments what a recipe cannot say."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from virtrace.errors import UsageError
from virtrace.recipe import loader, path

_LONGEST_COMMENT = 4000
_COLUMNS = 98
_ONE_LINE = 1 << 16


@dataclass
class Item:
    """A span or a point, as a recipe has it, and what to say of it."""

    data: Mapping[str, Any]
    comments: Sequence[str] = ()


@dataclass
class Draft:
    """A span. declaration: the function's prototype; without it only its name is known.

    lines: None where its source lines are not wanted.
    """

    function: str
    module: str
    declaration: str | None = None
    root: bool = False
    enter: dict[str, str] = field(default_factory=dict)
    exit: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] | None = None
    comments: list[str] = field(default_factory=list)

    def item(self) -> Item:
        known = {"prototype": self.declaration} if self.declaration else {"function": self.function}
        data: dict[str, Any] = {**known, "module": self.module}
        if self.root:
            data["root"] = True
        for key, captures in (("enter", self.enter), ("exit", self.exit)):
            if captures:
                data[key] = captures
        if self.lines is not None:
            data["lines"] = self.lines
        return Item(data, self.comments)


class _Names:
    """The names on a chain (path.Visitor)."""

    def start(self, name: str) -> tuple[str, ...]:
        return (name,)

    def member(self, base: tuple[str, ...], name: str) -> tuple[str, ...]:
        return (*base, name)

    def target(self, base: tuple[str, ...]) -> tuple[str, ...]:
        return base


def add(captures: dict[str, str], wanted: path.Path) -> str:
    """Add a capture, if it is new; return its name. Raises ValueError: the mapping is full."""
    for name, text in captures.items():
        if text == wanted.text:
            return name
    if len(captures) == loader.MAX_VALUES:
        raise ValueError(f"a recipe has at most {loader.MAX_VALUES} values in one place")
    parts = path.follow(wanted.chains[0], _Names())
    names = [parts[-1], "_".join(parts), *(f"{parts[-1]}_{n}" for n in range(2, 99))]
    free = next(name for name in names if name not in captures)
    captures[free] = wanted.text
    return free


def recipe_text(
    name: str,
    about: str,
    try_: str,
    spans: Sequence[Item],
    *,
    head: Iterable[str] = (),
    where: Mapping[str, str] | None = None,
    left_out: Iterable[str] = (),
    points: Iterable[Item] = (),
) -> str:
    """Make a recipe, and read it back. Raises UsageError: more than a recipe can hold.

    head, left_out: comments, above it and behind its spans.
    """
    lines = [line for words in head for line in _comment(words, "")]
    lines += ["virtrace: 1", f"name: {_scalar(name)}", "about: |"]
    lines += [f"  {line}" for line in about.splitlines()]
    lines.append(f"try: {_scalar(try_)}")
    if where:
        lines.append(f"where: {_scalar(where)}")
    lines += ["", "spans:"]
    for span in spans:
        lines += _item(span)
    lines += [line for words in left_out for line in _comment(words, "  ")]
    point_lines = [line for point in points for line in _item(point)]
    if point_lines:
        lines += ["", "points:", *point_lines]
    recipe = "\n".join(lines) + "\n"
    if len(spans) > loader.MAX_PROBES or len(recipe.encode()) > loader.MAX_BYTES:
        raise UsageError(
            f"{len(spans)} functions with their captures are more than a recipe can hold",
            "delete some of the breakpoints and displays",
        )
    loader.loads(recipe.encode(), f"recipe {name}")
    return recipe


def _item(item: Item) -> Iterator[str]:
    """Yield an element of a list, one key a line."""
    for words in item.comments:
        yield from _comment(words, "  ")
    for number, (key, value) in enumerate(item.data.items()):
        yield f"  {' ' if number else '-'} {key}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    """Write a value in one line."""
    plain = dict(value) if isinstance(value, Mapping) else value
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=_ONE_LINE)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(words: str, indent: str) -> list[str]:
    """Wrap a text, which a user may have typed, as comment lines."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in words)
    if len(shown) > _LONGEST_COMMENT:
        shown = shown[:_LONGEST_COMMENT] + "..."
    prefix = f"{indent}# "
    return textwrap.wrap(
        shown,
        _COLUMNS,
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )
