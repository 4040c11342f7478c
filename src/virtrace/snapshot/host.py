"""What the kernel says about processes around the daemon, from /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from virtrace.image.descriptors import file_of, open_files
from virtrace.image.process import read_status, texts_of_processes
from virtrace.snapshot.model import Child, Neighbour, Qemu, QemuThread

_LONGEST_COMMAND = 1 << 14
_MOST_CHILDREN = 100
# In a line of /proc/PID/mountinfo. Spaces in names are written as octal codes there.
_MOUNT_POINT = 4
_OCTAL = re.compile(r"\\([0-7]{3})")
_LOCAL = frozenset(("btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))
# Daemons of libvirt that others use.
_NEIGHBOURS = ("virtlogd", "virtlockd")
# Of the names of sockets for clients: libvirt-sock, virtlogd-sock.
_SOCKET_ENDING = "-sock"
# In a line of /proc/PID/net/unix, the fields of a socket with a path; the flag of one that listens.
_UNIX_FIELDS, _ACCEPTS = 8, 1 << 16
_STDERR = 2
_EXEC_START = re.compile(r"^se\.exec_start\s*:\s*([\d.]+)", re.M)
# In /proc/PID/stat, behind the name: the processor that the thread ran on last.
_PROCESSOR = 36


class Mount(NamedTuple):
    """point: where it is mounted, as the process sees it. type: of the file system."""

    point: str
    type: str


def has_our_clock(pid: int) -> bool:
    """Whether a process is in our time namespace: another one can have another CLOCK_MONOTONIC."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/time") == os.readlink("/proc/self/ns/time")
    # A kernel without such namespaces.
    return True


class Commands:
    """The command lines of processes, each read once."""

    def __init__(self) -> None:
        self._lines: dict[int, str] = {}

    def read(self, pids: Collection[int]) -> None:
        """Read those of several processes at once, which takes as long as that of one."""
        missing = [pid for pid in pids if pid not in self._lines and os.path.exists(f"/proc/{pid}")]
        self._lines |= dict.fromkeys(missing, "")
        self._lines |= texts_of_processes(missing, "cmdline", _LONGEST_COMMAND)

    def of(self, pid: int) -> str | None:
        """Return the command line of a process, or its name; None if it is gone."""
        self.read([pid])
        return _in_words(pid, self._lines.get(pid, ""))

    def is_qemu_of(self, pid: int, uuid: str) -> bool:
        """Whether a process is the QEMU of a domain: libvirt gives it the UUID."""
        self.read([pid])
        line = self._lines.get(pid, "")
        return f"\0{uuid}\0" in line or f"uuid={uuid}" in line

    def is_dnsmasq_of(self, pid: int, network: str) -> bool:
        """Whether a process is the dnsmasq of a network: libvirt gives it a file of that name."""
        self.read([pid])
        program, _, arguments = self._lines.get(pid, "").partition("\0")
        is_dnsmasq = os.path.basename(program) == "dnsmasq"
        return is_dnsmasq and f"/{network}.conf\0" in arguments


def command_of(pid: int) -> str | None:
    """Return the command line of a process, or its name; None if it is gone."""
    return Commands().of(pid)


def _in_words(pid: int, line: str) -> str | None:
    words = line.replace("\0", " ").strip()
    if words:
        return words
    status = read_status(pid)
    return None if status is None else status.get("Name")


def qemu(pid: int) -> Qemu | None:
    """Look at a QEMU; None if it is gone."""
    status = read_status(pid)
    if status is None:
        return None
    threads = tuple(_threads(pid))
    tracer = int(status.get("TracerPid", "0")) or None
    return Qemu(pid, tracer, threads) if threads else None


def children_of(pid: int, tid: int) -> Iterator[Child]:
    """The processes that a thread started and has not waited for."""
    with suppress(OSError):
        found = Path(f"/proc/{pid}/task/{tid}/children").read_text().split()
        for child in map(int, found[:_MOST_CHILDREN]):
            status = read_status(child)
            if status is not None:
                yield Child(child, command_of(child) or "", status["State"][0])


def holders_of(pid: int, files: Collection[str]) -> Iterator[Child]:
    """The other processes that have one of the files open. files: such as ``pipe:[4711]``."""
    for other in _pids() if files else ():
        status = None if other == pid else read_status(other)
        if status is not None and any(file in files for file in open_files(other).values()):
            yield Child(other, command_of(other) or "", status["State"][0])


def neighbours(pid: int) -> Iterator[Neighbour]:
    """The daemons that may work for this one: their sockets are beside its own."""
    listening = dict(_listening(pid))
    named = {name: [other for other in _pids() if _name_of(other) == name] for name in _NEIGHBOURS}
    for folder in _own_folders(pid, listening):
        for name, pids in named.items():
            path = f"{folder}/{name}{_SOCKET_ENDING}"
            file = listening.get(path)
            found = next((one for one in pids if file and file in open_files(one).values()), None)
            status = None if found is None else read_status(found)
            if status is not None:
                yield Neighbour(name, path, found, status["State"][0], has_socket=True)
            else:
                yield Neighbour(name, path, None, None, has_socket=file is not None)


def own_folders(pid: int) -> Sequence[str]:
    """Where the sockets of a daemon are, as it sees them."""
    return _own_folders(pid, dict(_listening(pid)))


def _own_folders(pid: int, listening: Mapping[str, str]) -> Sequence[str]:
    own = {*open_files(pid).values()}
    return sorted(
        {
            os.path.dirname(path)
            for path, file in listening.items()
            if file in own and path.endswith(_SOCKET_ENDING)
        }
    )


def unread(pids: Collection[int]) -> Collection[int]:
    """Return those of some processes whose error output is a pipe that no other one has open."""
    written = {pid: file_of(pid, _STDERR) or "" for pid in pids}
    pipes = {file for file in written.values() if file.startswith("pipe:")}
    # Who reads the pipes of all is asked first.
    for other in sorted(_pids(), key=lambda other: _name_of(other) not in _NEIGHBOURS):
        if not pipes:
            break
        if other not in written:
            pipes.difference_update(open_files(other).values())
    return [pid for pid, file in written.items() if file in pipes]


def _listening(pid: int) -> Iterator[tuple[str, str]]:
    """The Unix sockets that listen in a process's network namespace: path, and file."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/net/unix").read_text(errors="surrogateescape")
        for line in text.split("\n")[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == _UNIX_FIELDS and int(fields[3], 16) & _ACCEPTS:
                yield fields[7], f"socket:[{fields[6]}]"


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _name_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="surrogateescape").rstrip("\n")
    return ""


def mount_of(pid: int, path: str) -> Mount | None:
    """Return the mount that a path of the process is on, without touching the path."""
    with suppress(OSError, ValueError):
        found: list[Mount] = []
        for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").split("\n"):
            first, _, rest = line.partition(" - ")
            fields = first.split(" ")
            if len(fields) > _MOUNT_POINT:
                point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[_MOUNT_POINT])
                found.append(Mount(point, rest.split(" ")[0]))
        inside = [each for each in found if _is_below(path, each.point)]
        # Of several on the same point, the last one is seen.
        return max(reversed(inside), key=lambda each: len(each.point), default=None)
    return None


def is_local(type_of_file_system: str) -> bool:
    """Whether a file system answers without a network or another process."""
    return type_of_file_system in _LOCAL


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def tracer_of(pid: int) -> int | None:
    status = read_status(pid)
    return None if status is None else int(status.get("TracerPid", "0")) or None


class Clocks:
    """How long threads have been asleep.

    The scheduler notes when a thread was last on a processor, by a clock that each processor has of
    its own; that clock is read here by being on that processor. It stands while a hypervisor has
    the processor (steal): a thread has been asleep for so long at least.
    """

    def __init__(self) -> None:
        # By processor: its clock's reading in ms, and the time of that reading.
        self._readings: dict[int, tuple[float, float] | None] = {}

    def asleep(self, pid: int, tid: int) -> float | None:
        """Seconds since the thread was last on a processor; None where the kernel does not say."""
        with suppress(OSError, IndexError, ValueError):
            started = _exec_start(Path(f"/proc/{pid}/task/{tid}/sched").read_text())
            stat = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="surrogateescape")
            processor = int(stat.rpartition(")")[2].split()[_PROCESSOR])
            reading = self._reading(processor)
            if started is not None and reading is not None:
                clock, at = reading
                now = clock + (time.monotonic() - at) * 1000
                # To a millisecond: all that says it says the same.
                return round(max(now - started, 0.0)) / 1000
        return None

    def _reading(self, processor: int) -> tuple[float, float] | None:
        if processor not in self._readings:
            allowed = os.sched_getaffinity(0)
            self._readings[processor] = None
            with suppress(OSError):
                os.sched_setaffinity(0, {processor})
                try:
                    # Of a thread that runs, the kernel notes it a tick late, or as it yields.
                    os.sched_yield()
                    clock = _exec_start(Path("/proc/thread-self/sched").read_text())
                finally:
                    os.sched_setaffinity(0, allowed)
                if clock is not None:
                    self._readings[processor] = clock, time.monotonic()
        return self._readings[processor]


def _exec_start(sched: str) -> float | None:
    found = _EXEC_START.search(sched)
    return None if found is None else float(found[1])


def _threads(pid: int) -> Iterator[QemuThread]:
    try:
        tids = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return
    # The main loop's has the pid of the process.
    for tid in sorted(tids, key=lambda tid: tid != pid):
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace")
            name = Path(f"/proc/{pid}/task/{tid}/comm").read_text(errors="replace").strip()
            channel = _wait_channel(pid, tid)
            yield QemuThread(tid, name, stat.rpartition(")")[2].split()[0], channel)


def _wait_channel(pid: int, tid: int) -> str | None:
    with suppress(OSError):
        name = Path(f"/proc/{pid}/task/{tid}/wchan").read_text()
        return None if name in ("", "0") else name
    return None
