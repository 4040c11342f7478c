"""QEMU's jobs, without debug info: where they are, and how far each is.

Exported functions of QEMU find a job by its id, go to the next one, say its type and its state, or
report progress. The offsets come from their code. What the code does not show in exactly that way
is unavailable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from virtrace.errors import TargetError, Unavailable
from virtrace.image.memory import PartialMemory
from virtrace.image.model import Module
from virtrace.image.process import Process
from virtrace.recipe.model import JOBS
from virtrace.targets.qemu.blocks import (
    ATTEMPTS,
    BlockLayer,
    field_of,
    function,
    listed,
    main_module,
    memory_of,
    number,
    word,
)
from virtrace.targets.qemu.guests import Guest
from virtrace.targets.target import Standing

_INT = 4
_MOST_JOBS, _LONGEST_ID = 1000, 256
# JobType and JobStatus of qapi/job.json, QEMU 5.2 to 11.1.
_TYPES = (
    *("commit", "stream", "mirror", "backup", "create", "amend"),
    *("snapshot-load", "snapshot-save", "snapshot-delete"),
)
_STATUSES = (
    *("undefined", "created", "running", "paused", "ready", "standby"),
    *("waiting", "pending", "aborting", "concluded", "null"),
)
_BEGIN, _RETURN = rb"(?:\xf3\x0f\x1e\xfa)?", rb"(?:\x31\xff)?\xc3"
# An offset of a byte or four, in an operand based on rdi: with the register eax, or as rsi or rax.
_IN_JOB = rb"(?:[\x47\x77](?P<%b>.)|[\x87\xb7](?P<%b>.{4}))"
_FIELD = _IN_JOB % (b"short", b"long")
# job_next(): test %rdi,%rdi; je; mov NEXT(%rdi),%rax; ret; mov HEAD(%rip),%rax; ret
_NEXT = re.compile(
    _BEGIN
    + rb"\x48\x85\xff\x74.\x48\x8b"
    + _FIELD
    + _RETURN
    # Code is aligned.
    + rb".{0,15}?\x48\x8b\x05(?P<head>.{4})"
    + _RETURN,
    re.S,
)
# job_get(): mov (JOB),%rsi; test %rsi,%rsi, before it is compared: a job begins with its id.
_ID = re.compile(rb"(?:\x48\x8b\x33|\x49\x8b\x34\x24)\x48\x85\xf6\x74", re.S)
# job_type(): mov DRIVER(%rdi),%rax; mov TYPE(%rax),%eax; ret
_TYPE = re.compile(_BEGIN + rb"\x48\x8b\x47(?P<driver>.)\x8b\x40(?P<type>.)" + _RETURN, re.S)
# job_is_ready(): mov STATUS(%rdi),%eax; cmp $5,%eax
_STATUS = re.compile(_BEGIN + rb"\x8b" + _FIELD + rb"\x83\xf8\x05", re.S)
# job_user_paused(): movzbl PAUSED(%rdi),%eax; ret
_PAUSED = re.compile(_BEGIN + rb"\x0f\xb6" + _FIELD + _RETURN, re.S)
# job_progress_set_remaining() up to QEMU 5.2: add DONE(%rdi),%rsi; mov %rsi,TOTAL(%rdi); ret
_SETS = re.compile(_BEGIN + rb"\x48\x03\x77(?P<done>.)\x48\x89\x77(?P<total>.)\xc3", re.S)
# Later: add $PROGRESS,%rdi; jmp progress_set_remaining
_PASSES_ON = re.compile(_BEGIN + rb"\x48\x83\xc7(?P<progress>.)\xe9(?P<to>.{4})", re.S)
# which has: add (PROGRESS),%rbp; ..; mov %rbp,TOTAL(PROGRESS)
_SETS_IN_PROGRESS = re.compile(rb"\x48\x03\x2b.{0,9}?\x48\x89\x6b(?P<total>.)", re.S)


class Job(NamedTuple):
    """A job. done, total: in its own units, bytes for those of disks."""

    id: str
    type: str
    status: str
    user_paused: bool
    done: int
    total: int


@dataclass(frozen=True)
class JobLayout:
    """head: of the list of all jobs, an address of the file. The others: offsets in a job.

    type: in the driver.
    """

    head: int
    next: int
    driver: int
    type: int
    status: int
    paused: int
    done: int
    total: int


class Jobs(BlockLayer):
    """What is known of a QEMU's block layer and of its jobs (Knowledge of targets.target)."""

    def standing(self, kind: str, process: Process, guest: Guest | None) -> Sequence[Standing]:
        if kind != JOBS:
            return super().standing(kind, process, guest)
        known = {} if guest is None else {"domain": guest.name}
        return [
            Standing(job.id, job.done, {**job._asdict(), **known}) for job in read_jobs(process)
        ]


@cache
def job_layout(module: Module) -> JobLayout:
    """Read it from the code. Raises: Unavailable."""
    try:
        return _layout(module)
    except TargetError as error:
        raise Unavailable(f"QEMU's jobs are not understood: {error.what}") from error


def _layout(module: Module) -> JobLayout:
    at, following = _matched(module, "job_next", _NEXT)
    _, kind = _matched(module, "job_type", _TYPE)
    _, status = _matched(module, "job_is_ready", _STATUS)
    _, paused = _matched(module, "job_user_paused", _PAUSED)
    _, code = _either(module, "job_get")
    if len(_ID.findall(code)) != 1:
        raise Unavailable("the code of this build does not show where a job's id is")
    done, total = _progress(module)
    return JobLayout(
        head=at + following.end("head") + number(following["head"]),
        next=field_of(following),
        driver=kind["driver"][0],
        type=kind["type"][0],
        status=field_of(status),
        paused=field_of(paused),
        done=done,
        total=total,
    )


def _progress(module: Module) -> tuple[int, int]:
    """Where a job has what is done, and what there is to do with it. Raises: Unavailable."""
    at, code = function(module, "job_progress_set_remaining")
    sets = _SETS.match(code)
    if sets is not None:
        return sets["done"][0], sets["total"][0]
    passes_on = _PASSES_ON.match(code)
    if passes_on is not None:
        start, code = function(module, "progress_set_remaining")
        found = _SETS_IN_PROGRESS.search(code)
        if found is not None and at + passes_on.end() + number(passes_on["to"]) == start:
            progress = passes_on["progress"][0]
            return progress, progress + found["total"][0]
    raise Unavailable("the code of this build does not show where a job's progress is")


def _either(module: Module, name: str) -> tuple[int, bytes]:
    """The function that needs no lock; since QEMU 7.2 it has a name of its own."""
    try:
        return function(module, f"{name}_locked")
    except Unavailable:
        return function(module, name)


def _matched(module: Module, name: str, pattern: re.Pattern[bytes]) -> tuple[int, re.Match[bytes]]:
    at, code = _either(module, name)
    found = pattern.match(code)
    if found is None:
        raise Unavailable(f"the code of {name} of this build is not known")
    return at, found


def read_jobs(process: Process) -> Sequence[Job]:
    """The jobs of a running QEMU, from its memory. Raises: Unavailable."""
    module = main_module(process)
    layout = job_layout(module)
    with memory_of(process) as memory:

        def places() -> list[int]:
            return [*listed(memory, module.base + layout.head, layout.next, _MOST_JOBS, "jobs")]

        for _ in range(ATTEMPTS):
            before = places()
            found = [_job(memory, place, layout) for place in before]
            # A job that ends while it is read leaves anything behind.
            if before == places():
                return [job for job in found if job is not None]
    raise Unavailable("its list of jobs changes all the time")


def _job(memory: PartialMemory, place: int, layout: JobLayout) -> Job | None:
    """None of a job without an id, which is one of QEMU's own."""
    where = word(memory, place)
    if where == 0:
        return None
    name = memory.read_available(where, _LONGEST_ID).partition(b"\0")[0]
    driver = word(memory, place + layout.driver)
    return Job(
        name.decode("utf-8", "backslashreplace"),
        _name(_TYPES, memory.read(driver + layout.type, _INT)),
        _name(_STATUSES, memory.read(place + layout.status, _INT)),
        memory.read(place + layout.paused, 1) != b"\0",
        word(memory, place + layout.done),
        word(memory, place + layout.total),
    )


def _name(names: Sequence[str], value: bytes) -> str:
    at = int.from_bytes(value, "little")
    return names[at] if at < len(names) else str(at)
