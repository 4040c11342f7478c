"""A client of libvirt that keeps one connection, and times each call by CLOCK_MONOTONIC.

Reads from standard input how many calls to make, one number a line, or "until" to call until the
next line comes; answers each with the calls as JSON: when each began, and how long it took, in ns.
"""

from __future__ import annotations

import ctypes
import io
import json
import select
import sys
import time

_INFO = ctypes.c_ulonglong * 3


def main() -> None:
    what, uri, guest, disk = sys.argv[1:]
    libvirt = ctypes.CDLL("libvirt.so.0")
    libvirt.virConnectOpen.restype = libvirt.virDomainLookupByName.restype = ctypes.c_void_p
    connection = ctypes.c_void_p(libvirt.virConnectOpen(uri.encode()))
    domain = ctypes.c_void_p(libvirt.virDomainLookupByName(connection, guest.encode()))
    info, state = _INFO(), ctypes.c_int()
    if what == "traced":
        function = libvirt.virDomainGetBlockInfo
        arguments: tuple[object, ...] = (domain, disk.encode(), info, 0)
    else:
        function = libvirt.virDomainGetState
        arguments = (domain, ctypes.byref(state), None, 0)
    # So that the reader sees that it is connected; of the traced call also what it answers.
    assert function(*arguments) == 0
    print(json.dumps([*info]), flush=True)
    # Unbuffered: select() does not see a line that was read along with the one before.
    said = io.FileIO(sys.stdin.fileno())
    for line in iter(said.readline, b""):
        remaining = None if line == b"until\n" else int(line)
        calls: list[tuple[int, int]] = []
        while remaining is None or len(calls) < remaining:
            began = time.monotonic_ns()
            status = function(*arguments)
            calls.append((began, time.monotonic_ns() - began))
            assert status == 0
            # Of one alone there is no percentile.
            if remaining is None and len(calls) > 1 and select.select([said], [], [], 0)[0]:
                said.readline()
                break
        print(json.dumps(calls), flush=True)


if __name__ == "__main__":
    main()
