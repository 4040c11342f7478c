"""A file system that does not answer."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.mounts import mounted
from tests.support.waiting import PATIENCE

# include/uapi/linux/fuse.h: fuse_in_header, fuse_out_header, fuse_init_out.
_ASKED = struct.Struct("<IIQQIIII")
_ANSWER = struct.Struct("<IiQ")
_INIT_ANSWER = struct.Struct("<IIIIHHIIHHI28x")
_INIT, _MAJOR, _MINOR = 26, 7, 31
_LONGEST = 1 << 17


class SilentFiles:
    """The server of a FUSE mount, which takes requests and answers none."""

    def __init__(self, device: int) -> None:
        self._device = device

    def asked(self) -> int:
        """Wait for a request, and return the id of the thread that waits for its answer."""
        assert select.select([self._device], [], [], PATIENCE)[0]
        _, _, _, _, _, _, thread, _ = _ASKED.unpack_from(os.read(self._device, _LONGEST))
        assert isinstance(thread, int)
        return thread

    def abort(self) -> None:
        """Let all who wait, or will, get an error: the kernel gives up on the file system."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

    def answer_mount(self) -> None:
        _, request, number, *_ = _ASKED.unpack_from(os.read(self._device, _LONGEST))
        assert request == _INIT
        said = _INIT_ANSWER.pack(_MAJOR, _MINOR, 4096, 0, 16, 12, 4096, 1, 1, 0, 0)
        header = _ANSWER.pack(_ANSWER.size + len(said), 0, number)
        os.write(self._device, header + said)


@contextmanager
def silent_files(pid: int, point: Path) -> Iterator[SilentFiles]:
    """Mount such a file system meanwhile; whoever waits for it gets an error in the end.

    pid: of a process that sees it. point: an existing folder
    """
    device = os.open("/dev/fuse", os.O_RDWR)
    server = SilentFiles(device)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        words = ("-i", "-t", "fuse", "-o", options, "silent")
        with mounted(pid, point, *words, pass_fds=[device]):
            try:
                server.answer_mount()
                yield server
            finally:
                server.abort()
    finally:
        # Also the end of this process, however it comes, closes the device.
        server.abort()
