"""The shipped recipes, by whose process they trace."""

from __future__ import annotations

from virtrace.recipe import catalogue
from virtrace.recipe.model import OF_LIBVIRT

# Of the daemons of libvirt; tests/lab/test_qemu.py traces the others.
FOR_LIBVIRT = [
    name for name in catalogue.shipped() if catalogue.find_recipe(name).of == (OF_LIBVIRT,)
]
