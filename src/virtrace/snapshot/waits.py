"""What a thread waits for, by the functions on its stack and its system call."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from virtrace.image.model import SystemCall
from virtrace.snapshot.format import NOT_KNOWN
from virtrace.snapshot.host import Mount
from virtrace.snapshot.model import Child, Domain, Monitor, NamedFrame, Wait
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.system_calls import (
    FUTEX,
    KNOWN,
    POLL,
    POLLS,
    PPOLL,
    RESTART,
    WAITS_FOR_CHILD,
)
from virtrace.snapshot.threads import kept_registers, words_of_frame

_MUTEX = re.compile(r"_*pthread_mutex_lock|virMutexLock|virObjectLock")
_RWLOCK = re.compile(r"_*pthread_rwlock_\w*lock|virObjectRWLock\w+|virRWLock\w+")
_CONDITION = ("virCondWait", "virCondWaitUntil")
_BEGIN_JOB = re.compile(r"(?:virDomainObjBegin|qemuDomainObj(?:Begin|Enter))\w*")
_EVENT = re.compile(r"virDomainObjWait\w*|qemuDomainWait\w*|qemuBlockJob\w*")
_CHILDREN = ("virHookCall", "virCommandRun", "virCommandWait", "virProcessWait")
_LOOKUPS = ("getaddrinfo", "getnameinfo", "gethostbyname_r", "gethostbyname2_r")
_LOOKUP = "a name lookup (DNS)"
# A call to another daemon (src/rpc/virnetclientprogram.c, virnetclient.c).
_CALLS = ("virNetClientProgramCall", "virNetClientSendWithReply")
_DISPATCHES = "g_main_context_dispatch"
# Frames in which a text shows the wait itself: the C library's inner functions are among them.
_INNERMOST = 6
_LOOP = ("g_main_loop_run", "g_main_context_iteration")
# pthread_mutex_t: the lock, and the thread that holds it (nptl/bits/pthreadtypes).
_MUTEX_OWNER = 8
# pthread_rwlock_t: the words that are waited on, and the writer.
_RWLOCK_WAITED, _RWLOCK_WRITER = (12, 8), 24
# In front of its mutex, a virObjectLockable has a GObject.
_OBJECT_HEADERS = (24, 16, 32)
# FUTEX_WAIT, without its flags.
_FUTEX_WAIT, _FUTEX_COMMAND = 0, 0x7F
# QEMU_JOB_WAIT_TIME of libvirt: how long a call waits for a job.
_JOB_SECONDS = 30.0
_DAY = 86400.0
_BILLION = 10**9
_LARGEST_FRAME = 1 << 16
# struct pollfd (poll.h): the descriptor, and what is waited for.
_POLLED = struct.Struct("<ii")
_MOST_POLLED = 1000
# In fs/pipe.c: the open of a FIFO waits for the other end.
_OPENS_FIFO = ("wait_for_partner", "fifo_open")


@dataclass(frozen=True)
class Surroundings:
    """What belongs to a look and is the same for all of its threads.

    now: seconds since 1970. tids: of the process's threads, as it counts.
    file_of: the file behind a descriptor. children: by thread, as this host counts.
    holders: other processes that have one of some files open. peer_of: of the file of a socket.
    mount_of: of a path. called: the function that a frame's call leads to, if it is exported.
    """

    peek: Peek
    objects: Objects
    now: float
    tids: Collection[int]
    domains: Mapping[int, Domain]
    monitors: Mapping[int, Monitor]
    file_of: Callable[[int], str | None]
    children: Callable[[int], Sequence[Child]]
    holders: Callable[[Collection[str]], Sequence[Child]]
    peer_of: Callable[[str], str | None]
    mount_of: Callable[[str], Mount | None]
    called: Callable[[NamedFrame], str | None]


@dataclass(frozen=True)
class Position:
    """Where a thread stands.

    channel: the kernel's function. is_worker: it serves a call. is_whole: the frames lead to its
    first function.
    """

    tid: int
    call: SystemCall | None
    channel: str | None
    frames: Sequence[NamedFrame]
    is_worker: bool
    is_whole: bool = True

    @property
    def names(self) -> list[str]:
        return [named.function or "" for named in self.frames]

    @property
    def function(self) -> str | None:
        """The innermost function of libvirt."""
        return next((name for name in self.names if name.startswith(("vir", "qemu"))), None)

    def index(self, *functions: str) -> int | None:
        """The innermost frame of one of the functions."""
        return next((at for at, name in enumerate(self.names) if name in functions), None)

    def matching(self, functions: re.Pattern[str], most: int | None = None) -> int | None:
        """The same by a pattern. most: how many frames to look at."""
        names = self.names[:most]
        return next((at for at, name in enumerate(names) if functions.fullmatch(name)), None)


def wait_of(position: Position, around: Surroundings) -> Wait:
    """Return what a thread waits in; ``computes`` where it is in no system call."""
    call = position.call
    if call is not None and call.number in (FUTEX, RESTART):
        wait = _lock(position, around) or _condition(position, around)
        if wait is not None:
            return wait
    if position.index(*_CALLS) is not None and call is not None and call.number in POLLS:
        polled = _polled("socket:", call, around)
        peers = {peer for file in polled if (peer := around.peer_of(file)) is not None}
        children = tuple(around.holders(peers))
        return Wait("peer", function=position.function, children=children)
    if _is_loop(position):
        return Wait("loop")
    at = position.index(*_CHILDREN)
    if at is not None or (call is not None and call.number in WAITS_FOR_CHILD):
        function = "virHookCall" if position.index("virHookCall") is not None else None
        children = tuple(around.children(position.tid))
        if all(child.state == "Z" for child in children):
            # They have ended: what is waited for is the end of their output, which others hold.
            children = tuple(around.holders(_polled("pipe:", call, around))) or children
        if children or at is not None:
            return Wait("child", function=function, children=children)
    return _system_call(position, around)


def wait_by_names(position: Position, around: Surroundings) -> Wait:
    """Return the same where only the names of functions are known."""
    wait = _condition(position, around)
    if wait is not None:
        return wait
    for kind, functions in (("mutex", _MUTEX), ("rwlock", _RWLOCK)):
        if position.matching(functions, _INNERMOST) is not None:
            return Wait(kind, what="a lock")
    if position.index(*_CALLS) is not None:
        return Wait("peer", function=position.function)
    at = position.index(*_LOOP)
    if at is not None and not position.is_worker and _DISPATCHES not in position.names[:at]:
        return Wait("loop")
    if position.index(*_CHILDREN) is not None:
        is_hook = position.index("virHookCall") is not None
        return Wait("child", function="virHookCall" if is_hook else None)
    if position.index(*_LOOKUPS) is not None:
        return Wait("system call", what=_LOOKUP)
    names = {known.name for known in KNOWN.values()}
    call = next((name for name in position.names[:_INNERMOST] if name in names), None)
    function = position.function
    return Wait("computes" if call is None else "system call", system_call=call, function=function)


def _lock(position: Position, around: Surroundings) -> Wait | None:
    call = position.call
    assert call is not None
    address = call.arguments[0]
    if position.index(*_CONDITION) is None and position.matching(_MUTEX) is not None:
        return _mutex(address, around)
    if position.matching(_RWLOCK, 4) is not None:
        found = {
            writer
            for waited in _RWLOCK_WAITED
            if (writer := around.peek.number(address - waited + _RWLOCK_WRITER, 4)) in around.tids
        }
        owner = found.pop() if len(found) == 1 else None
        return Wait("rwlock", what=f"the lock at {address:#x}", owner=owner)
    is_plain_wait = call.arguments[1] & _FUTEX_COMMAND == _FUTEX_WAIT
    if position.index(*_CONDITION) is not None and is_plain_wait:
        # A condition is waited for by another command: the wait is over, and takes its lock back.
        owner = around.peek.number(address + _MUTEX_OWNER, 4)
        if owner in around.tids:
            return _mutex(address, around, is_late=True)
    return None


def _mutex(address: int, around: Surroundings, *, is_late: bool = False) -> Wait:
    owner = around.peek.number(address + _MUTEX_OWNER, 4)
    at, kind = next(
        (
            (address - size, kind)
            for size in _OBJECT_HEADERS
            if (kind := around.objects.type_of(address - size)) is not None
        ),
        (None, None),
    )
    what = f"the lock of a {kind}" if kind else f"the lock at {address:#x}"
    domain = at if at in around.domains else None
    if domain is not None:
        what = f"the lock of domain {around.domains[domain].name}"
    known = owner if owner in around.tids else None
    return Wait("mutex", what=what, owner=known, domain=domain, is_late=is_late)


def _condition(position: Position, around: Surroundings) -> Wait | None:
    at = position.index(*_CONDITION)
    if at is None:
        # A pool of GLib waits for work in its own condition.
        if (
            position.index("g_cond_wait", "g_cond_wait_until") is not None
            and not position.is_worker
        ):
            return Wait("idle")
        return None
    names = position.names
    inside = names[at + 1 :]
    near = position.frames[at : at + 4]
    if inside[:1] == ["qemuMonitorSend"]:
        return _asked("qemu", "qemuMonitor", near, around)
    if any(name.startswith("qemuAgent") for name in inside[:4]):
        return _asked("agent", "qemuAgent", near, around)
    begins = _begins_job(position.frames[at + 1 : at + 6], around)
    domain = _held(near, "virDomainObj", around)
    if begins is not None:
        until = _deadline(position.frames[max(0, at - 1) : at + 1], around)
        since = None if until is None else until - _JOB_SECONDS
        return Wait("job", domain=domain, until=until, since=since, function=begins)
    event = next((name for name in inside[:3] if _EVENT.fullmatch(name)), None)
    if event is not None:
        return Wait("event", domain=_held(position.frames, "virDomainObj", around), function=event)
    if not position.is_worker and not any(inside[:1]) and len(position.frames) - at <= 5:
        return Wait("idle")
    function = next((name for name in inside if name), None)
    return Wait("condition", domain=domain, function=function)


def _begins_job(frames: Sequence[NamedFrame], around: Surroundings) -> str | None:
    """The outermost of the functions that begin a job, which says what kind of job."""
    found = None
    for named, caller in zip(frames, frames[1:]):
        # What the caller calls may have no frame: it jumps to the function that waits.
        for name in (named.function, around.called(caller)):
            if name is not None and _BEGIN_JOB.fullmatch(name):
                found = name
    return found


def _asked(kind: str, type_name: str, near: Sequence[NamedFrame], around: Surroundings) -> Wait:
    """A wait for an answer: the monitor is in a register that a frame near it keeps."""
    monitor = around.monitors.get(_held(near, type_name, around) or 0)
    if monitor is None:
        return Wait(kind, domain=_held(near, "virDomainObj", around))
    return Wait(kind, domain=monitor.domain, command=monitor.command)


def _held(frames: Sequence[NamedFrame], kind: str, around: Surroundings) -> int | None:
    """The only object of a type that the frames keep in registers."""
    found = {
        value
        for named in frames
        for value in kept_registers(named.frame)
        if around.objects.type_of(value) == kind
    }
    return found.pop() if len(found) == 1 else None


def _deadline(frames: Sequence[NamedFrame], around: Surroundings) -> float | None:
    """The time at which a wait ends: a timespec in the frame of who waits."""
    for named in frames:
        words = words_of_frame(around.peek, named.frame, _LARGEST_FRAME)
        for seconds, rest in zip(words, words[1:]):
            if abs(seconds - around.now) < _DAY and rest < _BILLION:
                return seconds + rest / _BILLION
    return None


def _is_loop(position: Position) -> bool:
    """Whether a thread waits in an event loop, and for nothing that it was called for."""
    at = position.index(*_LOOP)
    if at is None or position.is_worker or position.call is None:
        return False
    is_dispatching = _DISPATCHES in position.names[:at]
    return position.call.number in (*POLLS, RESTART) and not is_dispatching


def _polled(kind: str, call: SystemCall | None, around: Surroundings) -> Collection[str]:
    """The files that a thread reads from once something comes. kind: ``pipe:`` or ``socket:``."""
    if call is None or call.number not in (POLL, PPOLL):
        return ()
    address, count = call.arguments[:2]
    polled = around.peek.data(address, min(count, _MOST_POLLED) * _POLLED.size) or b""
    files = (around.file_of(descriptor) for descriptor, _ in _POLLED.iter_unpack(polled))
    return {file for file in files if file is not None and file.startswith(kind)}


def _system_call(position: Position, around: Surroundings) -> Wait:
    call = position.call
    function = position.function
    if position.index(*_LOOKUPS) is not None:
        return Wait("system call", what=_LOOKUP, function=function)
    if call is None:
        return Wait("computes", function=function)
    known = KNOWN.get(call.number)
    if not (position.is_whole or position.is_worker) and call.number in (FUTEX, RESTART, *POLLS):
        # Threads rest in these, and what this one was called for is not known.
        name = None if known is None else known.name
        return Wait(NOT_KNOWN, system_call=name)
    if known is None:
        return Wait("system call", system_call=f"system call {call.number}", function=function)
    descriptor, file = file_of_call(call, around.peek, around.file_of)
    return Wait(
        "system call",
        mount=None if file is None else around.mount_of(file),
        is_fifo=position.channel in _OPENS_FIFO,
        system_call=known.name,
        descriptor=descriptor,
        file=file,
        function=function,
    )


def file_of_call(
    call: SystemCall, peek: Peek, file_of: Callable[[int], str | None]
) -> tuple[int | None, str | None]:
    """Return the descriptor and the file that a system call is about, as far as it is known.

    file_of: the file behind a descriptor
    """
    known = KNOWN.get(call.number)
    if known is not None and known.descriptor is not None:
        descriptor = call.arguments[known.descriptor] & 0xFFFFFFFF
        return descriptor, file_of(descriptor)
    if known is not None and known.path is not None:
        return None, peek.text(call.arguments[known.path], 4096)
    return None, None
