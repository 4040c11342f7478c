"""Recipes that are written by the toolkit: spans, and in comments what a recipe cannot say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from virtrace.errors import UsageError
from virtrace.recipe import loader, path

_LONGEST_COMMENT = 300
_ONE_LINE = 1 << 16


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


def add(captures: dict[str, str], wanted: path.Path) -> str:
    """Under a name of its own, which is returned; ValueError where the mapping is full."""
    for name, text in captures.items():
        if text == wanted.text:
            return name
    if len(captures) == loader.MAX_VALUES:
        raise ValueError(f"a recipe has at most {loader.MAX_VALUES} values in one place")
    parts = (wanted.name, *wanted.members)
    names = [parts[-1], "_".join(parts), *(f"{parts[-1]}_{n}" for n in range(2, 99))]
    free = next(name for name in names if name not in captures)
    captures[free] = wanted.text
    return free


def text(
    name: str,
    about: str,
    try_: str,
    where: Mapping[str, str],
    spans: Sequence[Draft],
    comments: Iterable[str],
) -> str:
    """A recipe that was read back. UsageError where it is more than a recipe can hold."""
    lines = ["virtrace: 1", f"name: {name}", "about: |", *_indented(about.splitlines(), 2)]
    lines.append(f"try: {_quoted(try_)}")
    if where:
        lines += ["where:", *(f"  {_quoted(key)}: {_text(where[key])}" for key in where)]
    lines += ["", *map(_comment, comments), "spans:"]
    for span in spans:
        lines += _indented(_span(span), 2)
    recipe = "\n".join(lines) + "\n"
    if len(spans) > loader.MAX_PROBES or len(recipe.encode()) > loader.MAX_BYTES:
        raise UsageError(
            f"{len(spans)} functions with what is looked at there are more than a recipe can hold",
            "delete some of the breakpoints and displays",
        )
    loader.loads(recipe.encode(), f"recipe {name}")
    return recipe


def _span(span: Draft) -> Iterator[str]:
    yield from map(_comment, span.comments)
    if span.declaration:
        yield f"- prototype: {_quoted(span.declaration)}"
    else:
        yield f"- function: {span.function}"
    yield f"  module: {span.module}"
    if span.root:
        yield "  root: true"
    for key in ("enter", "exit", "lines"):
        captures: Mapping[str, str] | None = getattr(span, key)
        if captures:
            yield f"  {key}:"
            yield from (f"    {_quoted(name)}: {_quoted(captures[name])}" for name in captures)
        elif captures is not None and key == "lines":
            yield "  lines: {}"


def _quoted(plain: str) -> str:
    """A scalar of YAML: a name, a declaration or a capture, which has no character to escape."""
    return f"'{plain}'" if plain.startswith("*") or plain.lower() == "null" else plain


def _text(value: str) -> str:
    """Whatever it is."""
    return yaml.safe_dump(value, default_style='"', width=_ONE_LINE).strip()


def _comment(words: str) -> str:
    """On one line, whatever somebody typed."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in words)
    return f"# {shown if len(shown) <= _LONGEST_COMMENT else shown[:_LONGEST_COMMENT] + '...'}"


def _indented(lines: Iterable[str], by: int) -> list[str]:
    return [" " * by + line for line in lines]
