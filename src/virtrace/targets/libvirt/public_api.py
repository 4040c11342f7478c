"""The declarations of libvirt's public API. They never change, so one list serves all versions.

tools/public-api.py makes public-api.txt from the API description that libvirt installs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from virtrace import resources
from virtrace.recipe import prototype
from virtrace.recipe.prototype import Prototype


@cache
def functions() -> dict[str, Prototype]:
    """The functions of the public API, by name."""
    text = resources.text(Path(__file__).with_name("public-api.txt"))
    prototypes = map(prototype.parse_prototype, text.splitlines())
    return {declared.name: declared for declared in prototypes}
