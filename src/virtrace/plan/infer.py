"""A recipe's static functions, found in a file without symbols.

Done before the process is stopped: reading the code of a driver takes its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from virtrace.errors import TargetError
from virtrace.image.model import Module, Program
from virtrace.recipe.model import CalledBy, DriverMethod, Recipe, Span
from virtrace.targets import Target, target_of


@dataclass(frozen=True)
class Inferred:
    """offset: in the file's own addresses, None where it is not sure. how: or why not."""

    offset: int | None
    how: str


def infer(recipe: Recipe, process: Program) -> dict[Span, Inferred]:
    found: dict[Span, Inferred] = {}
    for span in recipe.spans:
        module = process.module(span.module)
        if span.find is not None and module is not None:
            found[span] = _infer(span.find, target_of(process), module, recipe, found)
    return found


def _infer(
    find: DriverMethod | CalledBy,
    target: Target,
    module: Module,
    recipe: Recipe,
    earlier: Mapping[Span, Inferred],
) -> Inferred:
    try:
        if isinstance(find, DriverMethod):
            candidates = module.elf.callers_of(target.check_of(find.api))
            how = f"checks access for {find.api}"
        else:
            caller = _caller(find.caller, module, recipe, earlier)
            if caller is None:
                return Inferred(None, f"{find.caller}, which calls it, was not found")
            candidates = module.elf.called_by(caller, find.calls)
            how = f"called by {find.caller}, calls {find.calls}"
    except TargetError as error:
        return Inferred(None, error.what)
    if len(candidates) == 1:
        return Inferred(candidates[0], how)
    listed = ", ".join(f"+{candidate:#x}" for candidate in candidates)
    return Inferred(None, f"{listed or 'no function'}: {how}")


def _caller(
    name: str, module: Module, recipe: Recipe, earlier: Mapping[Span, Inferred]
) -> int | None:
    """Of a span of the recipe the first alternative that is there; else what is exported so."""
    spans = [span for span in recipe.spans if span.name == name]
    for span in spans:
        known = earlier.get(span)
        offset = known.offset if known else module.elf.exported_function(span.function)
        if offset is not None:
            return offset
    return None if spans else module.elf.exported_function(name)
