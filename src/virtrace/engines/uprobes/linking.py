"""Puts values into a program where it has symbols."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

_INSTRUCTION = 8


def halves(value: int) -> tuple[int, int]:
    """Return both halves of 64 bits, as the signed numbers that instructions hold."""
    low, high = struct.unpack("<ii", (value & (1 << 64) - 1).to_bytes(8, "little"))
    return low, high


def linked(instructions: bytes, symbols: Mapping[int, str], values: Mapping[str, int]) -> bytes:
    """Return instructions with the values of all symbols.

    symbols: the name for each index of an instruction that loads one
    """
    result = bytearray(instructions)
    for index, name in symbols.items():
        for number, half in enumerate(halves(values[name])):
            struct.pack_into("<i", result, (index + number) * _INSTRUCTION + 4, half)
    return bytes(result)


def link(program: Mapping[str, Any], values: Mapping[str, int]) -> bytes:
    """Return a compiled program's instructions with the values of all symbols."""
    symbols = {int(index): name for index, name in program["symbols"].items()}
    return linked(base64.b64decode(program["instructions"]), symbols, values)
