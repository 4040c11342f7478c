"""The folders of shipped recipes and fragments, and the schema of the recipe format."""

from __future__ import annotations

import functools
from pathlib import Path

from virtrace import resources


def shipped_folder() -> Path:
    installed = resources.PACKAGE / "recipes"
    # In a checkout the recipes are at the top, where a reader looks for them.
    is_there = resources.IS_ONE_FILE or installed.is_dir()
    return installed if is_there else resources.PACKAGE.parents[1] / "recipes"


def fragments_folder() -> Path:
    """Return the folder of the points that recipes share."""
    return shipped_folder() / "fragments"


@functools.cache
def fragments() -> tuple[str, ...]:
    """Return the names that a recipe can `use`."""
    return tuple(sorted(file.stem for file in resources.matching(fragments_folder(), "*.yaml")))


def schema_file() -> Path:
    """Return the JSON Schema of the recipe format."""
    return Path(__file__).with_name("schema.json")
