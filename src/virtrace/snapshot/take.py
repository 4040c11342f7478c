"""Take a snapshot of a live daemon, or of one in a core file."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

from virtrace.binary.core import Signal
from virtrace.binary.x86_64 import ABI
from virtrace.errors import TargetError
from virtrace.image import sockets
from virtrace.image.core import CoreImage
from virtrace.image.descriptors import file_of
from virtrace.image.live import LiveImage
from virtrace.image.model import Thread
from virtrace.image.pids import Pids
from virtrace.image.process import Process, read_status
from virtrace.image.stopping import StoppingImage
from virtrace.snapshot import host
from virtrace.snapshot.host import Clocks, Commands, Mount
from virtrace.snapshot.look import look_at
from virtrace.snapshot.model import Child, Crash, Look, Neighbour, Network, Qemu
from virtrace.snapshot.networks import networks
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.waits import file_of_call
from virtrace.targets import target_of

# Signals that end a process with a core (signal(7)); gcore notes the one by which it stopped it.
_DUMPING = frozenset((3, 4, 5, 6, 7, 8, 11, 24, 25, 31))
# Those whose address is that of a fault, unless the kernel itself sent the signal.
_FAULTS = frozenset((4, 7, 8, 11))
_SI_KERNEL = 0x80
# Of files that were not found.
_MOST_NAMED = 4
# States in which a thread does not stop, or is stopped.
_UNSTOPPABLE = ("D", "T", "t")
# Between the two looks, at least; and where the kernel does not tell how long threads have slept.
SECONDS, WITHOUT_AGES = 0.5, 1.0


def take(process: Process, *, registers: bool = False) -> Look:
    """Look at a daemon, and again after some time at which of its threads have run meanwhile.

    registers: stop each thread that runs for a moment, for its registers and its stack
    Raises: TargetError if it cannot be read, or ends.
    """
    before, began = _switches(process.pid), time.monotonic()
    if registers:
        look = _look_with_stops(process)
    else:
        with LiveImage(process) as image:
            look = look_at(image, _Host(process.pid))
    has_ages = all(thread.asleep is not None for thread in look.threads)
    seconds = SECONDS if has_ages else WITHOUT_AGES
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    after = _switches(process.pid)
    threads = tuple(
        replace(thread, moved=before.get(thread.tid) != after.get(thread.tid))
        for thread in look.threads
    )
    return replace(look, threads=threads, seconds=time.monotonic() - began)


def _look_with_stops(process: Process) -> Look:
    image = StoppingImage(process, _refuse)
    with image:
        look = look_at(image, _Host(process.pid), image.pauses)
    if not image.refusal:
        return look
    note = f"no thread was stopped for its registers: {image.refusal}"
    return replace(look, notes=[*look.notes, note])


def _refuse(image: LiveImage, threads: Sequence[Thread]) -> str:
    """Why no thread of a daemon must be stopped; "" where they may be."""
    pid, machine = image.program.pid, os.uname().machine
    if machine != ABI.machine:
        return f"registers of {machine} are not understood, only of {ABI.machine}"
    peek = Peek(image.memory)
    for thread in threads:
        if thread.state in _UNSTOPPABLE:
            return f"thread {thread.tid} is in state {thread.state}"
        if thread.waits_in is not None:
            _, file = file_of_call(thread.waits_in, peek, partial(file_of, pid))
            mount = None if file is None else host.mount_of(pid, file)
            if mount is not None and not host.is_local(mount.type):
                return (
                    f"thread {thread.tid} waits for the file system {mount.point} ({mount.type}), "
                    "which may not answer"
                )
    return ""


def take_stopped(process: Process) -> Look:
    """Look at a daemon that this process itself has stopped, as a debugger does.

    How long its threads slept before that is no longer known.
    Raises: TargetError if it cannot be read.
    """
    with LiveImage(process) as image:
        look = look_at(image, _Host(process.pid))
    threads = tuple(replace(thread, asleep=None) for thread in look.threads)
    return replace(look, threads=threads, tracer=None)


def take_from_core(image: CoreImage, taken: float) -> Look:
    """Look at a daemon in a core.

    taken: when the core was made, seconds since 1970
    Raises: TargetError if the core is of another program.
    """
    target_of(image.program)
    look = look_at(image, _Nothing(image.pid, taken))
    look = replace(look, notes=[*look.notes, *_lost(image)])
    signal = image.signal
    if signal is None or signal.number not in _DUMPING or not look.threads:
        return look
    return replace(look, crash=_crash(signal))


def _crash(signal: Signal) -> Crash:
    """What siginfo says (sigaction(2)): which of its fields are set depends on the code."""
    if signal.code <= 0:
        # kill, tgkill, sigqueue: pid and user of the sender.
        return Crash(signal.number, signal.code, None, signal.address & 0xFFFFFFFF)
    has_address = signal.number in _FAULTS and signal.code != _SI_KERNEL
    return Crash(signal.number, signal.code, signal.address if has_address else None)


def _lost(image: CoreImage) -> Iterator[str]:
    """Say what is lost with the files that were not found."""
    if not image.missing:
        return
    named = [
        f"{one.path} (build-id {one.build_id or 'not known'})"
        for one in image.missing[:_MOST_NAMED]
    ]
    more = len(image.missing) - len(named)
    yield (
        f"{len(image.missing)} of {len(image.program.modules)} mapped files are not here as the "
        f"core had them: {', '.join(named)}{f', and {more} more' if more else ''}. Their functions "
        "have no names, stacks end in them, and what libvirt keeps in memory may not be found. "
        "Copy them from the core's host, and name the folder with --root; or set DEBUGINFOD_URLS"
    )


def _switches(pid: int) -> dict[int, str]:
    """By thread, how often it left a processor: the same later where it did not run.

    Raises: TargetError if the process is gone.
    """
    found = {}
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError as error:
        raise TargetError(
            f"process {pid} ended while it was looked at", "check whether it was restarted"
        ) from error
    for tid in map(int, tids):
        status = read_status(tid)
        if status is not None:
            keys = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
            found[tid] = " ".join(status.get(key, "") for key in keys)
    return found


class _Host:
    """The host of a live daemon (look.Around)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.taken = time.time()
        self.uptime = time.monotonic() if host.has_our_clock(pid) else None
        self._clocks = Clocks()
        self._pids = Pids(pid)
        self._commands = Commands()

    def own_tid(self, tid: int) -> int:
        status = read_status(tid)
        return tid if status is None else int(status.get("NSpid", str(tid)).split()[-1])

    def asleep(self, tid: int) -> float | None:
        return self._clocks.asleep(self.pid, tid)

    def here(self, own_pid: int) -> int | None:
        return self._pids.here(own_pid)

    def qemu_of(self, own_pid: int, uuid: str) -> int | None:
        pid = self._pids.here(own_pid)
        return pid if pid is not None and self._commands.is_qemu_of(pid, uuid) else None

    def read_commands(self, pids: Collection[int]) -> None:
        self._commands.read(pids)

    def qemu(self, pid: int) -> Qemu | None:
        return host.qemu(pid)

    def command_of(self, pid: int) -> str | None:
        return self._commands.of(pid)

    def file_of(self, descriptor: int) -> str | None:
        return file_of(self.pid, descriptor)

    def mount_of(self, path: str) -> Mount | None:
        return host.mount_of(self.pid, path)

    def children_of(self, tid: int) -> Sequence[Child]:
        return [*host.children_of(self.pid, tid)]

    def holders_of(self, files: Collection[str]) -> Sequence[Child]:
        return [*host.holders_of(self.pid, files)]

    def peer_of(self, file: str) -> str | None:
        return sockets.peer_of(file, self.pid)

    def neighbours(self) -> Sequence[Neighbour]:
        return [*host.neighbours(self.pid)]

    def networks(self) -> Sequence[Network]:
        return [*networks(self.pid, self._pids.here, self._commands)]

    def unread(self, pids: Collection[int]) -> Collection[int]:
        return host.unread(pids)

    def tracer(self) -> int | None:
        return host.tracer_of(self.pid)


class _Nothing:
    """A core tells nothing of what was around its process (look.Around)."""

    def __init__(self, pid: int | None, taken: float) -> None:
        self.pid = pid
        self.taken = taken
        self.uptime: float | None = None

    def own_tid(self, tid: int) -> int:
        return tid

    def asleep(self, tid: int) -> float | None:
        return None

    def here(self, own_pid: int) -> int | None:
        return own_pid

    def qemu_of(self, own_pid: int, uuid: str) -> int | None:
        return None

    def read_commands(self, pids: Collection[int]) -> None:
        pass

    def qemu(self, pid: int) -> Qemu | None:
        return None

    def command_of(self, pid: int) -> str | None:
        return None

    def file_of(self, descriptor: int) -> str | None:
        return None

    def mount_of(self, path: str) -> Mount | None:
        return None

    def children_of(self, tid: int) -> Sequence[Child]:
        return ()

    def holders_of(self, files: Collection[str]) -> Sequence[Child]:
        return ()

    def peer_of(self, file: str) -> str | None:
        return None

    def neighbours(self) -> Sequence[Neighbour]:
        return ()

    def networks(self) -> Sequence[Network]:
        return ()

    def unread(self, pids: Collection[int]) -> Collection[int]:
        return ()

    def tracer(self) -> int | None:
        return None
