"""Clients of libvirt that call it at full speed, each on a connection of its own.

    storm_client.py KIND URI CLIENTS CALLS RESULT

Writes to RESULT, as JSON: when the first call began and the last one ended, by CLOCK_MONOTONIC in
seconds, and how often which answer came.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_Call = Callable[[], str]
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
# Prints nothing: each error would be a line on the terminal.
_silent = _HANDLER(lambda _data, _error: None)


def block_info(libvirt: ctypes.CDLL, connection: ctypes.c_void_p, disk: bytes) -> _Call:
    """Ask for the numbers of a disk of vm1."""
    libvirt.virDomainLookupByName.restype = ctypes.c_void_p
    domain = ctypes.c_void_p(libvirt.virDomainLookupByName(connection, b"vm1"))
    info = (ctypes.c_ulonglong * 3)()

    def call() -> str:
        status = libvirt.virDomainGetBlockInfo(domain, disk, info, 0)
        return f"{status} {info[0]} {info[1]} {info[2]}"

    return call


def statistics(libvirt: ctypes.CDLL, connection: ctypes.c_void_p, _: bytes) -> _Call:
    """Ask for the statistics of all domains."""
    records = ctypes.c_void_p()

    def call() -> str:
        count = libvirt.virConnectGetAllDomainStats(connection, 0, ctypes.byref(records), 0)
        if count >= 0:
            libvirt.virDomainStatsRecordListFree(records)
        return str(count)

    return call


KINDS = {
    "info": (block_info, b"vda"),
    "error": (block_info, b"no-such-disk"),
    "stats": (statistics, b""),
}


def client(kind: str, uri: str, calls: int, all_ready: Any, results: Any) -> None:
    libvirt = ctypes.CDLL("libvirt.so.0")
    libvirt.virConnectOpen.restype = ctypes.c_void_p
    libvirt.virSetErrorFunc(None, _silent)
    connection = ctypes.c_void_p(libvirt.virConnectOpen(uri.encode()))
    make, disk = KINDS[kind]
    call = make(libvirt, connection, disk)
    all_ready.wait()
    began = time.monotonic()
    answers = Counter(call() for _ in range(calls))
    results.put((began, time.monotonic(), answers))


def main() -> None:
    kind, uri, clients, calls, result = sys.argv[1:]
    count = int(clients)
    all_ready = multiprocessing.Barrier(count)
    results: multiprocessing.Queue[tuple[float, float, Counter[str]]] = multiprocessing.Queue()
    arguments = (kind, uri, int(calls) // count, all_ready, results)
    running = [multiprocessing.Process(target=client, args=arguments) for _ in range(count)]
    for one in running:
        one.start()
    began, ended, answers = zip(*(results.get() for _ in running))
    for one in running:
        one.join()
    total: Counter[str] = sum(answers, Counter())
    # All at once, for who waits for it.
    whole = Path(f"{result}.new")
    whole.write_text(json.dumps([min(began), max(ended), total]))
    whole.rename(result)


if __name__ == "__main__":
    main()
