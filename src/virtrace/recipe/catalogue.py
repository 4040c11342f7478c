"""The recipes that come with virtrace, and how a name finds its recipe."""

from __future__ import annotations

import difflib
from pathlib import Path

from virtrace import resources
from virtrace.errors import RecipeError
from virtrace.recipe.folder import shipped_folder
from virtrace.recipe.loader import load_recipe
from virtrace.recipe.model import Recipe


def shipped() -> list[str]:
    return [file.stem for file in resources.matching(shipped_folder(), "*.yaml")]


def find_recipe(name: str) -> Recipe:
    """A shipped recipe by its name, or any other by its file (with a `/`, or ending in .yaml)."""
    return load_recipe(file_of(name))


def file_of(name: str) -> Path:
    if "/" in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in shipped():
        close = difflib.get_close_matches(name, shipped(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(
            f"there is no recipe {name!r}",
            f"{hint}shipped recipes: {', '.join(shipped())}; a file of your own: ./{name}.yaml",
        )
    return shipped_folder() / f"{name}.yaml"
