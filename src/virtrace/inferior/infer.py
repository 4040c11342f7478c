"""A recipe's static functions, found in a file without symbols. Does not need gdb.

Done before the process is stopped: reading the code of a driver takes its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtrace.binary.functions import Functions
from virtrace.binary.process import Module, Process
from virtrace.errors import TargetError
from virtrace.recipe.model import CalledBy, DriverMethod, Recipe


@dataclass(frozen=True)
class Inferred:
    """offset: in the file's own addresses, None where it is not sure. how: or why not."""

    offset: int | None
    how: str


def infer(recipe: Recipe, process: Process) -> dict[str, Inferred]:
    """By the name of the span; only for modules that do not carry debug info themselves."""
    found: dict[str, Inferred] = {}
    for span in recipe.spans:
        module = process.module(span.module)
        if span.find is not None and module is not None and not module.elf.has_debug_info:
            found[span.name] = _infer(span.find, module, found)
    return found


def _infer(find: DriverMethod | CalledBy, module: Module, earlier: dict[str, Inferred]) -> Inferred:
    try:
        functions = Functions(module.elf)
        if isinstance(find, DriverMethod):
            candidates = functions.driver_methods(find.api)
            how = f"checks access for {find.api}"
        else:
            known = earlier.get(find.caller)
            caller = known.offset if known else module.elf.exported_function(find.caller)
            if caller is None:
                return Inferred(None, f"{find.caller}, which calls it, was not found")
            candidates = functions.called_by(caller, find.calls)
            how = f"called by {find.caller}, calls {find.calls}"
    except TargetError as error:
        return Inferred(None, error.what)
    if len(candidates) == 1:
        return Inferred(candidates[0], how)
    listed = ", ".join(f"+{candidate:#x}" for candidate in candidates)
    return Inferred(None, f"{listed or 'no function'}: {how}")
