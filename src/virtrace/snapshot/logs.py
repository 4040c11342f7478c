"""Single lines of logs: the kernel's on a crash, libvirt's on a job, and what coredumpctl says.

The kernel's are from arch/x86/mm/fault.c (show_signal_msg), arch/x86/kernel/traps.c and mm/memory.c
(print_vma_addr), libvirt's from src/conf/virdomainjob.c and src/qemu/qemu_domainjob.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

_HEX = "[0-9a-f]{1,16}"
# The mapping that has the code: in newer kernels with the offset in the file in front.
_MAPPING = (
    r"(?: in (?P<module>[^\s\[\]]+)"
    rf"\[(?:(?P<offset>{_HEX}),)?(?P<start>{_HEX})\+(?P<size>{_HEX})\])?"
)
_THREAD = r"(?:^|[\s\]:])(?P<name>[^\s\[\]:]{1,15})\[(?P<tid>[0-9]{1,9})\]"
_SEGFAULT = re.compile(
    rf"{_THREAD}: segfault at (?P<address>{_HEX}) ip (?P<ip>{_HEX}) sp {_HEX} "
    rf"error (?P<error>{_HEX}){_MAPPING}"
)
_TRAP = re.compile(
    rf"traps:{_THREAD} (?P<what>[a-z][a-z0-9 ]{{2,30}}?) ip:(?P<ip>{_HEX}) sp:{_HEX} "
    rf"error:(?P<error>{_HEX}){_MAPPING}"
)
# What the processor reports, and the signal that the kernel sends for it.
_SIGNALS = {
    "general protection": 11,
    "general protection fault": 11,
    "trap invalid opcode": 4,
    "trap divide error": 8,
    "trap int3": 5,
    "trap stack segment": 7,
}
_SIGSEGV = 11
# Bits of a page fault's error (arch/x86/include/asm/trap_pf.h).
_PROTECTION, _WRITE, _FETCH = 1, 2, 16

_LIBVIRT = re.compile(
    r"^(?P<at>[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}\.[0-9]{3}[+-][0-9]{4}): (?P<tid>[0-9]{1,9}): "
)
_JOB = re.compile(
    r"Cannot start job \((?P<wanted>[\w ,-]{1,200})\)(?: in API (?P<api>\w{1,100}))? "
    r"for domain (?P<domain>.{1,300}?); current job is \((?P<current>[\w ,-]{1,200})\) "
    r"owned by \((?P<owners>[^()]{1,400})(?:\(flags=0x[0-9a-f]{1,16}\))?\) "
    r"for \((?P<ages>[0-9s, ]{1,100})\)"
)
_OWNER = re.compile(r"(?P<tid>[0-9]{1,9}) (?P<api>\S{1,100}?)(?=, |\s|$)")
_KINDS = {2: ("job", "async job"), 3: ("job", "agent job", "async job")}
_NONE = "none"

_CRASHED = re.compile(r"^\s*PID: (?P<pid>[0-9]{1,9}) \((?P<name>[^)\n]{1,64})\)", re.M)
_SIGNAL = re.compile(r"^\s*Signal: (?P<number>[0-9]{1,3}) ", re.M)
_EXECUTABLE = re.compile(r"^\s*Executable: (?P<path>/[^\n]{1,4096})$", re.M)


class Mapping(NamedTuple):
    """The mapped code in which a thread was.

    module: the file's name. start, size: of the mapping, bytes.
    offset: of the instruction in the file; None where an older kernel does not say.
    """

    module: str
    start: int
    size: int
    offset: int | None


class KernelCrash(NamedTuple):
    """A crash in the kernel's log. tid: as this host counts; name: of the thread.

    address: of the fault; None where the processor does not tell.
    access: ``reading``, ``writing`` or ``executing``; None where it was none.
    is_protected: whether the page was there, and did not allow the access.
    """

    name: str
    tid: int
    signal: int
    ip: int
    address: int | None
    access: str | None
    is_protected: bool
    mapping: Mapping | None


class HeldJob(NamedTuple):
    """A job that was held. owner: its thread, None where no thread held it. seconds: for how long.

    kind, work, api: as of snapshot.model.Job.
    """

    kind: str
    work: str
    owner: int | None
    api: str | None
    seconds: int


class GaveUp(NamedTuple):
    """A call that did not get the job of a domain. at: when, seconds since 1970.

    at, tid, api: None where the line does not say. held: the jobs that were in its way.
    """

    at: float | None
    tid: int | None
    api: str | None
    domain: str
    held: tuple[HeldJob, ...]


class StoredCrash(NamedTuple):
    """What coredumpctl says of a core. exe: empty where it does not say."""

    pid: int
    signal: int
    exe: str


def kernel_crashes(text: str) -> Iterator[KernelCrash]:
    """Yield the crashes in a log of the kernel, in its order."""
    for line in text.splitlines():
        found = _SEGFAULT.search(line)
        if found is not None:
            error = int(found["error"], 16)
            access = "executing" if error & _FETCH else "writing" if error & _WRITE else "reading"
            yield KernelCrash(
                found["name"],
                int(found["tid"]),
                _SIGSEGV,
                int(found["ip"], 16),
                int(found["address"], 16),
                access,
                bool(error & _PROTECTION),
                _mapping(found),
            )
            continue
        found = _TRAP.search(line)
        signal = None if found is None else _SIGNALS.get(found["what"])
        if found is not None and signal is not None:
            ip = int(found["ip"], 16)
            thread = found["name"], int(found["tid"])
            yield KernelCrash(*thread, signal, ip, None, None, False, _mapping(found))


def _mapping(found: re.Match[str]) -> Mapping | None:
    if found["module"] is None:
        return None
    offset = None if found["offset"] is None else int(found["offset"], 16)
    return Mapping(found["module"], int(found["start"], 16), int(found["size"], 16), offset)


def calls_that_gave_up(text: str) -> Iterator[GaveUp]:
    """Yield what libvirt's log has of calls that did not get the job of a domain."""
    for line in text.splitlines():
        found = _JOB.search(line)
        if found is None:
            continue
        begins = _LIBVIRT.match(line)
        at = tid = None
        if begins is not None:
            tid = int(begins["tid"])
            with suppress(ValueError, OverflowError):
                # Python 3.9 wants a colon in the zone.
                at = datetime.fromisoformat(f"{begins['at'][:-2]}:{begins['at'][-2:]}").timestamp()
        yield GaveUp(at, tid, found["api"], found["domain"], tuple(_held(found)))


def _held(found: re.Match[str]) -> Iterator[HeldJob]:
    current = [work.strip() for work in found["current"].split(",")]
    owners = [*_OWNER.finditer(found["owners"])]
    ages = [int(age) for age in re.findall("([0-9]{1,9})s", found["ages"])]
    kinds = _KINDS.get(len(current), ())
    if not len(current) == len(owners) == len(ages):
        return
    for kind, work, owner, age in zip(kinds, current, owners, ages):
        tid, api = int(owner["tid"]), owner["api"]
        if work != _NONE:
            named = None if api == "<null>" else api
            yield HeldJob(kind, work, tid or None, named, age)


def stored_crash(text: str) -> StoredCrash | None:
    """Return what `coredumpctl info` says; None if the text is none of it."""
    process, signal = _CRASHED.search(text), _SIGNAL.search(text)
    if process is None or signal is None:
        return None
    exe = _EXECUTABLE.search(text)
    return StoredCrash(
        int(process["pid"]), int(signal["number"]), "" if exe is None else exe["path"]
    )
