"""What a thread carries, in memory as the C library lays it out."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from virtrace.image.memory import PAGE
from virtrace.image.model import Program
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.threads import carried_by

START, TID = 0x7F0000000000, 4711
BLOCK, NAME = START + PAGE, START + 64


class Memory:
    """Two pages: a stack, and behind it the thread's own block."""

    def __init__(self) -> None:
        data = bytearray(2 * PAGE)

        def put(address: int, form: str, *values: object) -> None:
            struct.pack_into(form, data, address - START, *values)

        put(BLOCK, "<QQQ", BLOCK, 1, BLOCK)
        put(BLOCK + 720, "<i", TID)
        put(BLOCK + 0x310, "<QQ", 1, NAME)
        put(NAME, "<30s", b"remoteDispatchDomainGetInfo")
        self._data = bytes(data)

    def read_available(self, address: int, size: int) -> bytes:
        at = address - START
        return self._data[at : at + size] if 0 <= at < len(self._data) else b""

    def read(self, address: int, size: int) -> bytes:
        return self.read_available(address, size)


@pytest.mark.parametrize("end", [BLOCK, BLOCK + 64, BLOCK + 1000, START + 2 * PAGE])
def test_the_block_is_found_at_the_end_of_the_stack(end: int) -> None:
    """Where the mapping ends, or the block begins."""
    peek = Peek(Memory())
    objects = Objects(Program("/x", Path("/"), ()), peek)
    assert carried_by(peek, objects, TID, end, ()).api == "virDomainGetInfo"
    assert carried_by(peek, objects, TID + 1, end, ()).api is None
