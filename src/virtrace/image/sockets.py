"""What is at the other end of a Unix socket, as the kernel says.

NETLINK_SOCK_DIAG: include/uapi/linux/sock_diag.h and unix_diag.h. Sockets of one network namespace
are known at a time.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _ERROR, _DONE = 20, 2, 3
_REQUEST, _DUMP = 0x001, 0x300
# nlmsghdr; unix_diag_req; unix_diag_msg; nlattr.
_HEADER = struct.Struct("=IHHII")
_ASKED = struct.Struct("=BBHIIIII")
_ANSWER = struct.Struct("=BBBBIII")
_ATTRIBUTE = struct.Struct("=HH")
# Bits of what is asked for, and the attributes of an answer: the number of the peer; of a socket
# that listens, the numbers of those that wait to be accepted.
_SHOW_PEER, _SHOW_WAITING = 0x04, 0x08
_PEER, _WAITING = 2, 3
_ALL_STATES, _LISTENING = 0xFFFFFFFF, 1 << 10
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_LARGEST_ANSWER = 1 << 16
_SECONDS = 1.0
_CLONE_NEWNET = 0x40000000


def peer_of(file: str, pid: int | None = None) -> str | None:
    """Return the other end of a Unix socket; None if it has none, or it is not known.

    Of a connection that nobody has accepted yet, it is the socket that listens.
    file: such as ``socket:[4711]``. pid: of a process in whose network namespace it is; None: ours.
    """
    found = _SOCKET.fullmatch(file)
    if found is None:
        return None
    number = int(found[1])
    with suppress(OSError, struct.error), _asking(pid) as asking:
        for _, attributes in _asked(asking, number, _ALL_STATES, _SHOW_PEER):
            peers = attributes.get(_PEER, ())
            if peers and peers[0]:
                return f"socket:[{peers[0]}]"
        for listener, attributes in _asked(asking, None, _LISTENING, _SHOW_WAITING):
            if number in attributes.get(_WAITING, ()):
                return f"socket:[{listener}]"
    return None


@contextmanager
def _asking(pid: int | None) -> Iterator[socket.socket]:
    """A socket to ask by, in the network namespace of a process. Raises: OSError."""
    with _inside(pid):
        asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    with asking:
        asking.settimeout(_SECONDS)
        yield asking


@contextmanager
def _inside(pid: int | None) -> Iterator[None]:
    """Have this thread in the network namespace of a process meanwhile. Raises: OSError."""
    if pid is None or os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
        yield
        return
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(other)
        finally:
            os.close(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _asked(
    asking: socket.socket, number: int | None, states: int, show: int
) -> Iterator[tuple[int, dict[int, tuple[int, ...]]]]:
    """Ask for one Unix socket, or for all: each its number, and its attributes as numbers.

    Raises: OSError, struct.error.
    """
    flags = _REQUEST if number is not None else _REQUEST | _DUMP
    # Its cookie is not known.
    request = _ASKED.pack(socket.AF_UNIX, 0, 0, states, number or 0, show, 0xFFFFFFFF, 0xFFFFFFFF)
    size = _HEADER.size + len(request)
    asking.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, flags, 1, 0) + request)
    while True:
        data = asking.recv(_LARGEST_ANSWER)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind in (_ERROR, _DONE):
                return
            _, _, _, _, found, _, _ = _ANSWER.unpack_from(data, _HEADER.size)
            yield found, _attributes(data[_HEADER.size + _ANSWER.size : length])
            data = data[max(length + 3 & ~3, _HEADER.size) :]
        if number is not None:
            return


def _attributes(data: bytes) -> dict[int, tuple[int, ...]]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        numbers = data[_ATTRIBUTE.size : length]
        found[kind] = struct.unpack_from(f"={len(numbers) // 4}I", numbers)
        data = data[max(length + 3 & ~3, _ATTRIBUTE.size) :]
    return found
