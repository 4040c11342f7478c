"""libvirt's public API, as C declares it: it never changes, so that no version needs its own.

public-api.txt is made by tools/public-api.py of the API description that libvirt installs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from virtrace.recipe import prototype
from virtrace.recipe.prototype import Prototype


@cache
def functions() -> dict[str, Prototype]:
    """By name."""
    text = Path(__file__).with_name("public-api.txt").read_text(encoding="ascii")
    declared = map(prototype.parse, text.splitlines())
    return {one.name: one for one in declared}
