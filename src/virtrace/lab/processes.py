"""Finds and ends the processes of a lab by what the kernel reports about them.

A killed daemon leaves QEMU running and stale pid files, so neither of them is asked. A process
belongs to a lab if its user is the lab's, it runs a program of a lab, and the lab's folder is in
its environment, which QEMU inherits from its daemon.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

from virtrace.errors import LabError

PROGRAMS = ("libvirtd", "virtqemud", "virtstoraged", "qemu-system-", "qemu-nbd")


def executable(pid: int) -> str:
    """The path of a process's program; empty if it has ended or may not be looked at."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def command_line(pid: int) -> bytes:
    """The arguments of a process, each followed by a NUL; empty if it has ended."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""


def is_of_lab(pid: int, folder: Path, uid: int) -> bool:
    if not os.path.basename(executable(pid)).startswith(PROGRAMS):
        return False
    process = Path("/proc", str(pid))
    try:
        owner = process.stat().st_uid
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    inside = os.fsencode(folder)
    values = (entry.partition(b"=")[2] for entry in environment)
    return owner == uid and any(
        value == inside or value.startswith(inside + b"/") for value in values
    )


def of_lab(folder: Path, uid: int) -> list[int]:
    """The pids of a lab's living processes. A zombie has no environment and does not count."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if is_of_lab(pid, folder, uid)]


def end_all(folder: Path, uid: int, timeout_s: float = 20.0) -> int:
    """Kill a lab's processes, wait until they have ended, and return how many there were.

    By SIGKILL, as nothing in a lab needs to be saved and it also ends a stopped process.

    Raises:
        LabError: a process outlives the time limit
    """
    deadline = time.monotonic() + timeout_s
    ended = 0
    # A daemon may start a process meanwhile: repeat until there is none.
    while pids := of_lab(folder, uid):
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # From here on the pid cannot become that of another process.
                if not is_of_lab(pid, folder, uid):
                    continue
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise LabError(
                        f"process {pid} of the lab in {folder} does not end",
                        "see what holds it with `cat /proc/"
                        f"{pid}/status`, then run `virtrace lab down --dir {folder}` again",
                    )
                ended += 1
            finally:
                os.close(handle)
    return ended
