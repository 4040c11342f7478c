"""A name service (DNS) that answers when it is told to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mounts import mounted
from tests.support.namespaces import within
from tests.support.waiting import PATIENCE

# Of this host, and of no other test.
_ADDRESS = "127.0.0.53"
_PORT, _LONGEST = 53, 512
# RFC 1035, 4.1.1: a response to a query: there is no such name.
_NO_SUCH_NAME = b"\x81\x83"
# To itself: to end.
_NO_MORE = b""


class SilentNames:
    """The server of a name service."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._waiting: list[tuple[bytes, Any]] = []
        self._thread: threading.Thread | None = None

    def asked(self) -> bytes:
        """Wait for a query, and return it."""
        query, sender = self._server.recvfrom(_LONGEST)
        self._waiting.append((query, sender))
        return query

    def answer(self) -> None:
        """From now on, say that there is no such name."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._answer, daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End what answers: nobody may wait for a socket that is closed."""
        self.answer()
        assert self._thread is not None
        self._server.sendto(_NO_MORE, (_ADDRESS, _PORT))
        self._thread.join()

    def _answer(self) -> None:
        asked = True
        while asked:
            for query, sender in self._waiting:
                said = query[:2] + _NO_SUCH_NAME + query[4:6] + bytes(6) + query[12:]
                self._server.sendto(said, sender)
            self._waiting.clear()
            asked = self.asked() != _NO_MORE


@contextmanager
def silent_name_service(pid: int, file: Path) -> Iterator[SilentNames]:
    """Let a process ask such a server meanwhile.

    file: a new file, for the settings of the resolver
    """
    file.write_text(f"nameserver {_ADDRESS}\noptions timeout:30 attempts:1\n")
    file.chmod(0o644)
    with within(pid, "net"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.bind((_ADDRESS, _PORT))
        server.settimeout(PATIENCE)
        names = SilentNames(server)
        try:
            with mounted(pid, Path("/etc/resolv.conf"), "--bind", str(file)):
                try:
                    yield names
                finally:
                    names.answer()
        finally:
            names.end()
