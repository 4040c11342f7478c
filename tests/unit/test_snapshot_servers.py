"""Where the workers of a server are found: other words of the same object look like them."""

from __future__ import annotations

import struct
from pathlib import Path

from virtrace.image.memory import PAGE
from virtrace.image.model import Program
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.servers import server_at

SERVER, NAME, POOL, THREADS = (0x7F0000000000 + 512 * index for index in range(4))
HANDLES = [THREADS + 64 * number for number in range(4)]
# A virThreadPool of libvirt 12.8.0 with glibc 2.42, where a worker waited 124 times: its counts,
# one of which would do as an address.
LIMITS = [4, 1, 0, 4, THREADS, 5, 5, THREADS]
CONDITION = [249, 123, 0, 4, 0x7A00000078, 0]
WORKERS = [0, POOL, POOL, POOL, 0, 0, 0, 0, 0, 0, 5 << 32, 0, 0, 0, *CONDITION, *[0] * 6, *LIMITS]


class Words:
    """Memory of a few objects."""

    def __init__(self, objects: dict[int, list[int]]) -> None:
        self._data = bytearray(PAGE)
        for address, words in objects.items():
            struct.pack_into(f"<{len(words)}Q", self._data, address - SERVER, *words)

    def read_available(self, address: int, size: int) -> bytes:
        at = address - SERVER
        return bytes(self._data[at : at + size]) if 0 <= at < PAGE else b""

    def read(self, address: int, size: int) -> bytes:
        return self.read_available(address, size)


def test_counts_of_a_condition_are_not_the_limits_of_workers() -> None:
    server = [0] * 8 + [NAME, POOL] + [0] * 14
    name = int.from_bytes(b"libvirtd", "little")
    peek = Peek(Words({SERVER: server, NAME: [name], POOL: WORKERS, THREADS: HANDLES}))
    found = server_at(peek, Objects(Program("/x", Path("/"), ()), peek), SERVER, int, {})
    assert found is not None
    assert found.pool is not None
    assert (found.pool.most, found.pool.workers, found.pool.free) == (4, 4, 0)
    assert found.pool.is_exhausted
