"""System calls in which threads of a daemon wait.

x86-64, arch/x86/entry/syscalls/syscall_64.tbl.
"""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """descriptor, path: the index of the argument that is one; None where none is."""

    name: str
    descriptor: int | None = None
    path: int | None = None


FUTEX = 202
# The kernel goes on by it with an interrupted futex or poll.
RESTART = 219
WAITS_FOR_CHILD = (61, 247)
POLL, PPOLL = 7, 271
POLLS = (POLL, 23, 232, PPOLL, 281)

KNOWN = {
    0: Known("read", 0),
    1: Known("write", 0),
    2: Known("open", path=0),
    4: Known("stat", path=0),
    5: Known("fstat", 0),
    6: Known("lstat", path=0),
    7: Known("poll"),
    16: Known("ioctl", 0),
    19: Known("readv", 0),
    20: Known("writev", 0),
    21: Known("access", path=0),
    23: Known("select"),
    35: Known("nanosleep"),
    42: Known("connect", 0),
    43: Known("accept", 0),
    44: Known("sendto", 0),
    45: Known("recvfrom", 0),
    46: Known("sendmsg", 0),
    47: Known("recvmsg", 0),
    56: Known("clone"),
    57: Known("fork"),
    58: Known("vfork"),
    61: Known("wait4"),
    72: Known("fcntl", 0),
    73: Known("flock", 0),
    74: Known("fsync", 0),
    75: Known("fdatasync", 0),
    82: Known("rename", path=0),
    83: Known("mkdir", path=0),
    87: Known("unlink", path=0),
    89: Known("readlink", path=0),
    90: Known("chmod", path=0),
    92: Known("chown", path=0),
    137: Known("statfs", path=0),
    138: Known("fstatfs", 0),
    165: Known("mount", path=1),
    166: Known("umount2", path=0),
    202: Known("futex"),
    217: Known("getdents64", 0),
    219: Known("restart_syscall"),
    230: Known("clock_nanosleep"),
    232: Known("epoll_wait", 0),
    247: Known("waitid"),
    257: Known("openat", path=1),
    262: Known("newfstatat", path=1),
    263: Known("unlinkat", path=1),
    269: Known("faccessat", path=1),
    271: Known("ppoll"),
    281: Known("epoll_pwait", 0),
    285: Known("fallocate", 0),
    332: Known("statx", path=1),
    435: Known("clone3"),
    437: Known("openat2", path=1),
    439: Known("faccessat2", path=1),
}
