"""Take one look at a live daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial

from virtrace.errors import TargetError
from virtrace.image.live import LiveImage
from virtrace.image.model import Thread
from virtrace.image.names import FrameNames
from virtrace.image.process import Process, heaps, read_status, user_name
from virtrace.image.unwind import Unwinder
from virtrace.snapshot import host
from virtrace.snapshot.domains import domain_at
from virtrace.snapshot.model import Look, NamedFrame, SeenThread
from virtrace.snapshot.monitors import monitor_at
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.requests import request_at
from virtrace.snapshot.servers import server_at
from virtrace.snapshot.threads import carried_by, client_of, kept_registers
from virtrace.snapshot.waits import Position, Surroundings, wait_of

DISPATCH = "virNetServerProgramDispatch"
_MONITORS = ("qemuMonitor", "qemuAgent")


def look_at(process: Process) -> Look:
    """Look at a daemon. Nothing of it is stopped, changed or woken.

    Raises: TargetError if it cannot be read.
    """
    with LiveImage(process) as image:
        return _Looking(process, image).look()


class _Looking:
    def __init__(self, process: Process, image: LiveImage) -> None:
        self._process = process
        self._image = image
        self._began = time.time()
        self._peek = Peek(image.memory)
        self._objects = Objects(process, self._peek)
        self._clocks = host.Clocks()
        self._notes: list[str] = []

    def look(self) -> Look:
        threads = self._image.threads()
        asleep = {
            thread.tid: self._clocks.asleep(self._process.pid, thread.tid) for thread in threads
        }
        frames = self._frames(threads)
        own_tids = {thread.tid: _own_tid(thread.tid) for thread in threads}
        self._know_types(frames)
        census = self._objects.census(heaps(self._process.pid))
        if not census.objects:
            self._notes.append("no object of libvirt was found in memory")
        tids = set(own_tids.values())
        found = census.objects.get("virDomainObj", ())
        domains = [
            domain
            for address in found
            if (domain := domain_at(self._peek, address, tids, self._began, host.is_qemu_of))
        ]
        monitors = [
            monitor_at(self._peek, self._objects, kind, address)
            for kind in _MONITORS
            for address in census.objects.get(kind, ())
        ]
        servers = [
            server
            for address in census.objects.get("virNetServer", ())
            if (server := server_at(self._peek, self._objects, address)) is not None
        ]
        around = Surroundings(
            self._peek,
            self._objects,
            self._began,
            tids,
            {domain.address: domain for domain in domains},
            {monitor.address: monitor for monitor in monitors},
            partial(host.file_of, self._process.pid),
            lambda tid: [*host.children_of(self._process.pid, tid)],
            partial(host.mount_of, self._process.pid),
        )
        seen = [
            self._seen(
                thread, own_tids[thread.tid], asleep[thread.tid], *frames[thread.tid], around
            )
            for thread in threads
        ]
        qemus = {
            domain.qemu: qemu
            for domain in domains
            if domain.qemu is not None and (qemu := host.qemu(domain.qemu)) is not None
        }
        return Look(
            self._process.pid,
            self._began,
            time.time() - self._began,
            tuple(seen),
            tuple(domains),
            tuple(monitors),
            tuple(servers),
            qemus,
            host.tracer_of(self._process.pid),
            self._notes,
        )

    def _frames(
        self, threads: Sequence[Thread]
    ) -> dict[int, tuple[tuple[NamedFrame, ...], str | None]]:
        unwinder = Unwinder(self._image)
        names = FrameNames(self._process, {})
        found = {}
        for thread in threads:
            trace = unwinder.backtrace(thread)
            named = tuple(
                NamedFrame(
                    frame,
                    names.function(frame, is_innermost=number == 0),
                    names.describe(frame, is_innermost=number == 0),
                )
                for number, frame in enumerate(trace.frames)
            )
            found[thread.tid] = named, trace.ended
        return found

    def _know_types(self, frames: dict[int, tuple[tuple[NamedFrame, ...], str | None]]) -> None:
        """Meet one object at least, from which all types are found."""
        for named, _ in frames.values():
            for each in named:
                for value in kept_registers(each.frame):
                    self._objects.type_of(value)

    def _seen(
        self,
        thread: Thread,
        own_tid: int,
        asleep: float | None,
        frames: tuple[NamedFrame, ...],
        ended: str | None,
        around: Surroundings,
    ) -> SeenThread:
        end = thread.stack.start + len(thread.stack.data) if thread.stack.data else None
        carried = carried_by(self._peek, self._objects, own_tid, end, frames)
        served = next((named for named in frames if named.function == DISPATCH), None)
        request = client = None
        if served is not None:
            messages = {
                value: found
                for value in kept_registers(served.frame)
                if (found := request_at(self._peek, value, carried.api)) is not None
            }
            request = next(iter(messages.values())) if len(messages) == 1 else None
            client = client_of(carried.identity, *self._who(carried.identity))
        position = Position(
            thread.tid, thread.waits_in, thread.wait_channel, frames, served is not None
        )
        return SeenThread(
            thread.tid,
            own_tid,
            thread.name,
            _role(thread, self._process.pid, is_worker=served is not None),
            thread.state,
            frames,
            ended,
            thread.waits_in,
            thread.wait_channel,
            asleep,
            None,
            carried.api if served is not None else None,
            client,
            request,
            wait_of(position, around),
        )

    def _who(self, identity: dict[str, int | str] | None) -> tuple[str | None, str | None]:
        pid = (identity or {}).get("process-id")
        user = (identity or {}).get("unix-user-id")
        command = host.command_of(pid) if isinstance(pid, int) else None
        return command, user_name(user) if isinstance(user, int) else None


def switches(pid: int) -> dict[int, str]:
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


def _own_tid(tid: int) -> int:
    status = read_status(tid)
    return tid if status is None else int(status.get("NSpid", str(tid)).split()[-1])


def _role(thread: Thread, pid: int, *, is_worker: bool) -> str:
    """Return what a thread is for, by the name that libvirt gives it (at most 15 bytes)."""
    name = thread.name or ""
    if thread.tid == pid:
        return "main thread"
    if is_worker or name.startswith(("rpc-", "prio-rpc-", "admin-")) or "worker" in name:
        return "priority worker" if name.startswith("prio-") else "worker"
    for beginning, role in _ROLES:
        if name.startswith(beginning):
            return role
    return "thread"


# virThreadCreateFull and g_thread_new give these names.
_ROLES = (
    ("daemon-init", "start-up"),
    ("vm-", "event loop of a domain"),
    ("qemu-event", "QEMU event worker"),
    ("daemon-stop", "shutdown"),
    ("udev-event", "device events"),
    ("nodedev-init", "device start-up"),
    ("gmain", "event loop of GLib"),
    ("pool-spawner", "pool of GLib"),
)
