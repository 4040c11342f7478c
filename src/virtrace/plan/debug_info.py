"""Debug info as a witness, read by pyelftools: recipes are resolved with it where no GDB is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtrace import __version__
from virtrace.binary import abi, pack
from virtrace.binary.abi import Abi
from virtrace.errors import TargetError
from virtrace.image.model import Module, Program
from virtrace.plan.witness import Packs
from virtrace.recipe.model import Recipe
from virtrace.recipe.path import Path as CapturePath

if TYPE_CHECKING:
    from virtrace.binary.dwarf import CaptureNeeds


def read_debug_info(
    recipe: Recipe,
    program: Program,
    fetched: Mapping[str, Path],
    progress: Callable[[str], None],
    failed: Callable[[TargetError], None],
) -> Packs:
    """The debug info of a recipe's modules, read without GDB.

    fetched: files from debuginfod, by build-id. progress: called with a line now and then.
    failed: called where debug info is there and cannot be read.
    """
    found = {}
    for name in recipe.modules:
        module = program.module(name)
        debug = None if module is None else _debug_file(program, module, fetched)
        if module is not None and debug is not None and abi.convention_of_file(module.elf).is_known:
            try:
                data = described(debug, [recipe], abi.convention_of_file(module.elf), progress)
                origin = f"{debug.name}, by virtrace {__version__}"
                found[name] = pack.pack_in_memory(module.elf, origin, *data)
            except TargetError as error:
                # There is still what can be known without it.
                failed(error)
    return Packs("dwarf", found)


def _debug_file(program: Program, module: Module, fetched: Mapping[str, Path]) -> Path | None:
    installed = program.debug_info(module)
    if installed is not None:
        return Path(installed.path)
    return fetched.get(module.build_id or "")


def described(
    debug: Path,
    recipes: Iterable[Recipe],
    convention: Abi,
    progress: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The functions of recipes and the structs that their captures meet, from debug info, as JSON.

    Raises TargetError where the debug info is broken.
    """
    # Imported where debug info is read: it takes longer than all else that a command imports.
    from virtrace.binary.dwarf import functions_and_structs

    return functions_and_structs(debug, _needs(recipes), convention, progress)


def _needs(recipes: Iterable[Recipe]) -> dict[str, CaptureNeeds]:
    """What the recipes need of each function, by its name."""
    from virtrace.binary.dwarf import CaptureNeeds

    captures: dict[str, list[CapturePath]] = {}
    lines: dict[str, list[CapturePath]] = {}
    positions: dict[str, dict[str, int]] = {}
    for recipe in recipes:
        for span in recipe.spans:
            captures.setdefault(span.function, []).extend(span.captures.values())
            if span.prototype is not None:
                names = [parameter.name for parameter in span.prototype.parameters]
                by_name = {name: position for position, name in enumerate(names)}
                positions.setdefault(span.function, {}).update(by_name)
            if span.lines is not None:
                lines.setdefault(span.function, []).extend(span.lines.values())
        for point in recipe.points:
            if point.usdt is None:
                captures.setdefault(point.prototype.name, []).extend(point.captures.values())
    return {
        name: CaptureNeeds(paths, lines.get(name), positions.get(name, {}))
        for name, paths in captures.items()
    }
