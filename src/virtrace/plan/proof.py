"""Arguments of static functions found without debug info: only what can be proven.

The compiler may drop and move the parameters of a static function, so its declaration does
not say which register holds which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from virtrace.binary import layouts
from virtrace.binary.ctype import Opaque
from virtrace.recipe.path import CALLER, RETURN
from virtrace.recipe.prototype import Parameter

# The value of each parameter, in order; None where it is not proven.
Proven = tuple["int | None", ...]


@dataclass(frozen=True)
class TracedCaller:
    """The traced function that called another.

    arguments: the values of its parameters, as far as they are proven. return_sp: where its frame
    ends, an address.
    """

    parameters: Sequence[Parameter]
    arguments: Proven
    return_sp: int


def is_provable(parameters: Sequence[Parameter], argument: str) -> bool:
    """Whether of_static_function() may prove an argument. RETURN and CALLER need no proof."""
    types = {parameter.name: parameter.type for parameter in parameters}
    return argument in (RETURN, CALLER) or types[argument].endswith("*")


def of_driver_method(
    registers: Sequence[int], parameters: Sequence[Parameter], caller: TracedCaller
) -> Proven:
    """Prove the arguments of a driver's method: the API passes its own on, in order.

    An argument is proven where the register holds what the API was given.
    """
    proven: list[int | None] = []
    for parameter, register, handed in zip(parameters, registers, caller.arguments):
        mask = (1 << 8 * layouts.type_named(parameter.type, Opaque).size) - 1
        same = handed is not None and handed & mask == register & mask
        proven.append(handed if same else None)
    return tuple(proven)


def of_static_function(
    registers: Sequence[int],
    parameters: Sequence[Parameter],
    caller: TracedCaller,
    sp: int,
    word: Callable[[int], int],
) -> Proven:
    """Prove the arguments of any other static function, whatever registers they are in.

    A pointer to a pointer is the only register that points to a NULL in the caller's frame, which
    the function will fill in. Any other pointer equals an argument of the caller of the same type.
    Numbers look alike and are never proven.

    word: reads the word at an address of memory; may raise Unavailable.
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
