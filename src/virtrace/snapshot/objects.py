"""Objects of a program that uses GObject, by the type that each of them leads to.

An object begins with the address of its class, and a class with that of its type node. The layout
of a type node (gobject/gtype.c, struct _TypeNode) differs between versions of GLib by what stands
in front; its last member is the list of its ancestors, from itself up to GObject, and that shows
where the others are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from virtrace.errors import TargetError
from virtrace.image.model import Program
from virtrace.snapshot.peek import WORD, Peek, is_pointer

# G_TYPE_OBJECT: the fundamental type 20, shifted by 2.
_GOBJECT = 20 << 2
# Offsets of members before the list of ancestors, bytes.
_QUARK, _DATA, _CHILDREN, _CHILDREN_COUNT, _ANCESTORS_COUNT = -32, -40, -48, -56, -52
_MOST_ANCESTORS, _MOST_CHILDREN, _DEEPEST = 12, 500, 6
_MOST_QUARKS = 200_000
_MOST_REFERENCES = 1 << 24
# GTypeInfo has 16 bits for it.
_SIZE = 0xFFFF
# Words of a type's data in which the address of its class is looked for.
_DATA_WORDS = 14
_NAME = re.compile(r"[A-Za-z][\w-]{2,60}")
# A load relative to the instruction pointer: `mov disp32(%rip), %reg`.
_LOADS = re.compile(
    rb"[\x48\x4c]\x8b[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](?P<displacement>.{4})", re.S
)
_CODE_BYTES = 160
_COMMON_ANCESTOR = "virObject"
# Bytes of memory that are searched at a time; and the bytes of a word that are compared first,
# those in which addresses differ most.
_PIECE = 1 << 22
MOST_SEARCHED = 2 << 30
_COMPARED = (1, 2, 3, 4)


class Census(NamedTuple):
    """All objects of libvirt's own types, by the name of the type.

    searched: bytes of memory that were searched.
    """

    objects: Mapping[str, list[int]]
    searched: int


class Objects:
    """Tells the types of a program's objects."""

    def __init__(self, program: Program, peek: Peek) -> None:
        self._program = program
        self._peek = peek
        # Where the types themselves keep the addresses of their classes.
        self._of_types: set[int] = set()
        # By class and by type node; None where it is none.
        self._classes: dict[int, str | None] = {}
        self._names: dict[int, str | None] = {}
        self._nodes: dict[str, int] = {}
        # Of one object of a type, bytes.
        self.sizes: dict[str, int] = {}
        # Where a type node has its ancestors, once one was found.
        self._ancestors: int | None = None
        self._quarks: list[int] | None = None

    def type_of(self, address: int | None) -> str | None:
        """Return the name of the type of an object, or None if there is none at the address."""
        if address is None or not is_pointer(address):
            return None
        kind = self._peek.word(address)
        if kind is None or not is_pointer(kind):
            return None
        if kind not in self._classes:
            self._classes[kind] = self._class_name(kind)
        name = self._classes[kind]
        references = self._peek.number(address + WORD, 4)
        is_alive = references is not None and 0 < references < _MOST_REFERENCES
        return name if is_alive and address not in self._of_types else None

    def census(self, ranges: Iterable[tuple[int, int]]) -> Census:
        """Find the objects of libvirt's own types in memory.

        Freed memory can hold objects that are no more: only their content tells.
        """
        classes = self._all_classes()
        found: dict[str, list[int]] = {}
        searched = 0
        if not classes:
            return Census(found, searched)
        for start, end in ranges:
            for at in range(start, end, _PIECE):
                data = self._peek.available(at, min(_PIECE, end - at))
                searched += len(data)
                if searched > MOST_SEARCHED:
                    return Census(found, searched)
                if not data:
                    # A damaged core says that it has more memory than there is.
                    break
                for place in places_of(data, classes):
                    name = self.type_of(at + place)
                    if name is not None:
                        found.setdefault(name, []).append(at + place)
        return Census(found, searched)

    def _class_name(self, kind: int) -> str | None:
        node = self._peek.word(kind)
        if node is None or not is_pointer(node, 4):
            return None
        # The node's own data leads back to the class.
        at = self._ancestors_at(node)
        data = None if at is None else self._peek.word(node + at + _DATA)
        words = () if data is None else self._peek.words(data, _DATA_WORDS)
        if data is None or kind not in words[:-1]:
            return None
        self._of_types.add(data + words.index(kind) * WORD)
        name = self._node_name(node)
        if name is not None:
            self._nodes[name] = node
            # Behind the class: the size of an instance.
            self.sizes[name] = words[words.index(kind) + 1] & _SIZE
        return name

    def _ancestors_at(self, node: int) -> int | None:
        if self._ancestors is None:
            words = self._peek.words(node, 20)
            for index in range(7, len(words)):
                if words[index] != node:
                    continue
                count = words[index - 7] >> 32 & 0xFF
                last = index + count
                if 0 < count < _MOST_ANCESTORS and last < len(words) and words[last] == _GOBJECT:
                    self._ancestors = index * WORD
                    break
        return self._ancestors

    def _node_name(self, node: int) -> str | None:
        if node not in self._names:
            self._names[node] = self._name_by_quark(node)
        return self._names[node]

    def _name_by_quark(self, node: int) -> str | None:
        at = self._ancestors_at(node)
        quark = None if at is None else self._peek.number(node + at + _QUARK, 4)
        if not quark or quark > _MOST_QUARKS:
            return None
        if self._quarks is None:
            self._quarks = [*self._quark_tables()]
        for table in self._quarks:
            names = self._peek.word(table)
            if names is not None and is_pointer(names):
                name = self._peek.text(self._peek.word(names + WORD * quark), 80)
                if name is not None and _NAME.fullmatch(name):
                    self._quarks = [table]
                    return name
        return None

    def _quark_tables(self) -> Iterator[int]:
        """Where GLib may keep the address of its table of names: what one function of it loads."""
        module = next((one for one in self._program.modules if "libglib-2.0" in one.name), None)
        function = None
        # Of a core, the file may not be here.
        with suppress(TargetError):
            function = None if module is None else module.elf.exported_function("g_quark_to_string")
        if module is None or function is None:
            return
        code = self._peek.available(module.base + function, _CODE_BYTES)
        for load in _LOADS.finditer(code):
            (displacement,) = struct.unpack("<i", load["displacement"])
            yield module.base + function + load.end() + displacement

    def _all_classes(self) -> set[int]:
        """The classes of all types below the common ancestor, from any of them that is known."""
        root = next(
            (
                node
                for known in self._nodes.values()
                for node in self._lineage(known)
                if self._node_name(node) == _COMMON_ANCESTOR
            ),
            None,
        )
        return set() if root is None else {*self._classes_below(root, 0)}

    def _lineage(self, node: int) -> tuple[int, ...]:
        assert self._ancestors is not None
        count = self._peek.number(node + self._ancestors + _ANCESTORS_COUNT, 1) or 0
        return self._peek.words(node + self._ancestors, min(count, _MOST_ANCESTORS))

    def _classes_below(self, node: int, depth: int) -> Iterator[int]:
        assert self._ancestors is not None
        at = node + self._ancestors
        data = self._peek.word(at + _DATA)
        if data is not None and is_pointer(data):
            for word in self._peek.words(data, _DATA_WORDS):
                if is_pointer(word) and self._peek.word(word) == node:
                    yield word
                    break
        children = self._peek.word(at + _CHILDREN)
        count = self._peek.number(at + _CHILDREN_COUNT, 4)
        if children and count and count < _MOST_CHILDREN and depth < _DEEPEST:
            for child in self._peek.words(children, count):
                yield from self._classes_below(child, depth + 1)


def places_of(data: bytes, values: Collection[int]) -> Iterator[int]:
    """The offsets of aligned words that have one of some values.

    Few words are like one of the values in each of some bytes: those are found by operations on all
    words at once, a byte of each, which takes a seventh of the time of a look at each word.
    """
    whole = data[: len(data) // WORD * WORD]
    like = (1 << len(whole)) - 1
    for at in _COMPARED:
        alike = bytearray(256)
        for value in values:
            alike[value >> 8 * at & 0xFF] = 1
        like &= int.from_bytes(whole[at::WORD].translate(alike), "little")
    found = like.to_bytes(len(whole) // WORD, "little")
    index = found.find(1)
    while index >= 0:
        place = index * WORD
        if int.from_bytes(whole[place : place + WORD], "little") in values:
            yield place
        index = found.find(1, index + 1)
