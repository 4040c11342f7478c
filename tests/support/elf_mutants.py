"""ELF files, real ones, with changes where a reader looks: headers, tables, notes, debug info."""

from __future__ import annotations

import argparse
import random
import struct
from collections.abc import Callable
from pathlib import Path

_HEADER, _SEGMENT, _SECTION = 64, 56, 64
_COMPRESSED = 1 << 11
# What readers take for sizes, offsets and counts.
ODD = (0, 1, 7, 8, 0x7F, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32)
ODD_WIDE = (1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 8)


class Mutants:
    """Changes of one file of 64 bits, little-endian. The same seed gives the same file."""

    def __init__(self, file: Path) -> None:
        self._original = file.read_bytes()
        (self._segments_at,) = struct.unpack_from("<Q", self._original, 32)
        (self._sections_at,) = struct.unpack_from("<Q", self._original, 40)
        (self._segments,) = struct.unpack_from("<H", self._original, 56)
        (self._sections,) = struct.unpack_from("<H", self._original, 60)
        self._ranges = {}
        for number in range(1, self._sections):
            at = self._sections_at + number * _SECTION
            kind, offset, size = struct.unpack_from("<4xI16xQQ", self._original, at)
            if kind != 8 and size:
                self._ranges[number] = range(offset, offset + size)

    def make(self, seed: int) -> bytes:
        chosen = random.Random(seed)
        data = bytearray(self._original)
        ways: list[Callable[[bytearray, random.Random], None]] = [
            self._header,
            self._segment,
            self._section,
            self._section,
            self._kind,
            self._content,
            self._content,
            self._content,
            self._copy,
            self._cut,
        ]
        for _ in range(chosen.choice((1, 1, 1, 2, 4))):
            chosen.choice(ways)(data, chosen)
        return bytes(data)

    def _put(self, data: bytearray, at: int, size: int, chosen: random.Random) -> None:
        value = chosen.choice(
            [*ODD, *ODD_WIDE, len(data), len(data) - 1, chosen.getrandbits(8 * size)]
        )
        if 0 <= at <= len(data) - size:
            data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def _header(self, data: bytearray, chosen: random.Random) -> None:
        at = chosen.choice((4, 5, 16, 18, 32, 40, 54, 56, 58, 60, 62))
        self._put(data, at, 8 if at in (32, 40) else 1 if at < 16 else 2, chosen)

    def _segment(self, data: bytearray, chosen: random.Random) -> None:
        at = self._segments_at + chosen.randrange(self._segments) * _SEGMENT
        field, size = chosen.choice(((0, 4), (4, 4), (8, 8), (16, 8), (32, 8), (40, 8)))
        self._put(data, at + field, size, chosen)

    def _section(self, data: bytearray, chosen: random.Random) -> None:
        at = self._sections_at + chosen.randrange(self._sections) * _SECTION
        field, size = chosen.choice(
            ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (56, 8))
        )
        self._put(data, at + field, size, chosen)

    def _kind(self, data: bytearray, chosen: random.Random) -> None:
        """A section that says of itself that it is another, or compressed."""
        one, other = (
            self._sections_at + chosen.randrange(self._sections) * _SECTION for _ in range(2)
        )
        if chosen.random() < 0.5:
            data[one : one + 4] = data[other : other + 4]
        else:
            flags = int.from_bytes(data[one + 8 : one + 16], "little") | _COMPRESSED
            data[one + 8 : one + 16] = flags.to_bytes(8, "little")

    def _content(self, data: bytearray, chosen: random.Random) -> None:
        """A few words of one section; mostly where a table begins."""
        where = self._ranges[chosen.choice([*self._ranges])]
        for _ in range(chosen.choice((1, 2, 16))):
            reach = min(len(where), 64 if chosen.random() < 0.5 else len(where))
            size = chosen.choice((1, 2, 4, 8))
            self._put(data, where.start + chosen.randrange(reach), size, chosen)

    def _copy(self, data: bytearray, chosen: random.Random) -> None:
        """A part of one section over a part of another."""
        one, other = (self._ranges[chosen.choice([*self._ranges])] for _ in range(2))
        size = chosen.randrange(min(len(one), len(other)) + 1)
        data[one.start : one.start + size] = data[other.start : other.start + size]

    def _cut(self, data: bytearray, chosen: random.Random) -> None:
        del data[chosen.randrange(1, len(data)) :]


def command_line(about: str | None, run: Callable[[int, int], list[str]], times: int) -> int:
    """The exit status of a fault run: 1 where some of its mutants failed, which it prints.

    run: is given how many mutants, and the seed of the first. times: where nothing says how many.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--times", type=int, default=times)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failures = run(args.times, args.seed)
    print("\n".join(failures))
    return 1 if failures else 0
