"""How one process learns at once that a thread of another has ended.

The kernel marks a robust mutex as the first thing when the thread that holds it ends: before it
takes down the memory and the files of the process, and before it lets go what the thread traces.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

# As Linux has them, with every C library. pthread_mutexattr_t takes 4 bytes, pthread_mutex_t 40
# to 48.
_ROBUST = _SHARED = 1
_ATTRIBUTES_SIZE, _SIZE = 64, 256


class Lifeline:
    """Held by the thread that makes it, which must let it go before it drops it.

    Made before the fork of the process that waits.
    """

    def __init__(self) -> None:
        """OSError where the C library cannot do it."""
        self._memory = mmap.mmap(-1, _SIZE)
        self._mutex = (ctypes.c_char * _SIZE).from_buffer(self._memory)
        attributes = ctypes.create_string_buffer(_ATTRIBUTES_SIZE)
        self._libc = ctypes.CDLL(None)
        self._call("pthread_mutexattr_init", attributes)
        self._call("pthread_mutexattr_setpshared", attributes, _SHARED)
        self._call("pthread_mutexattr_setrobust", attributes, _ROBUST)
        self._call("pthread_mutex_init", self._mutex, attributes)
        self._call("pthread_mutex_lock", self._mutex)

    def let_go(self) -> None:
        """By the thread that holds it."""
        self._call("pthread_mutex_unlock", self._mutex)

    def wait(self) -> bool:
        """In the other process, until it is let go. Whether the thread has ended instead."""
        status = self._libc.pthread_mutex_lock(self._mutex)
        return bool(status == errno.EOWNERDEAD)

    def _call(self, name: str, *arguments: object) -> None:
        try:
            status = getattr(self._libc, name)(*arguments)
        except AttributeError as error:
            raise OSError(f"the C library has no {name}") from error
        if status:
            raise OSError(status, f"{name}: {os.strerror(status)}")
