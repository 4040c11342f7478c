"""The maps that all programs of a recording share, and what else they are told when loaded."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

from virtrace.engines.uprobes.kernel import (
    ARRAY,
    LRU_HASH,
    RingBuffer,
    add_missing,
    create_map,
    lift_memory_limit,
    look_up,
)
from virtrace.engines.uprobes.layout import (
    CONDITION,
    CONDITION_KEY,
    CONTENTS_KEY,
    KEPT_KEY,
    MOST_KEPT,
    WORD,
)

# Two replies of QEMU of the largest size that libvirt takes fit in it.
RING_BYTES = 1 << 25
# Threads, and open calls, of which something is kept; the oldest go first.
_ENTRIES = 1 << 14


class Maps:
    """ring: what the programs write to. symbols: what they are linked with."""

    def __init__(
        self,
        pid: int | None,
        ring_bytes: int = RING_BYTES,
        *,
        conditions: bool = False,
        contents: bool = False,
    ) -> None:
        """pid: of the process that is recorded, as this one counts; None: it is named later.

        conditions: whether programs have some. contents: whether programs compare what is written.

        Raises: OSError.
        """
        lift_memory_limit()
        self.ring = RingBuffer(ring_bytes)
        self._lost = create_map(ARRAY, 4, WORD, 1, "virtrace_lost")
        self._threads = create_map(LRU_HASH, WORD, WORD, _ENTRIES, "virtrace_threads")
        self._kept = create_map(LRU_HASH, KEPT_KEY, WORD * MOST_KEPT, _ENTRIES, "virtrace_kept")
        self._risen = (
            create_map(LRU_HASH, CONDITION_KEY, CONDITION, _ENTRIES, "virtrace_risen")
            if conditions
            else None
        )
        self._contents = (
            create_map(LRU_HASH, CONTENTS_KEY, WORD, _ENTRIES, "virtrace_data")
            if contents
            else None
        )
        self._next = (
            create_map(LRU_HASH, WORD, 3 * WORD, 1, "virtrace_next") if pid is None else None
        )
        self.symbols: Mapping[str, int] = {
            "ring": self.ring.descriptor,
            "lost": self._lost,
            "threads": self._threads,
            "kept": self._kept,
        }
        if pid is not None:
            self.symbols = {**self.symbols, **symbols_of(pid)}
        if self._next is not None:
            self.symbols = {**self.symbols, "next": self._next}
        if self._risen is not None:
            self.symbols = {**self.symbols, "risen": self._risen}
        if self._contents is not None:
            self.symbols = {**self.symbols, "contents": self._contents}

    def close(self) -> None:
        for descriptor in (
            *(self.ring.descriptor, self._lost, self._threads, self._kept),
            *(self._risen, self._contents, self._next),
        ):
            if descriptor is not None:
                os.close(descriptor)

    def name_process(self, pid: int) -> None:
        """Name the process that is recorded, if it was not known before."""
        if self._next is not None:
            add_missing(self._next, struct.pack("<Q", 0), struct.pack("<QQQ", *_identity(pid)))

    def stood(self, site: int, key: str, value: int) -> None:
        """Note what a value was, unless a program has met it already. key: as of its `per`."""
        assert self._risen is not None
        packed = struct.pack(f"<Q{CONDITION_KEY - WORD}s", site, key.encode())
        add_missing(self._risen, packed, struct.pack("<QQ", value, 0))

    def lost(self) -> int:
        """Return how many events found no room in the ring."""
        return int(struct.unpack("<Q", look_up(self._lost, struct.pack("<I", 0), WORD))[0])


def symbols_of(pid: int) -> Mapping[str, int]:
    """Return what programs are linked with that run in this process. Raises: OSError."""
    return dict(zip(("namespace_device", "namespace_inode", "pid"), _identity(pid)))


def shares_pids(pid: int) -> bool:
    """Return whether a process counts processes and threads as this one does."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino


def _identity(pid: int) -> tuple[int, int, int]:
    """Return the device and inode of a process's PID namespace, and its number there."""
    namespace = os.stat(f"/proc/{pid}/ns/pid")
    return namespace.st_dev, namespace.st_ino, _own_pid(pid)


def _own_pid(pid: int) -> int:
    """Return a process's number in its own PID namespace."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    found = re.search(r"^NSpid:(?:\s+\d+)*\s+(\d+)$", status, re.M)
    # Linux before 4.1 does not say, and has no programs like ours either.
    return int(found[1]) if found else pid
