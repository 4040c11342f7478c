"""The processes of targets: which run, which can be traced, and what they would load from disk.

All checks run before a tracer is started: a process that fails one is not touched.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from virtrace.binary.reader import read_by_child
from virtrace.errors import TargetError
from virtrace.image.files import program_of_files
from virtrace.image.model import Program
from virtrace.image.process import (
    Process,
    can_be_opened,
    can_trace_all,
    describe_process,
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
from virtrace.targets import QEMU, either, known_targets, target_of


@dataclass(frozen=True)
class Daemon:
    """A running process of a target.

    name: of the process
    exe: path of its program; None where the kernel hides it, as from other users
    place: the container or chroot that it runs in, if any
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
    """The program that files on disk would be, if a process ran them.

    binary: the program, its main module or one of its drivers. The others are looked for beside it
    and where distributions install them.

    Raises:
        TargetError: no target has such a file, or its main module is missing
    """
    targets = known_targets()
    named = (one for one in targets if binary.name.startswith((one.prefix, *one.daemons)))
    target = next(named, None)
    if target is None:
        raise TargetError(
            f"{binary} is not part of {either(target.name for target in targets)} by its name",
            "name a daemon's program, its main module "
            f"({either(target.module for target in targets)}) or one of its drivers",
        )
    # Raises where it is not readable.
    _ = read_by_child(binary).machine
    below, pattern = os.path.split(target.drivers or "")
    here = binary.absolute().parent
    prefix = here.parent
    folders = [
        here,
        *((prefix.parent,) if here.name == os.path.basename(below) else ()),
        *(prefix / "lib64", prefix / "lib"),
        *sorted(prefix.glob("lib/*-linux-gnu*")),
    ]
    for folder in folders:
        main = binary if binary.name.startswith(target.module) else folder / target.module
        if main.is_file():
            break
    else:
        raise TargetError(
            f"there is no {target.module} beside {binary}, or where it is installed",
            f"name the {target.module} that belongs to it, or put both into one folder",
        )
    drivers: dict[str, Path] = {}
    if pattern:
        for place in dict.fromkeys([here, folder, folder / below]):
            drivers.update((file.name, file) for file in place.glob(pattern))
        if fnmatch(binary.name, pattern):
            drivers[binary.name] = binary
    return program_of_files(binary, [main, *(drivers[name] for name in sorted(drivers))])


def check_traceable(pid: int) -> Process:
    """The process, if nothing that can be known beforehand prevents a trace of it.

    Raises:
        TargetError: it cannot be traced
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
            "`virtrace doctor` lists the daemons that run",
        )
    process = require_target(inspect(pid))
    tracer = int(status["TracerPid"])
    if tracer:
        raise TargetError(
            f"process {pid} is already traced by {describe_process(tracer)}",
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


def require_target(process: Process) -> Process:
    """The process itself.

    Raises:
        TargetError: no target is loaded in it, or its files can no longer be read
    """
    target = target_of(process)
    for module in process.modules:
        is_own = module.name.startswith(target.prefix)
        if is_own and module.deleted and not can_be_opened(module.file):
            raise TargetError(
                f"{module.path} has been replaced or removed since process {process.pid} started "
                "(an upgrade?), and only root can still read the old file",
                "run as root (sudo), or restart the daemon (guests keep running): "
                f"systemctl restart -- {shlex.quote(os.path.basename(process.exe))}",
            )
    return process


def require_modules(process: Program, modules: Collection[str]) -> None:
    """Raises TargetError if the process lacks one of the modules that a recipe needs."""
    missing = _missing(process, modules)
    if missing:
        if not isinstance(process, Process):
            raise TargetError(
                f"{process.exe} has no {_listed(missing)} beside it, which this recipe traces",
                f"trace {_who_loads(missing)}",
            )
        raise TargetError(
            f"process {process.pid} ({process.exe}) has not loaded {_listed(missing)}, which this "
            "recipe traces",
            f"trace {_who_loads(missing)}; `virtrace doctor` lists the daemons that run",
        )


def find_daemons(name: str | None = None) -> list[Daemon]:
    """The running daemons of all targets, or those of this process name; by pid.

    Zombies are left out, and so are children of a daemon that have not yet become another program.
    """
    names = _names() if name is None else [name]
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


def choose_daemon(name: str | None = None, modules: Collection[str] = ()) -> int:
    """The pid of the only running daemon that has loaded all modules.

    Raises:
        TargetError: there is none, or there are several
    """
    daemons = find_daemons(name)
    if not daemons:
        targets = known_targets()
        raise TargetError(
            f"no {name or either(target.name for target in targets) + ' daemon'} is running",
            targets[0].start,
        )
    able = [daemon for daemon in daemons if not _lacks(daemon, modules)]
    if len(able) == 1:
        return able[0].pid
    if not able:
        lacking = (f"-p {daemon.pid}  {daemon}" for daemon in daemons)
        raise TargetError(
            f"no running daemon has loaded {_listed(modules)}, which this recipe traces",
            f"start {_who_loads(modules)}; these run",
            *lacking,
        )
    choices = (f"-p {daemon.pid}  {daemon}" for daemon in able)
    raise TargetError(f"{len(able)} daemons are running", "one of", *choices)


def program_to_start(name: str | None = None) -> Path:
    """The program of a daemon that is to start.

    name: its process name, or the path of the program; without: that of the only daemon that runs,
    else that of the first one that is installed

    Raises:
        TargetError: there is none
    """
    if name is not None and os.sep in name:
        return Path(name).absolute()
    running = {daemon.exe for daemon in find_daemons(name) if daemon.exe and not daemon.place}
    names = [name] if name else [*known_targets()[0].daemons]
    there = [path for path in map(shutil.which, names) if path]
    if len(running) == 1 or not there:
        there = [*running]
    if len(running) > 1 or not there:
        raise TargetError(
            "it is not known which program is to start",
            "name it: --process PATH, such as --process /usr/sbin/libvirtd",
        )
    return Path(there[0])


def _daemon(pid: int, status: dict[str, str]) -> Daemon:
    exe: str | None = None
    # Another user's process keeps it to itself.
    with suppress(OSError):
        exe = visible_path(os.readlink(f"/proc/{pid}/exe"), os.readlink(f"/proc/{pid}/root"))[0]
    user = user_name(int(status["Uid"].split()[1]))
    return Daemon(pid, status["Name"], user, exe, place_of(pid))


def _lacks(daemon: Daemon, modules: Collection[str]) -> bool:
    """Whether it is known to have not loaded some of the modules."""
    try:
        return bool(_missing(inspect(daemon.pid), modules))
    except TargetError:
        # It belongs to another user; an attempt to trace it will say so.
        return False


def _missing(process: Program, modules: Collection[str]) -> list[str]:
    return [name for name in modules if process.module(name) is None]


def _who_loads(modules: Collection[str]) -> str:
    """The process names of the daemons that load these modules."""
    able = [
        name
        for target in known_targets()
        for name, loaded in target.daemons.items()
        if {*modules} <= {target.module, *loaded}
    ]
    if QEMU.module in modules:
        return f"the {QEMU.name} of a guest: --domain NAME"
    return either(able) if able else "a daemon that loads them"


def _names() -> list[str]:
    return [name for target in known_targets() for name in target.daemons]


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)
