"""Structs without debug info, accepted only if QEMU's answer in the same call agrees.

This module does not need gdb.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from virtrace.binary.ctype import QmpSources, decode, matching_layouts
from virtrace.plan.capture import Unconfirmed
from virtrace.trace.format import Json, Record, unavailable

# A command that was sent in the call, and what its reply returned.
Exchange = tuple[str, Json]


def settle(values: Record, exchanges: Sequence[Exchange]) -> Record:
    """Return the values with every unconfirmed struct decoded, or unavailable."""
    return {
        name: _settled(value, exchanges) if isinstance(value, Unconfirmed) else value
        for name, value in values.items()
    }


def _settled(value: Unconfirmed, exchanges: Sequence[Exchange]) -> Json:
    struct = value.struct
    candidates = [decode(layout, value.raw) for layout in matching_layouts(struct, value.raw)]
    # Sources that leave out a command that the call did send would confirm too much.
    telling = {command for sources in struct.qmp for command in sources}
    asked = {command for command, _ in exchanges} & telling
    sets = [sources for sources in struct.qmp if asked <= sources.keys()]
    agreeing = [
        decoded
        for decoded in candidates
        if any(_agrees(decoded, sources, exchanges) for sources in sets)
    ]
    # A disk that was never used reads the same by any layout.
    if agreeing and all(decoded == agreeing[0] for decoded in agreeing):
        return agreeing[0]
    return unavailable(
        f"{len(agreeing)} of {len(candidates)} known layouts of {struct.name} agree with what "
        "QEMU answered in this call"
    )


def _agrees(values: Mapping[str, Any], sources: QmpSources, exchanges: Sequence[Exchange]) -> bool:
    """Whether, for each command, an element of its replies has the values of all fields."""
    return all(
        any(
            all(_same(values[field], element, paths) for field, paths in fields.items())
            for element in _elements(command, exchanges)
            if _tells(element, fields)
        )
        for command, fields in sources.items()
    )


def _elements(command: str, exchanges: Iterable[Exchange]) -> Iterable[Json]:
    for sent, returned in exchanges:
        if sent == command and isinstance(returned, list):
            yield from returned


def _tells(element: Json, fields: Mapping[str, Sequence[str]]) -> bool:
    """Whether an element has any of the fields: a drive without a medium agrees with all zeros."""
    return any(_at(path, element) is not None for paths in fields.values() for path in paths)


def _same(value: Any, element: Json, paths: Sequence[str]) -> bool:
    said = next((found for path in paths if (found := _at(path, element)) is not None), None)
    if isinstance(value, bool):
        return value == (said is not None)
    # libvirt leaves at 0 what QEMU does not say.
    return bool(value == (0 if said is None else said))


def _at(path: str, element: Json) -> Json:
    for key in path.split("."):
        element = element.get(key) if isinstance(element, Mapping) else None
    return element
