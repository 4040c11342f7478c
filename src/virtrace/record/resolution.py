"""Resolves recipes with no GDB: by debug info, symbol packs, and the files themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from virtrace.image.model import Program
from virtrace.plan.debug_info import read_debug_info
from virtrace.plan.infer import infer
from virtrace.plan.model import Plan
from virtrace.plan.resolve import resolve
from virtrace.plan.witness import installed_packs
from virtrace.printing import complain
from virtrace.recipe.model import Recipe
from virtrace.record.progress import Progress


def resolve_without_gdb(
    recipe: Recipe, program: Program, debug_files: Mapping[str, Path], packs: Sequence[Path]
) -> Plan:
    """Resolve a recipe, with a line of progress on a terminal.

    debug_files, packs: as in ``Job``
    """
    with Progress(recipe.name) as progress:
        debug_info = read_debug_info(recipe, program, debug_files, progress.show, complain)
    witnesses = [debug_info, installed_packs(recipe, program, packs)]
    return resolve(recipe, program, witnesses, infer(recipe, program))
