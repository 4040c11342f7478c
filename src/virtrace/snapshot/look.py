"""One look at a program: its threads, and what libvirt has in its memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from virtrace.errors import TargetError
from virtrace.image.model import Image, Thread
from virtrace.image.names import FrameNames
from virtrace.image.process import user_name
from virtrace.image.unwind import Unwinder
from virtrace.snapshot.domains import domain_at, pids_at
from virtrace.snapshot.host import Mount
from virtrace.snapshot.model import (
    Child,
    Client,
    Look,
    NamedFrame,
    Neighbour,
    Network,
    Qemu,
    SeenThread,
    Wait,
)
from virtrace.snapshot.monitors import monitor_at
from virtrace.snapshot.objects import MOST_SEARCHED, Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.requests import request_served
from virtrace.snapshot.servers import keepalives_at, server_at
from virtrace.snapshot.threads import (
    Identity,
    carried_by,
    kept_registers,
    name_on_stack,
    pid_of,
)
from virtrace.snapshot.waits import Position, Surroundings, wait_of
from virtrace.targets import target_of

DISPATCH = "virNetServerProgramDispatch"
_MONITORS = ("qemuMonitor", "qemuAgent")
_NONE: Mapping[int, float] = {}


class Around(Protocol):
    """What is known of the processes around a program, and of its threads beside the image."""

    @property
    def pid(self) -> int | None: ...

    @property
    def taken(self) -> float:
        """Seconds since 1970."""

    @property
    def uptime(self) -> float | None:
        """The same time by CLOCK_MONOTONIC of the program, s."""

    def own_tid(self, tid: int) -> int:
        """Return a thread's id as the process itself counts."""

    def asleep(self, tid: int) -> float | None:
        """Return for how long a thread has been asleep, s."""

    def here(self, own_pid: int) -> int | None:
        """Return this host's number for a process that the daemon names by its own.

        Of a core, which does not tell this host's, the daemon's own.
        """

    def qemu_of(self, own_pid: int, uuid: str) -> int | None: ...
    def read_commands(self, pids: Collection[int]) -> None:
        """Read at once, of processes of this host, what is asked for one by one later."""

    def qemu(self, pid: int) -> Qemu | None: ...
    def command_of(self, pid: int) -> str | None: ...
    def file_of(self, descriptor: int) -> str | None: ...
    def mount_of(self, path: str) -> Mount | None: ...
    def children_of(self, tid: int) -> Sequence[Child]: ...
    def holders_of(self, files: Collection[str]) -> Sequence[Child]: ...
    def peer_of(self, file: str) -> str | None: ...
    def neighbours(self) -> Sequence[Neighbour]: ...
    def networks(self) -> Sequence[Network]: ...
    def unread(self, pids: Collection[int]) -> Collection[int]:
        """Return those of some processes whose error output is a pipe that no other one has."""

    def tracer(self) -> int | None: ...


def look_at(image: Image, around: Around, stopped: Mapping[int, float] = _NONE) -> Look:
    """Look at a program: nothing of it is changed or woken.

    stopped: by thread, for how long the image has stopped it, s; known once its threads were read
    Raises: TargetError if it cannot be read.
    """
    return _Looking(image, around, stopped).look()


class _Looking:
    def __init__(self, image: Image, around: Around, stopped: Mapping[int, float]) -> None:
        self._image = image
        self._stopped = stopped
        self._around = around
        self._peek = Peek(image.memory)
        self._objects = Objects(image.program, self._peek)
        self._notes: list[str] = []
        # By return address: the exported function that was called.
        self._calls: dict[int, str | None] = {}

    def look(self) -> Look:
        around = self._around
        threads = self._image.threads()
        asleep = {thread.tid: around.asleep(thread.tid) for thread in threads}
        frames = self._frames(threads)
        own_tids = {thread.tid: around.own_tid(thread.tid) for thread in threads}
        self._know_types(frames)
        census = self._objects.census(self._image.heaps())
        if census.searched > MOST_SEARCHED:
            self._notes.append(
                f"only {MOST_SEARCHED >> 30} GiB of memory were searched: objects may be missing"
            )
        if not census.objects:
            self._notes.append("no object of libvirt was found in memory")
        tids = set(own_tids.values())
        objects = census.objects.get("virDomainObj", ())
        own_pids = {pid for address in objects for pid in pids_at(self._peek, address)}
        around.read_commands([pid for one in own_pids if (pid := around.here(one)) is not None])
        domains = [
            domain
            for address in objects
            if (domain := domain_at(self._peek, address, tids, around.taken, around.qemu_of))
        ]
        monitors = [
            monitor_at(self._peek, self._objects, kind, address)
            for kind in _MONITORS
            for address in census.objects.get(kind, ())
        ]
        addresses = census.objects.get("virKeepAlive", ())
        keepalives = keepalives_at(self._peek, addresses, around.taken, around.uptime)
        found = (
            server_at(self._peek, self._objects, address, around.here, keepalives)
            for address in census.objects.get("virNetServer", ())
        )
        servers = [server for server in found if server is not None]
        connections = [one for server in servers for one in server.connections if one.requests]
        around.read_commands([one.pid for one in connections if one.pid is not None])
        surroundings = Surroundings(
            self._peek,
            self._objects,
            around.taken,
            tids,
            {domain.address: domain for domain in domains},
            {monitor.address: monitor for monitor in monitors},
            around.file_of,
            around.children_of,
            around.holders_of,
            around.peer_of,
            around.mount_of,
            self._called,
        )
        seen = [
            self._seen(
                thread,
                own_tids[thread.tid],
                asleep[thread.tid],
                *frames[thread.tid],
                surroundings,
            )
            for thread in threads
        ]
        qemus = {
            domain.qemu: qemu
            for domain in domains
            if domain.qemu is not None and (qemu := around.qemu(domain.qemu)) is not None
        }
        unread = {*around.unread([*qemus])}
        self._notes += [
            f"no process reads what the QEMU of {domain.name} writes to its log, as virtlogd does"
            for domain in domains
            if domain.qemu in unread
        ]
        return Look(
            around.pid,
            around.taken,
            0.0,
            tuple(seen),
            tuple(domains),
            tuple(monitors),
            tuple(servers),
            qemus,
            around.tracer(),
            {name: len(objects) for name, objects in sorted(census.objects.items())},
            self._notes,
            sizes={name: self._objects.sizes[name] for name in sorted(census.objects)},
            neighbours=around.neighbours(),
            networks=around.networks() if census.objects.get("virNetworkObj") else (),
        )

    def _frames(
        self, threads: Sequence[Thread]
    ) -> dict[int, tuple[tuple[NamedFrame, ...], str | None]]:
        unwinder = Unwinder(self._image)
        names = FrameNames(self._image.program, {})
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
        if carried.api is not None:
            frames = self._with_method(frames, carried.api)
        served = next((named for named in frames if named.function == DISPATCH), None)
        request = client = None
        if served is not None:
            at = frames.index(served)
            request = request_served(self._peek, self._objects, frames[at : at + 2], carried.api)
            client = self._client(carried.identity)
        name = thread.name or name_on_stack(self._peek, frames)
        position = Position(
            thread.tid,
            thread.waits_in,
            thread.wait_channel,
            frames,
            is_worker=served is not None,
            is_whole=ended is None,
        )
        stopped = self._stopped.get(thread.tid)
        if stopped is None:
            wait = wait_of(position, around)
        else:
            # It ran: it was stopped where it waits for nothing.
            wait = Wait("computes", function=position.function)
        return SeenThread(
            thread.tid,
            own_tid,
            name,
            _role(thread.tid, name or "", self._around.pid, is_worker=served is not None),
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
            wait,
            stopped,
        )

    def _with_method(self, frames: tuple[NamedFrame, ...], api: str) -> tuple[NamedFrame, ...]:
        """Name the driver's method of an API: no symbol does, but what it checks access by."""
        target = target_of(self._image.program)
        check = target.check_of(api)
        named = []
        for one in frames:
            module, function = one.frame.module, one.frame.function
            is_own = module is not None and module.name.startswith(target.prefix)
            if one.function is None and is_own and module is not None and function is not None:
                with suppress(TargetError):
                    if module.elf.callers_of(check) == [function - module.base]:
                        text = f"method of {api}+{one.frame.pc - function:#x} ({module.name})"
                        one = replace(one, text=text)
            named.append(one)
        return tuple(named)

    def _called(self, caller: NamedFrame) -> str | None:
        """Return the exported function that a frame's call leads to."""
        if caller.frame.pc not in self._calls:
            self._calls[caller.frame.pc] = self._target_of_call(caller)
        return self._calls[caller.frame.pc]

    def _target_of_call(self, caller: NamedFrame) -> str | None:
        module, program = caller.frame.module, self._image.program
        if module is None:
            return None
        with suppress(TargetError):
            for called, slot in module.elf.calls_before([caller.frame.pc - module.base]).values():
                # Through a slot, what is called first is a stub.
                address = None if called is None else module.base + called
                if slot is not None:
                    address = self._peek.word(module.base + slot)
                target = None if address is None else program.module_at(address)
                if address is not None and target is not None:
                    names = {start: name for start, _, name in target.elf.exported_functions()}
                    return names.get(address - target.base)
        return None

    def _client(self, identity: Identity | None) -> Client | None:
        if identity is None:
            return None
        pid = pid_of(identity, self._around.here)
        command = None if pid is None else self._around.command_of(pid)
        named, user = identity.get("user-name"), identity.get("unix-user-id")
        if named is None and isinstance(user, int):
            named = user_name(user)
        return Client(pid, None if named is None else str(named), command)


def _role(tid: int, name: str, pid: int | None, *, is_worker: bool) -> str:
    """Return what a thread is for, by the name that libvirt gives it (at most 15 bytes)."""
    if tid == pid:
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
