"""Hostile memory: wild pointers, loops, huge counts. Nothing raises, and all is bounded."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest

from virtrace.image.memory import PAGE
from virtrace.image.model import Program
from virtrace.snapshot.domains import domain_at
from virtrace.snapshot.monitors import monitor_at
from virtrace.snapshot.objects import Objects, places_of
from virtrace.snapshot.peek import Peek, is_pointer
from virtrace.snapshot.requests import request_at
from virtrace.snapshot.servers import keepalives_at, server_at
from virtrace.snapshot.threads import carried_by, name_on_stack

START, PAGES = 0x7F0000000000, 64
TIDS = range(1000, 1040)
NOW = 1_800_000_000.0
NUMBERS = (0, 1, 2, 8, 40, 80, 194, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 63, (1 << 64) - 1)
TEXTS = (b"vm1\0", b'{"execute":"x","id":"y"}\0', b"remoteDispatchDomainSave\0", b"\xff" * 40, b"")


class Hostile:
    """Memory of words that are pointers into it, plausible numbers, texts or noise."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        words = bytearray()
        while len(words) < PAGES * PAGE:
            kind = chance.random()
            if kind < 0.5:
                words += struct.pack("<Q", START + chance.randrange(PAGES * PAGE // 8) * 8)
            elif kind < 0.8:
                words += struct.pack("<Q", chance.choice((*NUMBERS, *TIDS)))
            elif kind < 0.9:
                words += chance.choice(TEXTS).ljust(48, b"\0")
            else:
                words += struct.pack("<Q", int(NOW * 1000) - chance.randrange(10**6))
        self._data = bytes(words[: PAGES * PAGE])

    def read_available(self, address: int, size: int) -> bytes:
        at = address - START
        return self._data[at : at + size] if 0 <= at < len(self._data) else b""

    def read(self, address: int, size: int) -> bytes:
        return self.read_available(address, size)


@pytest.mark.parametrize("seed", range(20))
def test_any_memory_is_read_in_bounded_time(seed: int) -> None:
    peek = Peek(Hostile(seed))
    objects = Objects(Program("/x", Path("/"), ()), peek)
    began = time.process_time()
    for address in range(START, START + PAGES * PAGE, 512):
        objects.type_of(address)
        domain_at(peek, address, TIDS, NOW, lambda pid, uuid: None)
        monitor_at(peek, objects, "qemuMonitor", address)
        server_at(peek, objects, address, lambda pid: pid, {})
        keepalives_at(peek, [address], NOW, 5000.0)
        request_at(peek, address, "virDomainGetBlockInfo")
        carried_by(peek, objects, 1000, address, ())
        name_on_stack(peek, ())
    assert not objects.census([(START, START + PAGES * PAGE)]).objects
    assert time.process_time() - began < 10


def test_text_is_printable_and_ends() -> None:
    class Text:
        def read_available(self, address: int, size: int) -> bytes:
            return (b"x" * PAGE)[:size]

        def read(self, address: int, size: int) -> bytes:
            return self.read_available(address, size)

    assert Peek(Text()).text(START, 100) is None
    assert Peek(Hostile(1)).text(None) is None
    assert Peek(Hostile(1)).text(8) is None
    assert not is_pointer(None)
    assert not is_pointer(START + 1)
    assert is_pointer(START + 1, 1)


def test_all_words_with_one_of_some_values_are_found() -> None:
    chosen = random.Random(1)
    values = {START + chosen.randrange(1 << 20) * 16 for _ in range(60)}
    # Also words that differ in one byte only.
    like = [value ^ 1 << chosen.randrange(64) for value in values]
    words = chosen.choices([0, *like, *values, START, (1 << 64) - 1], k=20_000)
    data = struct.pack(f"<{len(words)}Q", *words)
    expected = [8 * at for at, word in enumerate(words) if word in values]
    assert len(expected) > 1000
    assert [*places_of(data, values)] == expected
    assert [*places_of(data + data[:7], values)] == expected
    assert [*places_of(b"", values)] == []
