"""Where the arguments of a function or of a static probe are, one class for each way to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

from virtrace.binary.abi import Abi
from virtrace.binary.ctype import integer
from virtrace.binary.pack import AtEntry, Constant, InRegister, Nowhere, OnStack, Place
from virtrace.errors import Unavailable
from virtrace.image.memory import Memory
from virtrace.plan.capture import Arguments
from virtrace.plan.proof import Proven, TracedCaller, of_driver_method, of_static_function
from virtrace.recipe.model import CalledBy, DriverMethod
from virtrace.recipe.prototype import Parameter

WORD = (1 << 64) - 1
NO_SUCH_ARGUMENT = "the function has no such argument here"


@dataclass(frozen=True)
class Entered:
    """The machine's state when a function was entered.

    registers: of arguments, by name. frame_end: where the function's frame ends, an address.
    """

    registers: Mapping[str, int]
    frame_end: int


class Thread(Protocol):
    """A thread at a probe. sp: its stack pointer."""

    sp: int

    @property
    def memory(self) -> Memory: ...

    def register(self, name: str) -> int:
        """name: as GDB has it. Raises Unavailable."""

    def probe_argument(self, index: int) -> int:
        """An argument of the static probe that it is at. Raises Unavailable."""


class ArgumentSource(Protocol):
    """A way to find the arguments of a function, or of a static probe."""

    def reader(
        self, thread: Thread, caller: TracedCaller | None, entered: Entered | None
    ) -> Arguments:
        """Make what gives the value of an argument by its name, as 64 bits, or raises Unavailable.

        caller: the traced function that called, if any. entered: at a source line, what was when
        its function was entered, if that was kept.
        """


@dataclass(frozen=True)
class ByConvention:
    """At the entry of a function: where the processor's calling convention has them.

    names: of the arguments, in order.
    """

    names: Sequence[str]
    abi: Abi

    @cached_property
    def places(self) -> Mapping[str, Place]:
        registers = self.abi.argument_registers
        return {
            name: InRegister(registers[index])
            if index < len(registers)
            else OnStack(self.abi.word * (index - len(registers)))
            for index, name in enumerate(self.names)
        }

    def reader(self, thread: Thread, caller: object, entered: object) -> Arguments:
        if self.abi.argument_registers:
            return partial(_at, self.places, self.abi, thread, None)
        return self._unknown

    def _unknown(self, name: str) -> int:
        raise Unavailable(f"how calls on {self.abi.machine} hand it over is not known")


@dataclass(frozen=True)
class ByPlaces:
    """Where debug info or a symbol pack has each argument or variable, by its name."""

    places: Mapping[str, Place]
    abi: Abi

    def reader(self, thread: Thread, caller: object, entered: Entered | None) -> Arguments:
        return partial(_at, self.places, self.abi, thread, entered)


def _at(
    places: Mapping[str, Place], abi: Abi, thread: Thread, entered: Entered | None, name: str
) -> int:
    place = places.get(name, Nowhere(NO_SUCH_ARGUMENT))
    if isinstance(place, InRegister):
        return thread.register(place.name)
    if isinstance(place, OnStack):
        end = entered.frame_end if entered else abi.sp_after_return(thread.sp)
        return integer(thread.memory.read(end + place.offset, abi.word))
    if isinstance(place, Constant):
        return place.value & WORD
    if isinstance(place, AtEntry):
        if entered is None or place.name not in entered.registers:
            raise Unavailable(f"what {place.name} held at the entry is not known")
        return entered.registers[place.name]
    raise Unavailable(place.why)


@dataclass(frozen=True)
class ByOperands:
    """At a static probe: where its note in the file says.

    names: of the arguments, in order. operands: by the address of each place of the probe, as the
    file counts: the assembler's text for each argument.
    """

    names: Sequence[str]
    operands: Mapping[int, Sequence[str]]

    def reader(self, thread: Thread, caller: object, entered: object) -> Arguments:
        return lambda name: thread.probe_argument(self.names.index(name))


@dataclass(frozen=True)
class ByProof:
    """At the entry of a static function found without debug info: by its caller's arguments.

    parameters: as the source declares the function. find: how it was found.
    """

    parameters: Sequence[Parameter]
    find: DriverMethod | CalledBy
    abi: Abi

    @property
    def caller(self) -> str:
        """The name of the probe or the API that calls it."""
        return self.find.api if isinstance(self.find, DriverMethod) else self.find.caller

    def reader(self, thread: Thread, caller: TracedCaller | None, entered: object) -> Arguments:
        names = [parameter.name for parameter in self.parameters]
        return partial(_proven, dict(zip(names, self._proven(thread, caller))))

    def _proven(self, thread: Thread, caller: TracedCaller | None) -> Proven:
        if caller is None:
            return ()
        registers = [thread.register(name) for name in self.abi.argument_registers]
        if isinstance(self.find, DriverMethod):
            return of_driver_method(registers, self.parameters, caller)

        def word(address: int) -> int:
            return integer(thread.memory.read(address, self.abi.word))

        try:
            return of_static_function(registers, self.parameters, caller, thread.sp, word)
        except Unavailable:
            # A word that cannot be read could be a second candidate.
            return ()


def _proven(values: Mapping[str, int | None], name: str) -> int:
    value = values.get(name)
    if value is None:
        raise Unavailable("without debug info its register cannot be proven")
    return value


@dataclass(frozen=True)
class InFile:
    """A variable of the program. address: as the file counts."""

    address: int

    @property
    def name(self) -> str:
        """What its address in the process is called, beside the registers of a record."""
        return f"variable at {self.address:#x}"


@dataclass(frozen=True)
class WithVariables:
    """Another source's arguments, and variables of the program: their addresses."""

    source: ArgumentSource
    variables: Mapping[str, InFile]

    def reader(
        self, thread: Thread, caller: TracedCaller | None, entered: Entered | None
    ) -> Arguments:
        read = self.source.reader(thread, caller, entered)

        def value(name: str) -> int:
            variable = self.variables.get(name)
            return read(name) if variable is None else thread.register(variable.name)

        return value


@dataclass(frozen=True)
class Renamed:
    """Another source's arguments under other names. names: the old name by the new one."""

    source: ArgumentSource
    names: Mapping[str, str]

    def reader(
        self, thread: Thread, caller: TracedCaller | None, entered: Entered | None
    ) -> Arguments:
        read = self.source.reader(thread, caller, entered)
        return lambda name: read(self.names[name])
