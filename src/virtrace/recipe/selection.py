"""Which calls of a recipe to record, when to stop, and what a trace may cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from virtrace.errors import UsageError
from virtrace.recipe.model import Recipe


@dataclass(frozen=True)
class Selection:
    """What of a recipe to record.

    where: required values at the entry of a root, as text, by capture
    calls: how many calls to record
    seconds: how long to record
    """

    where: Mapping[str, str] = field(default_factory=dict)
    calls: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a trace may cost. docs/safety.md explains the defaults.

    stop_ms: how long a call may be held in total, ms
    load: how much of each second threads may be stopped, percent
    events: most events in the trace
    bytes: largest size of the trace
    """

    stop_ms: float = 2000
    load: float = 80
    events: int = 1_000_000
    bytes: int = 1_000_000_000


# By the name of the option: the placeholder of its value, and its help.
# Of events and bytes: more than fits on any disk.
_MOST_RECORDED = 1e15
LIMITS = {
    "max-stop-ms": (
        "N",
        "hold no call for more than N ms in total (default 2000); probes beyond are switched off",
    ),
    "max-load": (
        "PERCENT",
        "stop threads for at most this share of each second (default 80); probes beyond are "
        "switched off",
    ),
    "max-events": ("N", "end after N events (default 1000000)"),
    "max-bytes": ("N", "end when the trace has N bytes (default 1000000000)"),
}


def limits(given: Mapping[str, str]) -> Limits:
    """Parse the values of options.

    given: the values by the names of LIMITS; the default counts if one is empty or missing

    Raises: UsageError if a value is invalid
    """
    default = Limits()
    load = _positive("max-load", given.get("max-load"), float) or default.load
    if load > 100:
        raise UsageError("max-load must be at most 100 (percent)", "give a smaller max-load")
    return Limits(
        _positive("max-stop-ms", given.get("max-stop-ms"), float) or default.stop_ms,
        load,
        _positive("max-events", given.get("max-events"), int, _MOST_RECORDED) or default.events,
        _positive("max-bytes", given.get("max-bytes"), int, _MOST_RECORDED) or default.bytes,
    )


class Rotation(NamedTuple):
    """When a recording continues in a new file.

    size: bytes after which a new file begins
    keep: how many files to keep; None: all
    """

    size: int
    keep: int | None


def rotation(rotate: str | None, keep: str | None) -> Rotation | None:
    """Parse the values of the options `--rotate` and `--keep`; None stands for one file.

    Raises: UsageError if a value is invalid
    """
    size = _positive("rotate", rotate, int, _MOST_RECORDED)
    if size is not None:
        return Rotation(size, _positive("keep", keep, int))
    if keep:
        raise UsageError(
            "keep has no meaning without rotate: there is one file", "give rotate, too"
        )
    return None


def parse_selection(
    recipe: Recipe, where: Iterable[str], calls: str | None, seconds: str | None
) -> Selection:
    """Parse the values of options; the recipe's own selection counts for those not given.

    where: ``KEY=VALUE`` texts

    Raises: UsageError if a value is invalid
    """
    if not recipe.roots and calls:
        raise _no_calls(recipe)
    return Selection(
        {**recipe.where, **filters(recipe, where)},
        _positive("calls", calls, int) or recipe.calls,
        _positive("seconds", seconds, float) or recipe.seconds,
    )


def filters(recipe: Recipe, where: Iterable[str]) -> dict[str, str]:
    """Parse ``KEY=VALUE`` texts.

    Raises: UsageError if one is invalid
    """
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
        wanted[key] = _name(value, text)
    return wanted


def _name(value: str, text: str) -> str:
    """Decode a value as UTF-8, whatever the locale decoded it as."""
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} has an incomplete character", "give another value") from error


def _no_calls(recipe: Recipe) -> UsageError:
    return UsageError(
        f"the recipe {recipe.name} traces no calls to select or count",
        "end it with Ctrl-C, --seconds or `-- COMMAND`",
    )


Number = TypeVar("Number", int, float)


def _positive(what: str, text: str | None, kind: type[Number], below: float = 1e9) -> Number | None:
    if not text:
        return None
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < below:
        kind_of = "whole number" if kind is int else "number"
        raise UsageError(
            f"invalid value {text!r} for {what}", f"give a {kind_of} above 0, below {below:,.0f}"
        )
    return number
