"""A client of libvirt with several calls in flight on one connection.

    many_calls.py URI CALLS

Ends when all calls have been answered.
"""

from __future__ import annotations

import ctypes
import sys
import threading


def run_events(libvirt: ctypes.CDLL) -> None:
    while libvirt.virEventRunDefaultImpl() == 0:
        pass


def main() -> None:
    uri, calls = sys.argv[1:]
    libvirt = ctypes.CDLL("libvirt.so.0")
    # With an event loop, a client takes part in keepalive.
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=run_events, args=(libvirt,), daemon=True).start()
    for name in ("virConnectOpen", "virDomainLookupByName"):
        getattr(libvirt, name).restype = ctypes.c_void_p
    connection = ctypes.c_void_p(libvirt.virConnectOpen(uri.encode()))
    domain = ctypes.c_void_p(libvirt.virDomainLookupByName(connection, b"vm1"))

    def call() -> None:
        libvirt.virDomainGetBlockInfo(domain, b"vda", (ctypes.c_ulonglong * 3)(), 0)

    threads = [threading.Thread(target=call) for _ in range(int(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
