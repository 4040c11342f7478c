"""Texts that reporters of bugs attach: stacks, as far as names of functions tell, and logs.

Understood are GDB's `thread apply all bt`, `coredumpctl info`, eu-stack, the kernel's lines on a
crash, and libvirt's lines on calls that did not get the job of a domain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from virtrace.errors import TraceError
from virtrace.image.model import Program, Registers
from virtrace.image.unwind import Frame
from virtrace.snapshot.format import NOT_KNOWN
from virtrace.snapshot.logs import (
    GaveUp,
    KernelCrash,
    calls_that_gave_up,
    kernel_crashes,
    stored_crash,
)
from virtrace.snapshot.model import Crash, Domain, Job, Look, NamedFrame, SeenThread, Wait
from virtrace.snapshot.modules_here import ModulesHere
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.waits import Position, Surroundings, wait_by_names
from virtrace.targets.libvirt import LIBVIRT

# What begins a thread: GDB's line has its name, too.
_THREADS = (
    re.compile(r'^Thread \d+ \(.*?LWP (?P<tid>\d{1,10})\)(?: "(?P<name>[^"]*)")?'),
    re.compile(r"^\s*Stack trace of thread (?P<tid>\d{1,10}):"),
    re.compile(r"^TID (?P<tid>\d{1,10}):"),
)
_FRAME = re.compile(
    r"^\s*#\d+\s+(?:(?P<pc>0x[0-9a-f]+)\s+)?(?:in )?(?P<function>[^\s(]+)(?P<rest>.*)$"
)
_LIBRARY = re.compile(r" \(([^)\s]+) \+ 0x")
# How the text writes that a function has no name.
_NAMELESS = ("??", "n/a", "-")
# What glibc puts in front of the names of its functions.
_INTERNAL = re.compile(r"^(?:__GI_)?_*(?P<name>\w+?)(?:64)?$")
_API = re.compile(
    r"(?:remoteDispatch(?!er)|vir)(?P<name>(?:Domain|Storage|Network|Connect|Node|Secret)[A-Z]\w+)"
)
_DISPATCH = "virNetServerProgramDispatch"
_WORKERS = ("rpc-", "prio-rpc-", "admin-")
_UNKNOWN = Registers({}, "a text does not have them")
_MOST_THREADS, _MOST_FRAMES, _LONGEST_FUNCTION = 10_000, 1000, 512
# How certain the place of a crash in a kernel's log is.
_SAME_SIZE = (
    "the kernel's log does not say which build crashed: the function is that of the file of this "
    "name here, whose code has the same size"
)
_UNNAMED = "no function that the file of this name here exports is at that place"
_NOT_HERE = (
    "no file of this name here has code of that size; --root FOLDER names a folder with the files "
    "of the host of the crash"
)
_NO_CODE = "that part of the file cannot be executed: the thread had lost its way"
# Of a log.
_MOST_LINES = 10_000
# The kernel cuts names of processes.
_LONGEST_NAME = 15


class _NoMemory:
    """A text has no memory of the program."""

    def read_available(self, address: int, size: int) -> bytes:
        return b""

    def read(self, address: int, size: int) -> bytes:
        return b""


@dataclass
class _Stack:
    tid: int
    name: str | None
    frames: list[NamedFrame] = field(default_factory=list)


def look_at_text(text: str, name: str, taken: float, modules: ModulesHere | None = None) -> Look:
    """Return what stacks and logs in a text tell.

    name: of the file. taken: now, seconds since 1970; what a log has is as old as its last line.
    modules: by which the place of a crash is named. Raises: TraceError if there is nothing.
    """
    stacks = [stack for stack in _stacks(text) if stack.frames]
    crash, crashed, place = _crash(text, modules)
    gave_up = [*islice(calls_that_gave_up(text), _MOST_LINES)]
    if not stacks and crash is None and not gave_up:
        raise TraceError(
            f"{name} has no stacks of threads, no crash and no call that waited for a job",
            "give it the output of `gdb -p PID -batch -ex 'thread apply all bt'`, of `coredumpctl "
            "info` or of `dmesg`, or the daemon's log",
        )
    at = max((one.at for one in gave_up if one.at is not None), default=taken)
    jobs = _Jobs(gave_up, at)
    threads: dict[int, SeenThread] = {one.tid: one for one in _seen_stacks(stacks, taken)}
    if crashed is not None:
        # The first thread is the one that got the signal.
        threads = {crashed.tid: threads.pop(crashed.tid, crashed), **threads}
    for thread in jobs.threads():
        # A stack says more, but not of which domain the job is.
        seen = threads.setdefault(thread.tid, thread)
        if seen.wait.kind == thread.wait.kind == "job":
            threads[thread.tid] = replace(seen, wait=thread.wait)
    notes = [*_notes(stacks, place, gave_up)]
    stored = stored_crash(text)
    return Look(
        pid=None if stored is None else stored.pid,
        taken=at,
        seconds=0.0,
        threads=tuple(threads.values()),
        domains=jobs.domains(),
        monitors=(),
        servers=(),
        qemus={},
        tracer=None,
        objects={},
        notes=notes,
        crash=crash,
    )


def _notes(stacks: Sequence[_Stack], place: str | None, gave_up: Sequence[GaveUp]) -> Iterator[str]:
    if stacks:
        yield "a text names functions: no client, no argument, no owner of a lock is known"
    if place is not None:
        yield place
    if gave_up and all(one.at is None for one in gave_up):
        yield "the log has no times: ages are as of its last line, and dates mean nothing"


def _crash(
    text: str, modules: ModulesHere | None
) -> tuple[Crash | None, SeenThread | None, str | None]:
    """The last crash that a log of the kernel has, else that of coredumpctl.

    With its thread, and a note on the place, if that is from the kernel's log.
    """
    stored = stored_crash(text)
    found = [one for one in kernel_crashes(text) if _is_of_target(one)]
    if found:
        last = found[-1]
        crash = Crash(
            signal=last.signal,
            code=None,
            address=last.address,
            access=last.access,
            is_protected=last.is_protected,
        )
        frame, note = _place(last, modules)
        return crash, _thread(last.tid, last.name, None, (frame,)), note
    if stored is None:
        return None, None, None
    first = next((stack for stack in _stacks(text) if stack.frames), None)
    # Its threads begin with the one that got the signal.
    thread = None if first is None else _thread(first.tid, first.name, None, tuple(first.frames))
    thread = thread or _thread(stored.pid, None, None, ())
    return Crash(stored.signal, None, None), thread, None


def _is_of_target(crash: KernelCrash) -> bool:
    """Whether it is of a daemon of libvirt; a log has crashes of all processes."""
    names = (*(name[:_LONGEST_NAME] for name in LIBVIRT.daemons), *_WORKERS)
    is_module = crash.mapping is not None and crash.mapping.module.startswith(LIBVIRT.prefix)
    return is_module or crash.name.startswith(names)


def _place(crash: KernelCrash, modules: ModulesHere | None) -> tuple[NamedFrame, str]:
    """The frame of a crash, and what makes its name certain, or why there is none."""
    mapping, function = crash.mapping, None
    text, note = f"{crash.ip:#x}", "the kernel's log does not say in which file the crash was"
    if mapping is not None:
        is_code = crash.access != "executing"
        place = modules.place(mapping, crash.ip) if modules is not None and is_code else None
        offset = mapping.offset if place is None else place.offset
        text = f"{mapping.module}+{offset or 0:#x}"
        if offset is None:
            text = (
                f"{mapping.module}, {crash.ip - mapping.start:#x} behind the start of its mapping"
            )
        note = _NOT_HERE if is_code else _NO_CODE
        if place is not None:
            function = place.function
            note = _UNNAMED if function is None else _SAME_SIZE
            if function is not None:
                text = f"{function}+{place.inside:#x} ({mapping.module})"
    frame = Frame(crash.ip, None, None, None, _UNKNOWN, "text")
    return NamedFrame(frame, function, text), note


def _thread(
    tid: int, name: str | None, api: str | None, frames: tuple[NamedFrame, ...]
) -> SeenThread:
    """A thread of which a log tells little."""
    is_worker = (name or "").startswith(_WORKERS) or api is not None
    return SeenThread(
        tid=tid,
        own_tid=tid,
        name=name,
        role="worker" if is_worker else "thread",
        state=None,
        frames=frames,
        ended=None,
        waits_in=None,
        wait_channel=None,
        asleep=None,
        moved=None,
        api=api,
        client=None,
        request=None,
        wait=Wait(NOT_KNOWN),
    )


class _Jobs:
    """What the lines on calls that did not get a job say together: of each domain, its last one."""

    def __init__(self, gave_up: Sequence[GaveUp], taken: float) -> None:
        """taken: when the last line was written."""
        self._gave_up = gave_up
        self._taken = taken
        self._last = {one.domain: one for one in gave_up}
        self._addresses = {name: number for number, name in enumerate(self._last, 1)}

    def domains(self) -> tuple[Domain, ...]:
        return tuple(
            Domain(self._addresses[name], name, None, None, None, self._jobs(one))
            for name, one in self._last.items()
        )

    def _jobs(self, one: GaveUp) -> tuple[Job, ...]:
        at = self._taken if one.at is None else one.at
        return tuple(
            Job(held.kind, held.work, held.owner, held.api, at - held.seconds) for held in one.held
        )

    def threads(self) -> Iterator[SeenThread]:
        """Those that hold a job, and those that gave up waiting for the same one."""
        for last in self._last.values():
            for held in last.held:
                if held.owner is not None:
                    yield _thread(held.owner, None, _api(held.api), ())
        for one in self._gave_up:
            if one.tid is not None and _holders(one) == _holders(self._last[one.domain]):
                wait = Wait("job", domain=self._addresses[one.domain], until=one.at)
                yield replace(_thread(one.tid, None, _api(one.api), ()), wait=wait)


def _holders(one: GaveUp) -> list[tuple[str, int | None]]:
    return [(held.kind, held.owner) for held in one.held]


def _api(dispatcher: str | None) -> str | None:
    """The public function that a function of the daemon serves."""
    found = None if dispatcher is None else _API.fullmatch(dispatcher)
    return None if found is None else f"vir{found['name']}"


def _seen_stacks(stacks: Sequence[_Stack], taken: float) -> Iterator[SeenThread]:
    if not stacks:
        return
    peek = Peek(_NoMemory())
    around = Surroundings(
        peek,
        Objects(Program("", Path("/"), ()), peek),
        taken,
        (),
        {},
        {},
        lambda descriptor: None,
        lambda tid: (),
        lambda files: (),
        lambda file: None,
        lambda path: None,
        lambda frame: None,
    )
    first = min(stack.tid for stack in stacks)
    yield from (_seen(stack, first, around) for stack in stacks)


def _stacks(text: str) -> Iterator[_Stack]:
    current: _Stack | None = None
    number = 0
    for line in text.splitlines():
        begins = next((found for each in _THREADS if (found := each.match(line))), None)
        if begins is not None:
            if current is not None:
                yield current
            number += 1
            if number > _MOST_THREADS:
                return
            current = _Stack(int(begins["tid"]), begins.groupdict().get("name"))
        elif current is not None and len(current.frames) < _MOST_FRAMES:
            frame = _FRAME.match(line)
            if frame is not None:
                current.frames.append(_named(frame))
    if current is not None:
        yield current


def _named(found: re.Match[str]) -> NamedFrame:
    pc = int(found["pc"], 16) if found["pc"] else 0
    name = found["function"][:_LONGEST_FUNCTION]
    function = None if name in _NAMELESS else name
    library = _library(found["rest"])
    where = "" if library is None else f" ({library})"
    text = f"{function or found['pc'] or 'a function without a name'}{where}"
    if function is not None and (plain := _INTERNAL.match(function)) and where == "":
        function = plain["name"]
    return NamedFrame(Frame(pc, None, None, None, _UNKNOWN, "text"), function, text)


def _library(rest: str) -> str | None:
    """The name of the library that a line names behind the function."""
    _, named, path = rest.rpartition(" from ")
    if named and not re.search(r"\s", path):
        return path.rpartition("/")[2] or None
    found = _LIBRARY.match(rest)
    return None if found is None else found[1]


def _seen(stack: _Stack, first: int, around: Surroundings) -> SeenThread:
    names = [frame.function or "" for frame in stack.frames]
    is_worker = _DISPATCH in names
    apis = (found for name in reversed(names) if (found := _API.fullmatch(name)))
    api = next((f"vir{found['name']}" for found in apis), None)
    position = Position(stack.tid, None, None, stack.frames, is_worker)
    role = "thread"
    if stack.tid == first:
        role = "main thread"
    elif is_worker or (stack.name or "").startswith(_WORKERS):
        role = "worker"
    return SeenThread(
        stack.tid,
        stack.tid,
        stack.name,
        role,
        None,
        tuple(stack.frames),
        None,
        None,
        None,
        None,
        None,
        api,
        None,
        None,
        wait_by_names(position, around),
    )
