"""The folders of shipped recipes and fragments, and the schema of the recipe format."""

from __future__ import annotations

import functools
from pathlib import Path


def shipped_folder() -> Path:
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    # In a checkout the recipes are at the top, where a reader looks for them.
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def fragments_folder() -> Path:
    """Return the folder of the points that recipes share."""
    return shipped_folder() / "fragments"


@functools.cache
def fragments() -> tuple[str, ...]:
    """Return the names that a recipe can `use`."""
    return tuple(sorted(file.stem for file in fragments_folder().glob("*.yaml")))


def schema_file() -> Path:
    """Return the JSON Schema of the recipe format."""
    return Path(__file__).with_name("schema.json")
