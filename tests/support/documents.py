"""What the tests of each documented JSON format share."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support.paths import DOCS


def documented_names(page: str) -> set[str]:
    """What a page of docs/ names as a key, with or without where it stands."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return set(re.findall(r"`(?:[\w.\[\]]+\.)?(\w+)`", text))


def keys(schema: Any) -> Iterator[str]:
    """Every key that a JSON Schema describes, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        yield from (key for inner in schema.values() for key in keys(inner))
    elif isinstance(schema, list):
        yield from (key for inner in schema for key in keys(inner))


def lacking(document: Any, path: Sequence[Any]) -> Any:
    """A copy of the document that lacks what stands at this path."""
    broken = copy.deepcopy(document)
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return broken
