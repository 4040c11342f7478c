"""Finds and ends the processes of a lab by what the kernel says of them.

A daemon that was killed leaves its QEMU running and pid files that may be stale, so
neither files nor the daemon are asked: a process is a lab's when it belongs to the lab's
user, runs one of a lab's programs, and has the lab's folder in its environment, which
QEMU inherits from its daemon.
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
    """The path of what a process runs; empty where it is gone, a zombie, or not ours to see."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def command_line(pid: int) -> bytes:
    """Arguments, each with a NUL behind it; empty where the process is gone."""
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
    """Pids of a lab's living processes; a zombie, which has no environment left, is not one."""
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in pids if is_of_lab(pid, folder, uid)]


def end_all(folder: Path, uid: int, timeout_s: float = 20.0) -> int:
    """Kill a lab's processes and wait until they are gone; how many there were.

    SIGKILL, because nothing in a lab is worth saving and a stopped (traced) process obeys
    it too. LabError when one outlives the time limit.
    """
    deadline = time.monotonic() + timeout_s
    ended = 0
    # A daemon may start a process while the others are being killed: look until none is left.
    while pids := of_lab(folder, uid):
        for pid in pids:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                # The handle fixes the process; only now does a check of the pid count.
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
