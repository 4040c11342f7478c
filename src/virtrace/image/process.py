"""Facts about processes from /proc: modules, status, and whether they may be traced.

Nothing here touches a process. The checks run before a tracer starts, and a process that fails one
is left alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pwd
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from virtrace import confined
from virtrace.binary.reader import Files
from virtrace.confined import Bounds, Tell
from virtrace.errors import TargetError
from virtrace.image.memory import STACK_SIZES, stack_ranges
from virtrace.image.model import Module, Program

CAP_SYS_PTRACE = 1 << 19
DELETED = " (deleted)"

# Bytes of /proc/PID/maps, and of a command line in a message.
_LARGEST_MAPS = 8 << 20
_LONGEST_COMMAND = 1 << 12

# Processes that do not answer, before the others behind them are given up, too.
_MOST_GIVEN_UP = 3
_CHILD = Bounds(memory=64 << 20, processor_seconds=2, seconds=10)

# By machine: the number of the system call get_robust_list.
_GET_ROBUST_LIST = {"x86_64": 274, "aarch64": 100}

_CONTAINER = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True)
class Process(Program):
    """A live process as it was when it was inspected.

    start_time: clock ticks since boot; together with the pid it identifies the process.
    """

    pid: int
    start_time: int

    def _doubts_of(self, module: Module, addresses: Mapping[int, bool]) -> dict[int, str]:
        if not module.elf.is_mapped(module.base):
            raise self.has_other_file(module)
        return module.elf.doubts(addresses, module.base)

    def has_other_file(self, module: Module) -> TargetError:
        """The error for a file whose fingerprint is not in memory."""
        return TargetError(
            f"the file {module.path} that can be read is not the one that process "
            f"{self.pid} has in memory",
            "run as root on the host, where the mapped file itself can be read, "
            "or restart the daemon",
        )


def inspect(pid: int) -> Process:
    """Read the facts of a process. Raises: TargetError if it is gone, or may not be read."""
    proc = Path(f"/proc/{pid}")
    try:
        root = os.readlink(proc / "root")
        exe = os.readlink(proc / "exe")
        maps = _maps(pid)
        start_time = int(_stat_fields(pid)[19])
    except PermissionError as error:
        raise _not_ours(pid) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise _no_program(pid) from error
    return Process(
        pid=pid,
        exe=visible_path(exe, root)[0],
        root=proc / "root",
        start_time=start_time,
        modules=tuple(_modules(pid, root, maps)),
    )


def mappings(pid: int) -> list[tuple[int, int]]:
    """First address, and address behind, of each part of memory that is mapped. Raises: OSError."""
    ranges = (line.partition(" ")[0].partition("-") for line in _lines(_maps(pid)))
    return [(int(start, 16), int(end, 16)) for start, _, end in ranges if end]


def stacks_of(pid: int) -> list[tuple[int, int]]:
    """The mappings, parted where the stack of a thread ends. Raises: OSError."""
    return stack_ranges(mappings(pid), _thread_blocks(pid))


def _thread_blocks(pid: int) -> Iterator[int]:
    """Where the C library keeps what it knows of each thread.

    Threads tell the kernel where their lists of robust mutexes are, which are in these blocks. To
    ask for them stops nothing.
    """
    number = _GET_ROBUST_LIST.get(os.uname().machine)
    if number is None:
        return
    libc = ctypes.CDLL(None)
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        asked = (ctypes.c_long(tid), ctypes.byref(head), ctypes.byref(size))
        # A thread that has ended, or that never told, has none.
        if libc.syscall(ctypes.c_long(number), *asked) == 0 and head.value:
            yield head.value


def heaps(pid: int) -> list[tuple[int, int]]:
    """The mappings that hold what a program allocates: private, writable, of no file, no stack.

    Raises: OSError.
    """
    found = []
    for line in _lines(_maps(pid)):
        span, permissions, _, _, inode, *name = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        size = int(end, 16) - int(start, 16)
        is_anonymous = inode == "0" and (not name or name[0] == "[heap]")
        if is_anonymous and permissions.startswith("rw-p") and size not in STACK_SIZES:
            found.append((int(start, 16), int(end, 16)))
    return found


def _maps(pid: int) -> str:
    with open(f"/proc/{pid}/maps", "rb") as file:
        maps = file.read(_LARGEST_MAPS)
    if len(maps) == _LARGEST_MAPS:
        raise TargetError(
            f"process {pid} has more mappings than any daemon", "check which program it runs"
        )
    return os.fsdecode(maps)


def yama_refusal(scope: int, may_trace_all: bool) -> TargetError | None:
    """Why the kernel's Yama module forbids to attach to a daemon; None if it allows it."""
    if scope == 3:
        return TargetError(
            "no process can be traced on this system: kernel.yama.ptrace_scope is 3",
            "set it to 0, 1 or 2 where it is configured (/etc/sysctl.d) and reboot: "
            "3 cannot be changed before that",
        )
    if scope == 0 or may_trace_all:
        return None
    remedy = "run as root (sudo)"
    if scope == 1:
        remedy += ", or allow it until the next boot: sudo sysctl kernel.yama.ptrace_scope=0"
    return TargetError(
        f"kernel.yama.ptrace_scope is {scope}: only root may attach to a running process", remedy
    )


def ptrace_is_filtered() -> bool:
    """Whether a seccomp filter forbids ptrace altogether."""
    status = read_status(os.getpid())
    if status is None or status.get("Seccomp", "0") == "0":
        return False
    # Process 0 does not exist, which the kernel reports if the call reaches it.
    libc = ctypes.CDLL(None, use_errno=True)
    ptrace_cont = 7
    libc.ptrace(ptrace_cont, 0, None, None)
    return ctypes.get_errno() != errno.ESRCH


def yama_scope() -> int:
    """kernel.yama.ptrace_scope; 0 if the kernel has no Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return 0


def can_trace_all() -> bool:
    """Whether this process has CAP_SYS_PTRACE, as root has outside of most containers."""
    status = read_status(os.getpid())
    return status is not None and bool(int(status["CapEff"], 16) & CAP_SYS_PTRACE)


def place_of(pid: int) -> str | None:
    """A description of the other root that a process has, such as a container or a chroot.

    None if it has ours, or if that may not be read. A container is named by the short id that
    `docker ps`, `podman ps` and `crictl ps` print, if the name of its control group contains it.
    """
    with suppress(OSError):
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return container_name(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
        root = os.readlink(f"/proc/{pid}/root")
        return None if root == "/" else f"the chroot {root}"
    return None


def container_name(cgroup: str) -> str:
    """A description of a container. cgroup: the contents of ``/proc/PID/cgroup``."""
    identifiers = _CONTAINER.findall(cgroup)
    if not identifiers:
        return "another mount namespace (a container?)"
    return f"container {identifiers[-1][:12]}"


def read_status(pid: int) -> dict[str, str] | None:
    """The fields of ``/proc/PID/status`` by name; None if no such process is visible."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in _lines(text))}


def text_of_process(pid: int, name: str, limit: int) -> str:
    """Read the beginning of ``/proc/PID/environ`` or ``cmdline``; empty if it cannot be read.

    limit: bytes.
    """
    return texts_of_processes([pid], name, limit).get(pid, "")


def texts_of_processes(pids: Collection[int], name: str, limit: int) -> dict[int, str]:
    """Read the same of several processes at once; those that cannot be read are left out.

    The kernel reads it from the memory of the process, which may be a file in a file system that
    never answers: a child reads it, and is given up after a while.
    """
    found: dict[int, str] = {}
    waiting = sorted({*pids})
    for _ in range(_MOST_GIVEN_UP):
        if not waiting:
            break
        told: list[int] = []

        def tell(line: str, told: list[int] = told) -> None:
            pid, text = json.loads(line)
            told.append(pid)
            if text is not None:
                found[pid] = text

        with suppress(TargetError, OSError):
            confined.run(f"{name} in /proc", partial(_begin, waiting, name, limit), _CHILD, tell)
        # The first one of which nothing was told is what the child waited for.
        waiting = waiting[len(told) + 1 :]
    return found


def _begin(pids: Sequence[int], name: str, limit: int) -> Callable[[Tell], None]:
    """What the child does: it opens all files, and then reads them."""
    files: list[tuple[int, BinaryIO | None]] = []
    for pid in pids:
        try:
            files.append((pid, open(f"/proc/{pid}/{name}", "rb")))  # noqa: SIM115 - read below
        except OSError:
            files.append((pid, None))

    def work(tell: Tell) -> None:
        for pid, file in files:
            text = None
            with suppress(OSError):
                if file is not None:
                    text = file.read(limit).decode(errors="surrogateescape")
            tell(json.dumps([pid, text]))

    return work


def describe_process(pid: int) -> str:
    """A process for a message: name, pid and command line."""
    if pid == 0:
        return "a process outside of this container"
    status = read_status(pid)
    if status is None:
        return f"pid {pid}, which has just ended"
    command = " ".join(text_of_process(pid, "cmdline", _LONGEST_COMMAND).split("\0")).strip()
    return f"{status['Name']} (pid {pid}{': ' + command if command else ''})"


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _modules(pid: int, root: str, maps: str) -> Iterable[Module]:
    """A module for every file with an executable mapping, in the order of addresses."""
    proc = Path(f"/proc/{pid}")
    first: dict[str, tuple[str, str]] = {}
    device: dict[str, str] = {}
    end: dict[str, int] = {}
    executable = set()
    for line in _lines(maps):
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith("/"):
            continue
        address_range, permissions, offset, where, _, path = fields
        first.setdefault(path, (address_range, offset))
        device.setdefault(path, where)
        end[path] = int(address_range.split("-")[1], 16)
        if "x" in permissions:
            executable.add(path)
    found: list[Module] = []
    of_device: dict[str, list[int]] = {}
    for path, (address_range, offset) in first.items():
        if path not in executable:
            continue
        inside, deleted = visible_path(path.replace("\\012", "\n"), root)
        mapped = proc / "map_files" / address_range
        file = mapped if deleted or can_be_opened(mapped) else proc / f"root{inside}"
        start = int(address_range.split("-")[0], 16)
        of_device.setdefault(device[path], []).append(len(found))
        found.append(Module(inside, file, start, end[path], int(offset, 16), deleted))
    # By file system: one that does not answer does not block the others.
    for places in of_device.values():
        files = Files([(found[at].file, found[at].path) for at in places], pid)
        for number, at in enumerate(places):
            found[at] = replace(found[at], files=files, number=number)
    return found


def can_be_opened(mapped: Path) -> bool:
    """Whether a file in ``map_files`` can be opened. Its file system is not asked: it may hang."""
    try:
        os.close(os.open(mapped, os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def visible_path(path: str, root: str) -> tuple[str, bool]:
    """Turn a path from /proc into the process's own, and tell whether the file is deleted.

    /proc gives paths from the reader's root; for a process in a chroot they begin with the chroot.
    """
    deleted = path.endswith(DELETED)
    if deleted:
        path = path[: -len(DELETED)]
    if root != "/" and path.startswith(root + "/"):
        path = path[len(root) :]
    return path, deleted


def began(pid: int) -> float:
    """When a process was started, seconds since 1970. Raises: TargetError if it is gone."""
    try:
        # Field 22, ticks since boot.
        ticks = int(_stat_fields(pid)[19])
    except OSError as error:
        raise no_process(pid) from error
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _stat_fields(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the third on; the second may contain anything."""
    text = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    return text[text.rindex(")") + 1 :].split()


def _lines(text: str) -> list[str]:
    # Not splitlines(): a file name may contain the other separators that it splits at.
    return text.rstrip("\n").split("\n")


def no_process(pid: int) -> TargetError:
    if os.path.exists(f"/proc/{pid}"):
        return TargetError(
            f"process {pid} is hidden from {user_name(os.geteuid())} (the hidepid of /proc)",
            "run as root (sudo)",
        )
    return TargetError(
        f"there is no process {pid}",
        "`virtrace doctor` lists the libvirt daemons that run",
    )


def _no_program(pid: int) -> TargetError:
    """The error for a process without an executable: a kernel thread, or one that has ended."""
    status = read_status(pid)
    if status is None:
        return no_process(pid)
    return TargetError(
        f"process {pid} is {status['Name']}, which runs no program (a kernel thread, or ending)",
        "name the pid of a daemon; `virtrace doctor` lists those that run",
    )


def _not_ours(pid: int) -> TargetError:
    status = read_status(pid)
    if status is None:
        return no_process(pid)
    us = user_name(os.geteuid())
    if can_trace_all():
        why = "a security module (SELinux, AppArmor, Landlock) or a user namespace forbids it"
        remedy = "run outside of the container or confinement that this shell is in"
    elif os.geteuid() == 0:
        why = "CAP_SYS_PTRACE is missing, as it is in most containers"
        remedy = "run in the host, or start the container with --cap-add SYS_PTRACE"
    else:
        why = "only root, or the same user, may"
        remedy = "run as root (sudo)"
    owner = user_name(int(status["Uid"].split()[1]))
    return TargetError(
        f"process {pid} ({status['Name']}) belongs to {owner}, and {us} may not trace it: {why}",
        remedy,
    )
