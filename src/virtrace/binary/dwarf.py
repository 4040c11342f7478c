"""Read the DWARF debug info that a trace needs, without GDB, as the data of a symbol pack.

Based on the DWARF 5 standard: locations 2.6, subroutines 3.3, types 5. GCC writes a body that it
cloned or split as an entry of its own, whose abstract origin has the name.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from elftools.dwarf.descriptions import describe_form_class
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.locationlists import BaseAddressEntry, LocationEntry, LocationParser
from elftools.dwarf.ranges import BaseAddressEntry as RangeBase
from elftools.elf.elffile import ELFFile

from virtrace.binary.abi import Abi
from virtrace.binary.elf import LARGEST, ElfFile
from virtrace.binary.source import source_name
from virtrace.confined import Bounds, run
from virtrace.errors import TargetError
from virtrace.files import open_regular
from virtrace.recipe.path import RETURN, follow
from virtrace.recipe.path import Path as CapturePath

# Types that a pack names without a description.
VOID, BIT_FIELD = "void", "bit fields"

# Chains of references are short if a compiler wrote them; a stranger's may never end.
_LONGEST_CHAIN = 64
# Limits for reading: a base, and an addition by the file's size.
_SECONDS, _SECONDS_EACH_MIB, _WAIT = 4, 15, 30
_MEMORY, _MEMORY_EACH_BYTE, _MOST_MEMORY = 256 << 20, 24, 4 << 30

Data = dict[str, Any]


@dataclass(frozen=True)
class CaptureNeeds:
    """The captures of a function, whose types and locations are needed from debug info.

    captures: at its entry and return. lines: at each line; None to leave lines out.
    positions: of its parameters by the names that the recipe has for them, from 0; the source may
        name them differently
    """

    captures: Sequence[CapturePath]
    lines: Sequence[CapturePath] | None = None
    positions: Mapping[str, int] = field(default_factory=dict)


def functions_and_structs(
    file: Path,
    needs: Mapping[str, CaptureNeeds],
    abi: Abi,
    progress: Callable[[str], None],
) -> tuple[Data, Data]:
    """Return the functions of these names and the structs that their captures meet, as JSON.

    progress: called with a line of text now and then.
    Raises: TargetError: the file has no debug info, or it is damaged.
    """
    functions, structs = _read(
        file, lambda dwarf, tell: _Reader(dwarf, abi).read(needs, tell), progress
    )
    return functions, structs


def source_paths(file: Path, functions: Collection[str]) -> dict[str, str]:
    """Return the path at compile time of each function's source, by its name in line tables."""

    def read(dwarf: Any, tell: Callable[[str], None]) -> dict[str, str]:
        found = {}
        for unit in dwarf.iter_CUs():
            for die in _subprograms(unit):
                if _name(die) in functions and "DW_AT_decl_line" in die.attributes:
                    program = dwarf.line_program_for_CU(unit)
                    path = _file_name(program, die.attributes["DW_AT_decl_file"].value)
                    folder = unit.get_top_DIE().attributes["DW_AT_comp_dir"].value
                    whole = os.path.normpath(os.path.join(os.fsdecode(folder), path))
                    found[source_name(path)] = whole
        return found

    return {str(name): str(path) for name, path in _read(file, read).items()}


@dataclass(frozen=True)
class Declared:
    """A function as its source declares it. Types are as layouts.type_named() reads them."""

    name: str
    returns: str
    parameters: Sequence[tuple[str, str]]


def declarations(file: Path, addresses: Collection[int], abi: Abi) -> dict[int, Declared]:
    """Return the declarations of functions, by start address, as far as debug info has them."""

    def read(dwarf: Any, tell: Callable[[str], None]) -> list[Any]:
        return [
            (entry, declared.name, declared.returns, declared.parameters)
            for unit in _units_of(dwarf, addresses)
            for entry, declared in _Reader(dwarf, abi).declared(unit, addresses)
        ]

    return {
        int(entry): Declared(
            str(name), str(returns), [(str(type_), str(argument)) for type_, argument in parameters]
        )
        for entry, name, returns, parameters in _read(file, read)
    }


def _units_of(dwarf: Any, addresses: Collection[int]) -> Iterable[Any]:
    """Return the units that contain these addresses; all units if the file has no index."""
    index = dwarf.get_aranges()
    offsets: set[Any] = {index and index.cu_offset_at_addr(address) for address in addresses}
    return dwarf.iter_CUs() if None in offsets else map(dwarf.get_CU_at, sorted(offsets))


def _read(
    file: Path,
    work: Callable[[Any, Callable[[str], None]], Any],
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Run ``work`` on a file's DWARF in a child without rights, and return its result.

    Raises: TargetError: there is no debug info, it is damaged, or reading takes too long.
    """

    def begin() -> Callable[[Callable[[str], None]], Any]:
        try:
            opened = {"": open_regular(file, LARGEST)}
            # Content that dwz moved to another file, usually beside this one.
            shared = ElfFile(file, file=opened[""]).shared_debug_info
            if shared is not None:
                opened[shared] = open_regular(file.parent / shared, LARGEST)
        except OSError as error:
            raise TargetError(f"cannot read {file}: {error.strerror}", "check its name") from error

        return lambda tell: _worked(file, opened, work, tell)

    try:
        size = os.stat(file).st_size
    except OSError as error:
        raise TargetError(f"cannot read {file}: {error.strerror}", "check its name") from error
    seconds = _SECONDS + _SECONDS_EACH_MIB * (size >> 20)
    memory = min(_MEMORY + _MEMORY_EACH_BYTE * size, _MOST_MEMORY)
    return run(str(file), begin, Bounds(memory, seconds, 4 * seconds + _WAIT), progress)


def _worked(
    file: Path,
    opened: Mapping[str, BinaryIO],
    work: Callable[[Any, Callable[[str], None]], Any],
    tell: Callable[[str], None],
) -> Any:
    try:
        elf = ELFFile(opened[""], opened.__getitem__)
        if not elf.has_dwarf_info(strict=True):
            raise TargetError(
                f"{file} has no debug info", "name its separate .debug file, or a folder"
            )
        return work(elf.get_dwarf_info(), tell)
    except TargetError:
        raise
    # pyelftools does not define which exceptions malformed DWARF raises.
    except Exception as error:
        raise TargetError(
            f"the debug info of {file} cannot be read: {type(error).__name__}: {error}",
            "install the debug package again; if that does not help, report it",
        ) from error


class _Named(NamedTuple):
    """The entry of a function, and the one that has its name: itself, or another."""

    name: str
    die: DIE
    origin: DIE


def _subprograms(unit: Any) -> Iterator[DIE]:
    for die in unit.get_top_DIE().iter_children():
        if die.tag == "DW_TAG_subprogram":
            yield die


def _named(unit: Any, names: Collection[str]) -> Iterator[_Named]:
    """Yield the functions of these names in a unit."""
    for die in _subprograms(unit):
        origin = _origin(die)
        name = _name(origin)
        if name is not None and name in names:
            yield _Named(name, die, origin)


def _described(named: Iterable[_Named]) -> Iterator[tuple[str, DIE | None, DIE]]:
    """Yield name, body and the entry with the name; body is None if it is only inlined."""
    for name, die, origin in named:
        if _has_code(die):
            yield name, die, origin
        elif "DW_AT_inline" in die.attributes:
            yield name, None, die


class _Reader:
    """Describes functions, and declarations, by the debug info of a file."""

    def __init__(self, dwarf: Any, abi: Abi) -> None:
        self._units = _Units(dwarf)
        self._structs = _Structs(self._units)
        self._places = _Places(dwarf, abi)
        self._statements = _Statements(dwarf, self._places)

    def read(
        self, needs: Mapping[str, CaptureNeeds], progress: Callable[[str], None]
    ) -> tuple[Data, Data]:
        functions: Data = {}
        units = self._named_functions(needs)
        for number, (unit, named) in enumerate(units, start=1):
            if number % 20 == 1:
                progress(f"reading debug info: unit {number} of {len(units)}")
            found = list(_described(named))
            inlined = self._inlined(unit, {die.offset for _, _, die in found}) if found else {}
            for name, body, origin in found:
                function = functions.setdefault(
                    name, {"returns": _type(origin), "bodies": [], "inlined_into": []}
                )
                function["inlined_into"] += inlined.get(origin.offset, [])
                if body is not None:
                    function["bodies"].append(self._body(body, origin, needs[name].lines))
                types = _Types(origin, self._structs, needs[name].positions)
                for path in needs[name].captures:
                    self._structs.keep_all(path, types)
        for function in functions.values():
            function["inlined_into"] = sorted({*function["inlined_into"]})
        return functions, self._structs.layouts()

    def _named_functions(self, names: Collection[str]) -> Sequence[tuple[Any, Sequence[_Named]]]:
        """Return the functions of these names, by each unit that may describe one.

        Such a unit has the name, or refers to an entry with it.
        """
        units: dict[int, tuple[Any, list[_Named]]] = {}
        origins: set[int] = set()
        new = self._units.naming(names)
        while new:
            found = {unit.cu_offset: (unit, list(_named(unit, names))) for unit in new}
            units.update(found)
            # An entry that a unit refers to may be in another unit; then it lacks the name.
            offsets = {one.die.offset for _, named in found.values() for one in named}
            referring = self._units.referring_to(offsets - origins)
            origins |= offsets
            new = [unit for unit in referring if unit.cu_offset not in units]
        return [units[offset] for offset in sorted(units)]

    def declared(self, unit: Any, addresses: Collection[int]) -> Iterator[tuple[int, Declared]]:
        for die in filter(_has_code, _subprograms(unit)):
            entry = self._places.ranges(die)[0][0]
            origin = _origin(die)
            name = _name(origin)
            if entry in addresses and name is not None:
                parameters = [
                    (_type(child), _name(child) or "")
                    for child in origin.iter_children()
                    if child.tag == "DW_TAG_formal_parameter"
                ]
                yield entry, Declared(name, _type(origin), parameters)

    def _inlined(self, unit: Any, origins: set[int]) -> dict[int, list[str]]:
        """Return the functions into which others were inlined, by offset of the other's origin."""
        into: dict[int, list[str]] = {}
        functions = list(_subprograms(unit))
        for function in self._units.with_references(unit, functions, origins):
            for die in _below(function):
                if die.tag == "DW_TAG_inlined_subroutine":
                    origin = _origin(die)
                    outer = _name(_origin(function))
                    # A copy in the function's own body is the part that GCC split off.
                    if origin.offset in origins and outer and outer != _name(origin):
                        into.setdefault(origin.offset, []).append(outer)
        return into

    def _body(self, die: DIE, origin: DIE, watched: Sequence[CapturePath] | None) -> Data:
        entry = self._places.ranges(die)[0][0]
        arguments: Data = {}
        for child in die.iter_children():
            if child.tag == "DW_TAG_formal_parameter":
                parameter = _origin(child)
                name = _name(parameter)
                if name:
                    where = self._places.at(child, entry, at_entry=True)
                    arguments[name] = {"type": _type(parameter), **where}
        body = {"entry": f"{entry:#x}", "arguments": arguments}
        if watched is not None:
            names = {name for path in watched for name in path.arguments}
            body["lines"] = self._statements.lines(die, origin, names)
            types = _Types(die, self._structs, None)
            for path in watched:
                self._structs.keep_all(path, types)
        return body


class _Places:
    """Where code and variables are."""

    def __init__(self, dwarf: Any, abi: Abi) -> None:
        self._dwarf = dwarf
        self._abi = abi

    def ranges(self, die: DIE) -> list[tuple[int, int]]:
        """Return start and end addresses; the start of the first is the function's entry."""
        low = die.attributes.get("DW_AT_low_pc")
        if "DW_AT_ranges" not in die.attributes:
            assert low is not None
            high = die.attributes["DW_AT_high_pc"]
            is_size = describe_form_class(high.form) == "constant"
            return [(low.value, low.value + high.value if is_size else high.value)]
        base = _unit_base(die.cu)
        ranges = []
        lists = self._dwarf.range_lists()
        for entry in lists.get_range_list_at_offset(
            die.attributes["DW_AT_ranges"].value, cu=die.cu
        ):
            if isinstance(entry, RangeBase):
                base = entry.base_address
            else:
                offset = 0 if entry.is_absolute else base
                ranges.append((entry.begin_offset + offset, entry.end_offset + offset))
        return ranges

    def at(self, variable: DIE, pc: int, *, at_entry: bool = False) -> Data:
        """Return the location of an argument or variable at an address of its function."""
        attribute = variable.attributes.get("DW_AT_location")
        constant = variable.attributes.get("DW_AT_const_value")
        if constant is not None and isinstance(constant.value, int):
            return {"constant": constant.value}
        if attribute is None:
            return _nowhere("optimized out")
        parsed = self._locations.parse_from_attribute(
            attribute, variable.cu["version"], die=variable
        )
        if not isinstance(parsed, list):
            return self._place(parsed.loc_expr, variable.cu, at_entry)
        base = _unit_base(variable.cu)
        for place in parsed:
            if isinstance(place, BaseAddressEntry):
                base = place.base_address
            elif isinstance(place, LocationEntry):
                offset = 0 if place.is_absolute else base
                if place.begin_offset + offset <= pc < place.end_offset + offset:
                    return self._place(place.loc_expr, variable.cu, at_entry)
        return _nowhere("optimized out")

    @cached_property
    def _locations(self) -> LocationParser:
        return LocationParser(self._dwarf.location_lists())

    def _place(self, expression: list[int], unit: Any, at_entry: bool) -> Data:
        operations = DWARFExprParser(unit.structs).parse_expr(expression)
        names = [operation.op_name for operation in operations]
        first, values = operations[0], operations[0].args
        registers = self._abi.dwarf_registers
        if names[0] in ("DW_OP_entry_value", "DW_OP_GNU_entry_value") and names[1:] == [
            "DW_OP_stack_value"
        ]:
            inner = values[0][0]
            if inner.op_name.startswith("DW_OP_reg") and inner.op - _DW_OP_REG0 < len(registers):
                name = registers[inner.op - _DW_OP_REG0]
                return {"register" if at_entry else "entry_register": name}
        if len(names) == 1 and first.op_name.startswith("DW_OP_reg"):
            number = values[0] if first.op_name == "DW_OP_regx" else first.op - _DW_OP_REG0
            if number < len(registers):
                return {"register": registers[number]}
        if names == ["DW_OP_fbreg"] and (values[0] >= 0 or not at_entry):
            # GCC's frame base is the end of the frame, where the caller's frame begins.
            return {"stack": values[0]}
        if names[1:] == ["DW_OP_stack_value"]:
            if first.op_name.startswith("DW_OP_lit"):
                return {"constant": first.op - _DW_OP_LIT0}
            if first.op_name.startswith("DW_OP_const"):
                return {"constant": values[0]}
        if names == ["DW_OP_fbreg"]:
            return _nowhere("the function stores it in memory later")
        return _nowhere(f"its location is too complex for a pack ({', '.join(names)})")


class _Statements:
    """The statements of functions, and where variables are at each."""

    def __init__(self, dwarf: Any, places: _Places) -> None:
        self._dwarf = dwarf
        self._places = places
        self._rows_of: int | None = None
        self._rows: list[tuple[int, int, int]] = []

    def lines(self, die: DIE, origin: DIE, watched: set[str]) -> Data:
        """Return the statements that a debugger steps through, and the watched variables there."""
        ranges = self._places.ranges(die)
        index = origin.attributes["DW_AT_decl_file"].value
        rows = {
            address: line
            for address, file, line in self._rows_in(die.cu)
            if file == index and any(low <= address < high for low, high in ranges)
        }
        for inlined in _inlined_at_the_top(die):
            within = self._places.ranges(inlined)
            rows = {
                address: line
                for address, line in rows.items()
                if not any(low <= address < high for low, high in within)
            }
            # At the start of inlined code, a debugger shows the caller's line; the rest is foreign.
            if inlined.attributes["DW_AT_call_file"].value == index:
                call_line = inlined.attributes["DW_AT_call_line"].value
                behind = {high for _, high in within}
                rows.update({low: call_line for low, _ in within if low not in behind})
        variables = list(_variables(die, watched))
        return {
            "file": source_name(_file_name(self._program(die.cu), index)),
            "declared": origin.attributes["DW_AT_decl_line"].value,
            "variables": {name: _type(_origin(variable)) for name, variable in variables},
            "rows": [
                [f"{address:#x}", line, self._known_at(variables, address)]
                for address, line in sorted(rows.items())
            ],
        }

    def _known_at(self, variables: list[tuple[str, DIE]], address: int) -> Data:
        places = ((name, self._places.at(variable, address)) for name, variable in variables)
        return {name: place for name, place in places if "unavailable" not in place}

    def _rows_in(self, unit: Any) -> list[tuple[int, int, int]]:
        """Return address, file and line of each statement of a unit; read once for all its bodies.

        A line with discriminators is one statement, as for GDB: of consecutive rows, the first.
        """
        if unit.cu_offset != self._rows_of:
            states = [entry.state for entry in self._program(unit).get_entries()]
            self._rows_of = unit.cu_offset
            self._rows = []
            before, has_discriminator = None, False
            for state in states:
                if state is None:
                    continue
                if state.end_sequence:
                    before, has_discriminator = None, False
                    continue
                line = state.file, state.line
                has_discriminator &= line == before
                has_discriminator |= state.discriminator != 0
                if line == before and has_discriminator:
                    continue
                before = line
                if state.is_stmt:
                    self._rows.append((state.address, *line))
        return self._rows

    def _program(self, unit: Any) -> Any:
        program = self._dwarf.line_program_for_CU(unit)
        if program is None:
            raise ValueError("a unit has no line table")
        return program


class _Structs:
    """The layouts of the structs that captures go through."""

    def __init__(self, units: _Units) -> None:
        self._units = units
        self._layouts: Data = {}
        self._definitions: dict[str, DIE | None] = {}

    def layouts(self) -> Data:
        """Return the layouts by name; not those of which two units have different ones."""
        return {name: layout for name, layout in self._layouts.items() if layout}

    def keep_all(self, path: CapturePath, types: _Types) -> None:
        """Keep the layouts of the structs that a capture goes through."""
        for chain in path.chains:
            self.keep(follow(chain, types))

    def defined(self, die: DIE | None) -> DIE | None:
        """Return the definition, from another unit, of a struct that its own unit only declares."""
        struct = _plain(die)
        if struct is None or struct.tag != "DW_TAG_structure_type" or not _is_declared(struct):
            return die
        definition = self._definition(_name(struct))
        if definition is None:
            return die
        # The types of the declaring unit use that unit's name for the struct.
        self.keep(definition, _spelled(die))
        return definition

    def _definition(self, tag: str | None) -> DIE | None:
        """Return a struct that some unit defines; None if none does, or two differ in size."""
        if tag is None:
            return None
        if tag not in self._definitions:
            structs = [
                die
                for unit in self._units.naming([tag])
                for die in unit.get_top_DIE().iter_children()
                if die.tag == "DW_TAG_structure_type"
                and _name(die) == tag
                and not _is_declared(die)
            ]
            is_one = len({_size(die) for die in structs}) == 1
            self._definitions[tag] = structs[0] if is_one else None
        return self._definitions[tag]

    def keep(self, die: DIE | None, spelled: str | None = None) -> None:
        """Keep the layout of a struct, and of the structs inside it.

        spelled: its name, if ``die`` names it differently.
        """
        name = spelled or _spelled(die)
        struct = _plain(die)
        if struct is None or struct.tag != "DW_TAG_structure_type":
            return
        if _is_declared(struct):
            return
        inner: list[DIE | None] = []
        fields = {
            member: self._field(child, inner)
            for child in struct.iter_children()
            if child.tag == "DW_TAG_member" and (member := _name(child))
        }
        layout = {"size": struct.attributes["DW_AT_byte_size"].value, "fields": fields}
        known = self._layouts.setdefault(name, layout)
        if known is layout:
            for target in inner:
                self.keep(target)
        elif known != layout:
            # Two units have different structs of that name: no capture may go through it.
            self._layouts[name] = {}

    def _field(self, member: DIE, inner: list[DIE | None]) -> Data:
        """Describe a member. inner: gets the type of what is embedded in the struct."""
        at = member.attributes.get("DW_AT_data_member_location")
        target = _target(member)
        if "DW_AT_bit_size" in member.attributes:
            return {"offset": 0, "type": BIT_FIELD}
        element = target
        for _ in _chain():
            plain = _plain(element)
            if plain is None or plain.tag != "DW_TAG_array_type":
                break
            element = _target(plain)
        inner.append(element)
        return {"offset": 0 if at is None else at.value, "type": _spelled(target)}


class _Units:
    """The units of a file. Those that may matter are found by their bytes: parsing takes long."""

    def __init__(self, dwarf: Any) -> None:
        self._units = list(dwarf.iter_CUs())
        self._starts = [unit.cu_offset for unit in self._units]
        self._info = _content(dwarf.debug_info_sec)
        self._strings = _content(dwarf.debug_str_sec)
        # Names and functions may be in another file (dwz), or names in a table (split DWARF).
        self._is_whole = not dwarf.supplementary_dwarfinfo and not dwarf.debug_str_offsets_sec

    def naming(self, names: Iterable[str]) -> Sequence[Any]:
        """Return the units with an entry of one of these names, and maybe others."""
        patterns = []
        for name in names:
            # The name as DW_FORM_string and as DW_FORM_strp.
            text = name.encode() + b"\0"
            patterns += [text, *map(_offset, _all(text, self._strings))]
        return self._having(patterns)

    def referring_to(self, entries: Iterable[int]) -> Sequence[Any]:
        """Return the units with a reference across units to an entry at one of these offsets."""
        return self._having(map(_offset, entries))

    def with_references(
        self, unit: Any, functions: Sequence[DIE], entries: Collection[int]
    ) -> Iterator[DIE]:
        """Yield the functions of a unit that refer to an entry at one of these offsets.

        functions: all functions of the unit, in their order. The result may contain others too.
        """
        # References within a unit count from its start.
        patterns = {
            pattern
            for entry in entries
            for pattern in (_offset(entry), *_references(entry - unit.cu_offset))
        }
        ends = [*(die.offset for die in functions[1:]), unit.cu_offset + unit.size]
        for die, end in zip(functions, ends):
            if any(self._info.find(pattern, die.offset, end) >= 0 for pattern in patterns):
                yield die

    def _having(self, patterns: Iterable[bytes]) -> Sequence[Any]:
        if not self._is_whole:
            return self._units
        places = {
            bisect_right(self._starts, place) - 1
            for pattern in patterns
            for place in _all(pattern, self._info)
        }
        return [self._units[place] for place in sorted(places) if place >= 0]


class _Types:
    """The types that a chain goes through (recipe.path.Visitor); the reader keeps the structs."""

    def __init__(
        self, function: DIE, structs: _Structs, positions: Mapping[str, int] | None
    ) -> None:
        """positions: as in ``CaptureNeeds``; None: chains may start at variables, too."""
        self._function = function
        self._structs = structs
        self._positions = positions

    def start(self, name: str) -> DIE | None:
        are_arguments = self._positions is not None
        if are_arguments and name == RETURN:
            return _target(self._function)
        found = dict(_variables(self._function, {name}, arguments_only=are_arguments))
        if found:
            return _target(_origin(found[name]))
        position = (self._positions or {}).get(name)
        return None if position is None else self._parameter(position)

    def _parameter(self, position: int) -> DIE | None:
        parameters = [
            child
            for child in self._function.iter_children()
            if child.tag == "DW_TAG_formal_parameter"
        ]
        return _target(_origin(parameters[position])) if position < len(parameters) else None

    def member(self, base: DIE | None, name: str) -> DIE | None:
        struct = self.target(base)
        self._structs.keep(struct)
        return None if struct is None else _member(struct, name)

    def target(self, base: DIE | None) -> DIE | None:
        return self._structs.defined(_pointed(_plain(base)))


_DW_OP_REG0, _DW_OP_LIT0 = 0x50, 0x30
_QUALIFIERS = (
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)
_INTEGERS = {
    (True, 1): "signed char",
    (True, 2): "short",
    (True, 4): "int",
    (True, 8): "long long",
    (False, 1): "unsigned char",
    (False, 2): "unsigned short",
    (False, 4): "unsigned int",
    (False, 8): "unsigned long long",
}
# DW_ATE_...
_BOOLEAN, _SIGNED, _SIGNED_CHAR, _UNSIGNED, _UNSIGNED_CHAR = 2, 5, 6, 7, 8


def _content(section: Any) -> bytes:
    """Return the bytes of a section, decompressed if need be; empty if there is none."""
    return b"" if section is None else bytes(section.stream.getvalue())


def _all(pattern: bytes, data: bytes) -> Iterator[int]:
    place = data.find(pattern)
    while place >= 0:
        yield place
        place = data.find(pattern, place + 1)


def _offset(value: int) -> bytes:
    """Encode an offset in a section: 32-bit DWARF, which is how 64-bit DWARF begins it, too."""
    return (value & 0xFFFFFFFF).to_bytes(4, "little")


def _references(value: int) -> Iterator[bytes]:
    """Yield a reference within a unit in each possible form: ref1, ref2, ref4, ref_udata."""
    if value < 0:
        return
    for size in (1, 2, 4):
        if value < 1 << 8 * size:
            yield value.to_bytes(size, "little")
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    yield bytes([*digits, value])


def _nowhere(why: str) -> Data:
    return {"unavailable": why}


def _origin(die: DIE) -> DIE:
    """Return the entry that has what this one omits: its name, its type."""
    for reference in ("DW_AT_abstract_origin", "DW_AT_specification"):
        for _ in _chain():
            if reference not in die.attributes:
                break
            die = die.get_DIE_from_attribute(reference)
    return die


def _chain() -> Iterator[int]:
    """Bound a walk along references. Raises ValueError: longer than any compiler makes one."""
    yield from range(_LONGEST_CHAIN)
    raise ValueError("a chain of references has no end")


def _name(die: DIE) -> str | None:
    attribute = die.attributes.get("DW_AT_name")
    return None if attribute is None else attribute.value.decode("utf-8", "replace")


def _has_code(die: DIE) -> bool:
    return "DW_AT_low_pc" in die.attributes or "DW_AT_ranges" in die.attributes


def _type(die: DIE) -> str:
    return _spelled(_target(die))


def _spelled(die: DIE | None) -> str:
    """Spell a type as layouts.type_named() reads it: structs by typedef or tag, scalars plainly."""
    if die is None:
        return VOID
    if die.tag in _QUALIFIERS:
        return _spelled(_target(die))
    if die.tag == "DW_TAG_typedef":
        plain = _plain(die)
        is_struct = plain is not None and plain.tag == "DW_TAG_structure_type"
        return _name(die) or VOID if is_struct else _spelled(_target(die))
    if die.tag == "DW_TAG_pointer_type":
        target = _spelled(_target(die))
        return f"{target}*" if target.endswith("*") else f"{target} *"
    if die.tag == "DW_TAG_array_type":
        name = _spelled(_target(die))
        for dimension in reversed([*die.iter_children()]):
            name += f"[{_count(dimension)}]"
        return name
    if die.tag == "DW_TAG_base_type":
        return _base_type(die)
    if die.tag == "DW_TAG_enumeration_type":
        return _enumeration(die)
    if die.tag == "DW_TAG_subroutine_type":
        # Every unit has its own of a function's type; nothing is read through it.
        return "unnamed function"
    return _name(die) or f"unnamed at {die.offset:#x}"


def _target(die: DIE) -> DIE | None:
    """Return the type that an entry refers to; None for void."""
    return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None


def _plain(die: DIE | None) -> DIE | None:
    """Return the type without typedefs and qualifiers."""
    for _ in _chain():
        if die is None or die.tag not in ("DW_TAG_typedef", *_QUALIFIERS):
            break
        die = _target(die)
    return die


def _pointed(die: DIE | None) -> DIE | None:
    """Return what a pointer points to; any other type itself."""
    return _target(die) if die is not None and die.tag == "DW_TAG_pointer_type" else die


def _variables(
    function: DIE, names: Collection[str], *, arguments_only: bool = False
) -> Iterator[tuple[str, DIE]]:
    """Yield the arguments and local variables of these names, except names that occur twice."""
    if arguments_only:
        among = [die for die in function.iter_children() if die.tag == "DW_TAG_formal_parameter"]
    else:
        tags = ("DW_TAG_formal_parameter", "DW_TAG_variable")
        among = [die for die in _below(function, inside_inlined=False) if die.tag in tags]
    named = [(_name(_origin(die)), die) for die in among]
    for name in names:
        found = [die for its, die in named if its == name]
        if len(found) == 1:
            yield name, found[0]


def _inlined_at_the_top(function: DIE) -> Iterator[DIE]:
    for die in _below(function, inside_inlined=False):
        if die.tag == "DW_TAG_inlined_subroutine" and _has_code(die):
            yield die


def _is_declared(struct: DIE) -> bool:
    """Whether the unit only declares a struct."""
    return "DW_AT_byte_size" not in struct.attributes


def _size(struct: DIE) -> int:
    return int(struct.attributes["DW_AT_byte_size"].value)


def _member(struct: DIE, name: str) -> DIE | None:
    plain = _plain(struct)
    for child in plain.iter_children() if plain is not None else ():
        if child.tag == "DW_TAG_member" and _name(child) == name:
            return _target(child)
    return None


def _below(die: DIE, *, inside_inlined: bool = True) -> Iterator[DIE]:
    rest = [die]
    while rest:
        for child in rest.pop(0).iter_children():
            yield child
            if child.has_children and (inside_inlined or child.tag != "DW_TAG_inlined_subroutine"):
                rest.append(child)


def _unit_base(unit: Any) -> int:
    low = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
    return 0 if low is None else int(low.value)


def _count(dimension: DIE) -> int:
    for attribute, more in (("DW_AT_count", 0), ("DW_AT_upper_bound", 1)):
        if attribute in dimension.attributes:
            return int(dimension.attributes[attribute].value) + more
    return 0


def _base_type(die: DIE) -> str:
    name = _name(die) or VOID
    size = die.attributes["DW_AT_byte_size"].value
    encoding = die.attributes["DW_AT_encoding"].value
    if encoding == _BOOLEAN and size == 1:
        return "bool"
    if name == "char":
        return "char"
    if encoding in (_SIGNED, _SIGNED_CHAR, _UNSIGNED, _UNSIGNED_CHAR):
        return _INTEGERS.get((encoding in (_SIGNED, _SIGNED_CHAR), size), name)
    return name


def _enumeration(die: DIE) -> str:
    underlying = _plain(_target(die))
    if underlying is not None:
        return _base_type(underlying)
    negative = any(
        child.attributes["DW_AT_const_value"].value < 0
        for child in die.iter_children()
        if child.tag == "DW_TAG_enumerator"
    )
    return _INTEGERS[negative, die.attributes["DW_AT_byte_size"].value]


def _file_name(program: Any, index: int) -> str:
    header = program.header
    version5 = header.version >= 5
    file = header.file_entry[index if version5 else index - 1]
    name: str = file.name.decode("utf-8", "replace")
    if name.startswith("/"):
        return name
    directories = header.include_directory
    if version5:
        directory = directories[file.dir_index]
    else:
        directory = directories[file.dir_index - 1] if file.dir_index else b""
    folder = directory.decode("utf-8", "replace")
    return f"{folder}/{name}" if folder else name
