"""Lets one process learn at once that a thread of another process has ended.

When a thread ends, the kernel first marks the robust mutexes that it holds: before it frees the
memory and the files of the process, and before it detaches what the thread traces.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

# The same on Linux with every C library. A pthread_mutexattr_t takes 4 bytes, a pthread_mutex_t
# 40 to 48.
_ROBUST = _SHARED = 1
_ATTRIBUTES_SIZE, _SIZE = 64, 256


class Lifeline:
    """A robust mutex, held by the thread that makes it.

    Make it before the process that waits is forked; release it before it is dropped.
    """

    def __init__(self) -> None:
        """Raises: OSError if the C library cannot do it."""
        self._memory = mmap.mmap(-1, _SIZE)
        self._mutex = (ctypes.c_char * _SIZE).from_buffer(self._memory)
        attributes = ctypes.create_string_buffer(_ATTRIBUTES_SIZE)
        self._libc = ctypes.CDLL(None)
        self._call("pthread_mutexattr_init", attributes)
        self._call("pthread_mutexattr_setpshared", attributes, _SHARED)
        self._call("pthread_mutexattr_setrobust", attributes, _ROBUST)
        self._call("pthread_mutex_init", self._mutex, attributes)
        self._call("pthread_mutex_lock", self._mutex)

    def release(self) -> None:
        """Release it, in the thread that holds it."""
        self._call("pthread_mutex_unlock", self._mutex)

    def wait(self) -> bool:
        """Wait for its release, in the other process; return whether the thread ended instead."""
        status = self._libc.pthread_mutex_lock(self._mutex)
        return bool(status == errno.EOWNERDEAD)

    def _call(self, name: str, *arguments: object) -> None:
        try:
            status = getattr(self._libc, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"the C library has no {name}") from error
        if status:
            raise OSError(status, f"{name}: {os.strerror(status)}")
