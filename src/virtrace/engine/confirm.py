"""Structs without debug info, accepted only if QEMU's answer in the same call agrees.

This module does not need gdb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from virtrace.binary.ctype import Struct, decoder, matcher
from virtrace.plan.capture import Unconfirmed
from virtrace.trace.format import Json, Record, unavailable

# A command that was sent in the call, and what its reply returned.
Exchange = tuple[str, Json]


# One path of a field in QEMU's answer: its keys. A command's fields with all their paths.
_Keys = Sequence[str]
_Fields = Sequence[tuple[str, Sequence[_Keys]]]


def settle(values: Record, exchanges: Sequence[Exchange]) -> Record:
    """Return the values with every unconfirmed struct decoded, or unavailable."""
    for value in values.values():
        if isinstance(value, Unconfirmed):
            break
    else:
        return values
    return {
        name: _settler(value.struct).settle(value.raw, exchanges)
        if isinstance(value, Unconfirmed)
        else value
        for name, value in values.items()
    }


class _Settler:
    """Decodes structs of one type."""

    def __init__(self, struct: Struct) -> None:
        self.struct = struct
        self._matching = matcher(struct)
        layouts = (struct, *struct.alternatives)
        self._decoders = {id(layout): decoder(layout) for layout in layouts}
        self._sources: list[dict[str, _Fields]] = [
            {
                command: [
                    (field, [path.split(".") for path in paths]) for field, paths in fields.items()
                ]
                for command, fields in sources.items()
            }
            for sources in struct.qmp
        ]
        # Sources that leave out a command that the call did send would confirm too much.
        self._telling = {command for sources in self._sources for command in sources}

    def settle(self, raw: bytes, exchanges: Sequence[Exchange]) -> Json:
        candidates = [self._decoders[id(layout)](raw) for layout in self._matching(raw)]
        asked = {command for command, _ in exchanges} & self._telling
        sets = [sources for sources in self._sources if asked <= sources.keys()]
        agreeing: list[Any] = []
        for decoded in candidates:
            # Many layouts read the same of one struct.
            if decoded in agreeing or any(_agrees(decoded, each, exchanges) for each in sets):
                agreeing.append(decoded)
        # A disk that was never used reads the same by any layout.
        if agreeing and all(decoded == agreeing[0] for decoded in agreeing):
            found: Json = agreeing[0]
            return found
        return unavailable(
            f"{len(agreeing)} of {len(candidates)} known layouts of {self.struct.name} agree with "
            "what QEMU answered in this call"
        )


_settlers: dict[int, _Settler] = {}


def _settler(struct: Struct) -> _Settler:
    """Return the settler of a shipped struct, of which there are a few."""
    settler = _settlers.get(id(struct))
    if settler is None or settler.struct is not struct:
        settler = _settlers[id(struct)] = _Settler(struct)
    return settler


def _agrees(
    values: Mapping[str, Any], sources: Mapping[str, _Fields], exchanges: Sequence[Exchange]
) -> bool:
    """Whether, for each command, an element of its replies has the values of all fields."""
    for command, fields in sources.items():
        # What is not 0 comes first: most elements differ in it, and need no further look.
        fields = sorted(fields, key=lambda field: not values[field[0]])
        if not any(
            _fits(values, element, fields)
            for sent, returned in exchanges
            if sent == command and isinstance(returned, list)
            for element in returned
        ):
            return False
    return True


def _fits(values: Mapping[str, Any], element: Json, fields: _Fields) -> bool:
    """Whether an element has any of the fields, and the values of all.

    One that has none, such as a drive without a medium, would agree with all zeros.
    """
    tells = False
    for field, paths in fields:
        said = None
        for keys in paths:
            said = _at(keys, element)
            if said is not None:
                tells = True
                break
        value = values[field]
        if isinstance(value, bool):
            if value != (said is not None):
                return False
        # libvirt leaves at 0 what QEMU does not say.
        elif value != (0 if said is None else said):
            return False
    return tells


def _at(keys: _Keys, element: Json) -> Json:
    for key in keys:
        if not isinstance(element, dict):
            return None
        element = element.get(key)
    return element
