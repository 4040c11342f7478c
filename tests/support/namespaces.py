"""What is in the namespaces of another process, and what is made there."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from virtrace.image.process import read_status

# From linux/sockios.h and net/if.h.
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def within(pid: int, kind: str) -> Iterator[None]:
    """Make sockets (``net``) or processes (``pid``) in the namespace of a process meanwhile."""
    before = os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY)
    other = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    try:
        _enter(other)
        try:
            yield
        finally:
            _enter(before)
    finally:
        os.close(before)
        os.close(other)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def open_loopback(pid: int) -> None:
    """Let processes in a new network namespace connect to each other.

    pid: of one of them
    """
    with within(pid, "net"), socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


def own_number(pid: int) -> int:
    """The number that a thread or process has in its own PID namespace."""
    status: dict[str, Any] | None = read_status(pid)
    assert status is not None
    return int(status["NSpid"].split()[-1])


def pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def here(namespace: str, number: int) -> int:
    """The number that this host has for a process.

    namespace: the PID namespace of the process. number: that it has there
    """
    for entry in filter(str.isdigit, os.listdir("/proc")):
        # It may end meanwhile.
        with suppress(OSError, AssertionError):
            if pid_namespace(int(entry)) == namespace and own_number(int(entry)) == number:
                return int(entry)
    raise AssertionError(f"there is no process {number} in {namespace}")
