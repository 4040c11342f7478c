"""Arguments of functions that were found without debug info: only what can be proven.

The compiler may drop and move the parameters of a static function, so its declaration does
not tell which register has which. This module does not need gdb.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtrace.binary import layouts
from virtrace.binary.ctype import Opaque
from virtrace.recipe.path import CALLER, RETURN
from virtrace.recipe.prototype import Parameter, Prototype

# By position: the value, or None where it is not proven.
Proven = tuple["int | None", ...]


@dataclass(frozen=True)
class Caller:
    """The traced function that called: its parameters, what is proven of them, its frame's end."""

    parameters: Sequence[Parameter]
    arguments: Proven
    return_sp: int


def is_provable(prototype: Prototype, argument: str) -> bool:
    """Whether of_static_function() may know this argument; RETURN and CALLER are none."""
    types = {parameter.name: parameter.type for parameter in prototype.parameters}
    return argument in (RETURN, CALLER) or types[argument].endswith("*")


def of_driver_method(
    registers: Sequence[int], parameters: Sequence[Parameter], caller: Caller
) -> Proven:
    """The API hands its own arguments on, in order; each counts that is the same in both."""
    proven: list[int | None] = []
    for parameter, register, handed in zip(parameters, registers, caller.arguments):
        mask = (1 << 8 * layouts.named(parameter.type, Opaque).size) - 1
        same = handed is not None and handed & mask == register & mask
        proven.append(handed if same else None)
    return tuple(proven)


def of_static_function(
    registers: Sequence[int],
    parameters: Sequence[Parameter],
    caller: Caller,
    sp: int,
    word: Callable[[int], int],
) -> Proven:
    """What cannot be mistaken, in whatever register it came.

    A pointer to a pointer is the one that points to a NULL in the caller's frame: it will be
    filled in. Any other pointer is one that the caller was given, of the same type. Numbers
    look like any other and are never proven. word: reads the memory at an address.
    """
    # Parameters are dropped, none are added: what lies in later registers is left from before.
    used = registers[: len(parameters)]
    proven: list[int | None] = []
    for parameter in parameters:
        if parameter.type.endswith("**"):
            found = {r for r in used if sp < r < caller.return_sp and r % 8 == 0 and word(r) == 0}
        elif parameter.type.endswith("*"):
            given = [
                argument
                for its, argument in zip(caller.parameters, caller.arguments)
                if its.type == parameter.type
            ]
            found = {register for register in used if register in given and register}
        else:
            found = set()
        proven.append(found.pop() if len(found) == 1 else None)
    return tuple(proven)
