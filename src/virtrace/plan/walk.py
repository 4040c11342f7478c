"""The walk of a capture's chain over C types: what to read, in which order, and what is there.

Values, byte code and pruning are made from one `Way`; only the way itself knows the grammar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Union

from virtrace.binary.ctype import Array, CType, Field, Opaque, Pointer, Struct, Variable
from virtrace.errors import Unavailable
from virtrace.recipe.path import COUNTED, Path, follow


@dataclass(frozen=True)
class ToTarget:
    """Go to what a pointer points to; NULL ends the walk.

    size: of the pointer in memory, in bytes, which is read first; 0 where its value is at hand.
    """

    size: int


@dataclass(frozen=True)
class ToMember:
    """Go from a struct's address to the address of a member. field: as the first layout has it."""

    struct: Struct
    field: Field

    @property
    def offsets(self) -> Sequence[int]:
        """Where the member may be, by all layouts that have it."""
        if not self.struct.checks:
            return [self.field.offset]
        layouts = (self.struct, *self.struct.alternatives)
        fields = [layout.member(self.field.name) for layout in layouts]
        return [*dict.fromkeys(field.offset for field in fields if field is not None)]


Move = Union[ToTarget, ToMember]


@dataclass(frozen=True)
class Way:
    """A chain over known types.

    start: the argument, or RETURN, it starts from. ctype: of the value at its end.
    in_memory: the walk ends at the address of that value, not at the value itself.
    """

    start: str
    ctype: CType
    in_memory: bool = False
    moves: tuple[Move, ...] = ()


class _Ways:
    """Makes ways of chains (recipe.path.Visitor). text: the capture, for messages."""

    def __init__(self, text: str, types: Mapping[str, CType]) -> None:
        self._text = text
        self._types = types

    def start(self, name: str) -> Way:
        ctype = self._types[name]
        if isinstance(ctype, Opaque) and ctype.why:
            raise Unavailable(f"{self._text}: {ctype.why}")
        if isinstance(ctype, Variable):
            return Way(name, ctype.type, in_memory=True)
        return Way(name, ctype)

    def target(self, base: Way) -> Way:
        pointer = base.ctype
        if not isinstance(pointer, Pointer) or pointer.target is None:
            raise Unavailable(f"{self._text}: goes through something that is not a pointer")
        move = ToTarget(pointer.size if base.in_memory else 0)
        return Way(base.start, pointer.target(), True, (*base.moves, move))

    def member(self, base: Way, name: str) -> Way:
        if not (base.in_memory and isinstance(base.ctype, Struct)):
            base = self.target(base)
        struct = base.ctype
        if isinstance(struct, Opaque):
            raise Unavailable(f"{self._text}: the layout of {struct.name} is not known")
        field = struct.member(name) if isinstance(struct, Struct) else None
        if not isinstance(struct, Struct) or field is None:
            raise Unavailable(f"{self._text}: no member {name!r} there")
        return Way(base.start, field.type, True, (*base.moves, ToMember(struct, field)))


def ways(path: Path, types: Mapping[str, CType]) -> tuple[Way, ...]:
    """The way of each chain of a path, in the order of `Path.chains`.

    types: of the arguments, and of RETURN. Raises Unavailable where they do not allow the path.
    """
    for name in path.arguments:
        if name not in types:
            raise Unavailable(f"there is no argument or variable {name!r} here")
    visitor = _Ways(path.text, types)
    found = [follow(chain, visitor) for chain in path.chains]
    if isinstance(path.form, COUNTED):
        found[1] = _counting(found[1])
    return tuple(found)


def _counting(way: Way) -> Way:
    """The way to a count: an argument may be a pointer to it."""
    if not way.moves and isinstance(way.ctype, Pointer) and way.ctype.target is not None:
        return Way(way.start, way.ctype.target(), True, (ToTarget(0),))
    return way


def pruned(path: Path, types: Mapping[str, CType]) -> dict[str, CType]:
    """The types that a path starts from, without what it does not walk over.

    Raises Unavailable where they do not allow the path.
    """
    walks: dict[str, list[Sequence[Move]]] = {}
    for way in ways(path, types):
        walks.setdefault(way.start, []).append(way.moves)
    return {name: _pruned(types[name], moves) for name, moves in walks.items()}


def _pruned(ctype: CType, walks: Sequence[Sequence[Move]]) -> CType:
    if isinstance(ctype, Pointer):
        deeper = [moves[1:] for moves in walks if moves]
        if not deeper or ctype.target is None:
            return Pointer(None, ctype.string, ctype.size)
        return Pointer(partial(_pruned, ctype.target(), deeper), ctype.string, ctype.size)
    if isinstance(ctype, Array):
        return Array(_pruned(ctype.element, []), ctype.count)
    return _pruned_struct(ctype, walks) if isinstance(ctype, Struct) else ctype


def _pruned_struct(struct: Struct, walks: Sequence[Sequence[Move]]) -> Struct:
    # A walk that ends here reads all of the struct, but follows none of its pointers.
    whole = not all(walks) or not walks
    checked = {check.field for check in struct.checks}
    fields = []
    for field in struct.fields:
        inner = [moves[1:] for moves in walks if moves and _enters(moves[0], field)]
        if whole or inner or field.name in checked:
            fields.append(Field(field.name, field.offset, _pruned(field.type, inner)))
    alternatives = [_pruned_struct(other, walks) for other in struct.alternatives]
    return Struct(struct.name, struct.size, tuple(fields), struct.checks, alternatives, struct.qmp)


def _enters(move: Move, field: Field) -> bool:
    return isinstance(move, ToMember) and move.field.name == field.name
