"""libvirt's daemons: which run, which can be traced, and what they would load from disk.

Every check here comes before a tracer is started: a process that fails one is left alone.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtrace.binary.reader import read_by_child
from virtrace.errors import TargetError
from virtrace.image.files import program_of_files
from virtrace.image.model import Program
from virtrace.image.process import (
    Process,
    can_be_opened,
    can_trace_all,
    describe,
    inspect,
    no_process,
    place_of,
    ptrace_is_filtered,
    read_status,
    user_name,
    visible_path,
    yama_refusal,
    yama_scope,
)

DAEMONS = ("libvirtd", "virtqemud")

_DRIVERS = "connection-driver"
_LIBVIRT = re.compile(r"libvirt\.so\.0\.(\d+)\.(\d+)$")


@dataclass(frozen=True)
class Daemon:
    """A running libvirt daemon. What another user's process hides is None.

    place: of one that lives in another root, in words.
    """

    pid: int
    name: str
    user: str
    exe: str | None
    place: str | None

    def __str__(self) -> str:
        place = f", in {self.place}" if self.place else ""
        return f"{self.exe or self.name} of user {self.user}{place}"


def installed(binary: Path) -> Program:
    """What a daemon would have loaded, of files that no process runs.

    binary: libvirtd or virtqemud, libvirt.so.0, or a driver. The others are looked for beside it,
    and where a distribution puts them. TargetError where there is no libvirt.so.0.
    """
    if not binary.name.startswith(("libvirt", *DAEMONS)):
        raise TargetError(
            f"{binary} is no part of libvirt by its name",
            "name libvirtd or virtqemud, libvirt.so.0, or libvirt_driver_qemu.so",
        )
    # Raises where it is not.
    _ = read_by_child(binary).machine
    here = binary.absolute().parent
    prefix = here.parent
    folders = [
        here,
        *((prefix.parent,) if here.name == _DRIVERS else ()),
        *(prefix / "lib64", prefix / "lib"),
        *sorted(prefix.glob("lib/*-linux-gnu*")),
    ]
    for folder in folders:
        libvirt = binary if binary.name.startswith("libvirt.so.0") else folder / "libvirt.so.0"
        if libvirt.is_file():
            break
    else:
        raise TargetError(
            f"there is no libvirt.so.0 beside {binary}, or where it is installed",
            "name the libvirt.so.0 that belongs to it, or put both into one folder",
        )
    places = dict.fromkeys([here, folder, folder / "libvirt" / _DRIVERS])
    drivers = {file.name: file for place in places for file in place.glob("libvirt_driver_*.so")}
    if binary.name.startswith("libvirt_driver_"):
        drivers[binary.name] = binary
    files = [libvirt, *(drivers[name] for name in sorted(drivers))]
    return program_of_files(binary, files)


def libvirt_version(program: Program) -> str | None:
    """Such as ``9.0.0``, from the file name of the mapped libvirt.so.0; None without one."""
    module = program.module("libvirt.so.0")
    match = _LIBVIRT.match(module.name) if module is not None else None
    if match is None:
        return None
    major, minor = divmod(int(match[1]), 1000)
    return f"{major}.{minor}.{int(match[2])}"


def check_traceable(pid: int) -> Process:
    """The process, when nothing that can be known beforehand keeps it from being traced.

    Raises TargetError with the reason otherwise. The process is not touched.
    """
    status = read_status(pid)
    if status is None:
        raise no_process(pid)
    if int(status["Tgid"]) != pid:
        raise TargetError(f"{pid} is a thread of process {status['Tgid']}", f"-p {status['Tgid']}")
    if status["State"].startswith(("Z", "X")):
        raise TargetError(
            f"process {pid} ({status['Name']}) has ended and only waits for its parent to "
            "collect it (a zombie)",
            "`virtrace doctor` lists the libvirt daemons that run",
        )
    process = require_libvirt(inspect(pid))
    tracer = int(status["TracerPid"])
    if tracer:
        raise TargetError(
            f"process {pid} is already traced by {describe(tracer)}",
            "end that tracer first (in GDB: `detach`, `quit`); a process has one at a time",
        )
    yama = yama_refusal(yama_scope(), can_trace_all())
    if yama is not None:
        raise yama
    if ptrace_is_filtered():
        raise TargetError(
            "a seccomp filter forbids ptrace here, as that of many containers does",
            "run in the host, or start the container with --cap-add SYS_PTRACE "
            "--security-opt seccomp=unconfined",
        )
    if status["State"].startswith("T"):
        raise TargetError(
            f"process {pid} is stopped (state T) and would answer no call",
            f"let it run again: kill -CONT {pid}",
        )
    return process


def require_libvirt(process: Process) -> Process:
    """The process itself.

    Raises TargetError where it has no libvirt in it, or one that can no longer be read.
    """
    if process.module("libvirt.so.0") is None:
        raise TargetError(
            f"process {process.pid} is {process.exe}, not a libvirt daemon "
            "(it has no libvirt.so.0 loaded)",
            "name the pid of libvirtd or virtqemud; `virtrace doctor` lists those that run",
        )
    for name in ("libvirt.so.0", "libvirt_driver_qemu.so"):
        module = process.module(name)
        if module is not None and module.deleted and not can_be_opened(module.file):
            raise TargetError(
                f"{module.path} has been replaced or removed since process {process.pid} started "
                "(an upgrade?), and only root can still read the old file",
                "run as root (sudo), or restart the daemon (guests keep running): "
                f"systemctl restart -- {shlex.quote(os.path.basename(process.exe))}",
            )
    return process


def find_daemons(name: str | None = None) -> list[Daemon]:
    """The running processes of that name, or of any libvirt daemon that drives QEMU; by pid.

    Zombies are left out, and so are a daemon's own children on their way to another program.
    """
    names = DAEMONS if name is None else (name,)
    # The kernel cuts a process's name at 15 bytes.
    wanted = {candidate[:15] for candidate in names}
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        status = read_status(int(entry))
        if status is None or status["State"].startswith(("Z", "X")):
            continue
        if status["Name"] in wanted:
            found[int(entry)] = status
    return [
        _daemon(pid, status)
        for pid, status in sorted(found.items())
        if int(status["PPid"]) not in found
    ]


def choose_daemon(name: str | None = None) -> int:
    """The pid of the one daemon there is; TargetError where there is none or several."""
    daemons = find_daemons(name)
    if len(daemons) == 1:
        return daemons[0].pid
    if not daemons:
        raise TargetError(
            f"no {name or ' or '.join(DAEMONS)} is running",
            "start it; where systemd starts it on demand, `virsh -c qemu:///system list` does",
        )
    choices = (f"-p {daemon.pid}  {daemon}" for daemon in daemons)
    raise TargetError(f"{len(daemons)} libvirt daemons are running", "one of", *choices)


def _daemon(pid: int, status: dict[str, str]) -> Daemon:
    exe: str | None = None
    # Another user's process keeps it to itself.
    with suppress(OSError):
        exe = visible_path(os.readlink(f"/proc/{pid}/exe"), os.readlink(f"/proc/{pid}/root"))[0]
    user = user_name(int(status["Uid"].split()[1]))
    return Daemon(pid, status["Name"], user, exe, place_of(pid))
