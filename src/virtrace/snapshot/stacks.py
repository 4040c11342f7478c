"""Stacks as text, such as reporters of bugs attach: as far as names of functions tell.

Understood are GDB's `thread apply all bt`, the stack traces of `coredumpctl info`, and eu-stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from virtrace.errors import TraceError
from virtrace.image.model import Program, Registers
from virtrace.image.unwind import Frame
from virtrace.snapshot.model import Look, NamedFrame, SeenThread
from virtrace.snapshot.objects import Objects
from virtrace.snapshot.peek import Peek
from virtrace.snapshot.waits import Position, Surroundings, wait_by_names

# What begins a thread: GDB's line has its name, too.
_THREADS = (
    re.compile(r'^Thread \d+ \(.*?LWP (?P<tid>\d+)\)(?: "(?P<name>[^"]*)")?'),
    re.compile(r"^\s*Stack trace of thread (?P<tid>\d+):"),
    re.compile(r"^TID (?P<tid>\d+):"),
)
_FRAME = re.compile(
    r"^\s*#\d+\s+(?:(?P<pc>0x[0-9a-f]+)\s+)?(?:in )?(?P<function>[^\s(]+)(?P<rest>.*)$"
)
_LIBRARY = re.compile(r" from \S*?([^/\s]+)$|^ \(([^)\s]+) \+ 0x")
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
_MOST_THREADS, _MOST_FRAMES = 10_000, 1000


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


def look_at_text(text: str, name: str, taken: float) -> Look:
    """Return what stacks in a text tell. name: of the file. Raises: TraceError if it has none."""
    stacks = [stack for stack in _stacks(text) if stack.frames]
    if not stacks:
        raise TraceError(
            f"{name} has no stacks of threads",
            "give it the output of `gdb -p PID -batch -ex 'thread apply all bt'`",
        )
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
    threads = tuple(_seen(stack, first, around) for stack in stacks)
    notes = ["a text names functions: no domain, no client, no owner of a lock or a job is known"]
    return Look(None, taken, 0.0, threads, (), (), (), {}, None, {}, notes)


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
    function = None if found["function"] in _NAMELESS else found["function"]
    library = _LIBRARY.search(found["rest"])
    where = "" if library is None else f" ({library[1] or library[2]})"
    text = f"{function or found['pc'] or 'a function without a name'}{where}"
    if function is not None and (plain := _INTERNAL.match(function)) and where == "":
        function = plain["name"]
    return NamedFrame(Frame(pc, None, None, None, _UNKNOWN, "text"), function, text)


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
