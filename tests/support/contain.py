"""contain.py ROOT COMMAND...: run it in a mount namespace of its own, whose root is ROOT.

As a container runtime does it: the old root is gone from the namespace. The caller unshares it.
"""

from __future__ import annotations

import ctypes
import os
import sys

MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1 << 12, 1 << 14, 1 << 18, 2
SYS_PIVOT_ROOT = 155  # x86-64

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


root = os.fsencode(sys.argv[1])
check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
check(libc.mount(root, root, None, MS_BIND, None))
os.chdir(root)
check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."))
check(libc.umount2(b".", MNT_DETACH))
os.chdir("/")
os.execv(sys.argv[2], sys.argv[2:])
