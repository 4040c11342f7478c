"""The kinds of a trace's values, derived from the recipe that captured them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from virtrace import resources
from virtrace.bundle import words
from virtrace.bundle.redact.context import Context, Names
from virtrace.bundle.redact.harmless import is_code, is_common_file
from virtrace.bundle.redact.kinds import kind_of_key, kind_of_path
from virtrace.bundle.redact.prose import redact_prose
from virtrace.bundle.redact.shapes import FRAME
from virtrace.bundle.redact.texts import Texts
from virtrace.recipe import catalogue
from virtrace.recipe.folder import schema_file
from virtrace.targets.libvirt import public_api
from virtrace.trace.format import Json, Record, is_unavailable

# A name in a recipe, of a probe, or of a captured value.
NAME = re.compile(r"\w[\w.@+-]*")
POINTER = re.compile("0x[0-9a-f]{1,16}")


@dataclass(frozen=True)
class Captures:
    """The captures of a recipe.

    is_shipped: whether the recipe is one of virtrace's own; its names stay.
    kinds: kind of the values under a name, by their capture paths; "" if those say nothing.
    by_domain: names of values that are objects with a key for each guest.
    backtraces: names of values that are backtraces.
    """

    is_shipped: bool
    kinds: Mapping[str, str]
    by_domain: frozenset[str]
    backtraces: frozenset[str]

    @classmethod
    def of(cls, recipe: Record) -> Captures:
        shipped = _is_shipped(recipe)
        captured = list(_captured(recipe))
        kinds: dict[str, set[str]] = {}
        for name, path in captured:
            kinds.setdefault(name, set()).add(kind_of_path(path) or "")
        return cls(
            shipped,
            # If probes capture different things under one name, only the name says what they are.
            {
                name: found.pop() if len(found) == 1 else ""
                for name, found in kinds.items()
                if not shipped or found != {""}
            },
            frozenset(name for name, path in captured if path.startswith("records(")),
            frozenset(name for name, path in captured if path.startswith("backtrace(")),
        )

    def redact_key(self, texts: Texts, key: str, context: Context) -> str:
        return texts.key(key, context) if self.is_shipped else redact_name(texts.names, key)

    def redact_value(self, texts: Texts, key: str, value: Json, context: Context) -> Json:
        if isinstance(value, dict) and key in self.by_domain and not is_unavailable(value):
            return {
                texts.names.add("domain", domain): texts.value(params, "", context)
                for domain, params in value.items()
            }
        if isinstance(value, list) and key in self.backtraces and all(map(_is_frame, value)):
            return [
                redact_prose(texts, frame, context, code=True)
                if isinstance(frame, str)
                else texts.value(frame, "", context)
                for frame in value
            ]
        kind = self.kinds.get(key)
        if isinstance(value, str):
            if POINTER.fullmatch(value) and kind_of_key(key) is None:
                return value
            if kind == "" and not self.is_shipped and kind_of_key(key) is None:
                return texts.unknown(value, context)
            return texts.text(value, kind or key, context)
        return texts.value(value, kind or key, context)

    def redact_filters(self, texts: Texts, filters: Record, context: Context) -> Record:
        """The filters of a selection, by the names of captured values."""
        return {
            redact_name(texts.names, key): self.redact_value(texts, key, value, context)
            for key, value in filters.items()
        }


def redact_name(names: Names, name: Json) -> str:
    """The name of a probe, function, module or value: in a user's recipe it can be private."""
    text = str(name)
    return text if _is_public(text) else names.add("text", text)


def _is_public(name: str) -> bool:
    """Whether libvirt, QEMU or a recipe of virtrace has it."""
    return is_common_file(name) or is_code(name) or name in _public() or words.is_name(name)


@functools.cache
def _public() -> frozenset[str]:
    shipped = (json.dumps(_raw(name)) for name in catalogue.shipped())
    public = frozenset(public_api.functions()).union(_keys_of_recipes())
    return public.union(*map(NAME.findall, shipped))


def _keys_of_recipes() -> Iterator[str]:
    """Yield the keys that the recipe format has, some more than once."""
    rest: list[Json] = [json.loads(resources.text(schema_file()))]
    while rest:
        node = rest.pop()
        if isinstance(node, dict):
            yield from node.get("properties", ())
            rest += node.values()
        elif isinstance(node, list):
            rest += node


def _is_shipped(recipe: Record) -> bool:
    name = recipe.get("name")
    return (
        isinstance(name, str)
        and name in catalogue.shipped()
        and _comparable(_raw(name)) == _comparable(recipe)
    )


def _comparable(recipe: Record) -> Record:
    """The recipe without the order of its points, which another virtrace can have expanded."""
    points = recipe.get("points")
    by_text = sorted(map(json.dumps, points)) if isinstance(points, list) else points
    return {**recipe, "points": by_text}


@functools.cache
def _raw(name: str) -> Record:
    """A shipped recipe; both passes ask for it."""
    return dict(catalogue.find_recipe(name).raw)


def _captured(recipe: Json) -> Iterator[tuple[str, str]]:
    """Names and paths of everything that a recipe captures."""
    rest: list[tuple[str, Json]] = [("", recipe)]
    while rest:
        key, value = rest.pop()
        if isinstance(value, dict):
            rest += list(value.items())
        elif isinstance(value, list):
            rest += [(key, item) for item in value]
        elif isinstance(value, str):
            yield key, value


def _is_frame(value: Json) -> bool:
    return is_unavailable(value) or (isinstance(value, str) and bool(FRAME.fullmatch(value)))
