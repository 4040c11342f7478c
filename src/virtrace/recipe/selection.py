"""Which calls of a recipe to record, and when to stop: filters and limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from virtrace.errors import UsageError
from virtrace.recipe.model import Recipe


@dataclass(frozen=True)
class Selection:
    """where: values at a root's entry, as text. calls: root calls. seconds: of tracing."""

    where: Mapping[str, str] = field(default_factory=dict)
    calls: int | None = None
    seconds: float | None = None


def parse(
    recipe: Recipe, where: Iterable[str], calls: str | None, seconds: str | None
) -> Selection:
    """What is given, and what the recipe itself says of the rest.

    where: ``KEY=VALUE`` texts. UsageError where one of the three cannot be meant.
    """
    if not recipe.roots and calls:
        raise _no_calls(recipe)
    return Selection(
        {**recipe.where, **filters(recipe, where)},
        _positive("calls", calls, int) or recipe.calls,
        _positive("seconds", seconds, float) or recipe.seconds,
    )


def filters(recipe: Recipe, where: Iterable[str]) -> dict[str, str]:
    """Only those that are given."""
    wanted = {}
    for text in where:
        if not recipe.roots:
            raise _no_calls(recipe)
        key, equals, value = text.partition("=")
        if not equals or key not in recipe.filters:
            raise UsageError(
                f"{text!r} is not a filter of the recipe {recipe.name}",
                f"KEY=VALUE with KEY one of: {', '.join(recipe.filters)}",
            )
        wanted[key] = value
    return wanted


def _no_calls(recipe: Recipe) -> UsageError:
    return UsageError(
        f"the recipe {recipe.name} traces no calls that could be chosen or counted",
        "end it with Ctrl-C, --seconds or `-- COMMAND`",
    )


Number = TypeVar("Number", int, float)


def _positive(what: str, text: str | None, kind: type[Number]) -> Number | None:
    if not text:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < 1e9:
        raise UsageError(f"{text!r} is no number of {what}", f"give {what} above 0")
    return number
