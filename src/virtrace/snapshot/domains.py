"""Domains and their jobs, from virDomainObj.

A domain is proven by what lies together in it. Its definition is a struct with an id, a UUID and a
name. Its jobs are in another struct (virDomainJobObj from 9.0.0 on, qemuDomainJobObj in 7.0.0, see
layouts/): what kind, the thread that holds it, a name, and a time of the last years. The name is
that of a call's function, or of a thread of libvirt's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple
from uuid import UUID

from virtrace.snapshot.model import AGENT_JOB, Domain, Job
from virtrace.snapshot.peek import WORD, Peek, is_pointer
from virtrace.trace.jobs import AGENT_JOBS, ASYNC_JOBS, JOBS

_LONGEST_NAME = 255
# A thread can be named after a domain.
_LONGEST_OWNER = _LONGEST_NAME + 10
# Words of the object in which to look.
_OBJECT_WORDS = 50
# Behind the object's own header: GObject, mutex, condition.
_FIRST = 8
# In the definition: where the UUID and then the name can be. 4 bytes in front of a UUID is the id.
_UUIDS, _NAMES = (8, 4, 12, 16, 20, 24), (48, 40, 56, 64, 72)
_MOST_IDS = 1 << 20
# Of UUIDs (RFC 9562). A domain to which a user gave another one is not recognized.
_VERSIONS = range(1, 9)
# In virDomainObj: where the pid of the QEMU can be.
_PIDS = range(64, 184, 4)
# In virDomainObj, the address of the struct with the jobs (of 7.0.0, of the private data). From its
# beginning, the kind of a job; then its owner, the owner's API and the start, in ms since 1970.
_JOB_POINTERS = (112, 168)
_JOB, _AGENT_JOB, _ASYNC_JOB = 56, 88, 168
_LONGEST_JOB = 10 * 365 * 86400.0
_KINDS = (
    ("job", JOBS, _JOB),
    (AGENT_JOB, AGENT_JOBS, _AGENT_JOB),
    ("async job", ASYNC_JOBS, _ASYNC_JOB),
)
_MOST_PIDS = 1 << 22


class _Definition(NamedTuple):
    name: str
    uuid: str
    id: int


def domain_at(
    peek: Peek,
    address: int,
    tids: Collection[int],
    now: float,
    qemu_of: Callable[[int, str], int | None],
) -> Domain | None:
    """Return the domain of a virDomainObj; None if its content does not prove it.

    tids: of the process's threads, as it counts. now: of the look, seconds since 1970.
    qemu_of: of a number that may be a pid, as the process counts, and a UUID: the pid on this host,
        if it is the QEMU of the domain
    """
    words = peek.words(address, _OBJECT_WORDS)
    definition = next(
        (found for word in words[_FIRST:] if (found := _definition(peek, word)) is not None), None
    )
    if definition is None:
        return None
    candidates = [word for at in _JOB_POINTERS if is_pointer(word := words[at // WORD])]
    held = [each for at in candidates if (each := _jobs(peek, at, tids, now)) is not None]
    # Zeros look alike; a job that is held proves the place.
    jobs = next(filter(None, held), ()) if held else None
    qemus = (qemu_of(pid, definition.uuid) for pid in pids_at(peek, address))
    qemu = next((pid for pid in qemus if pid is not None), None)
    return Domain(address, *definition, qemu=qemu, jobs=jobs)


def pids_at(peek: Peek, address: int) -> Iterator[int]:
    """What may be the pid of the QEMU in a virDomainObj, as the process counts."""
    for at in _PIDS:
        pid = peek.number(address + at, 4, signed=True)
        if pid is not None and 1 < pid < _MOST_PIDS:
            yield pid


def _definition(peek: Peek, address: int) -> _Definition | None:
    """Return what identifies a domain, if a virDomainDef is at the address."""
    if not is_pointer(address):
        return None
    for at in _NAMES:
        pointer = peek.word(address + at)
        name = peek.text(pointer, _LONGEST_NAME) if is_pointer(pointer, 1) else None
        if not name or not name.isprintable():
            continue
        for uuid_at in _UUIDS:
            raw = peek.data(address + uuid_at, 16)
            number = peek.number(address + uuid_at - 4, 4, signed=True)
            if raw is None or number is None or uuid_at + 32 > at:
                continue
            uuid = UUID(bytes=raw)
            if uuid.version in _VERSIONS and -1 <= number < _MOST_IDS:
                return _Definition(name, str(uuid), number)
    return None


def _jobs(peek: Peek, address: int, tids: Collection[int], now: float) -> tuple[Job, ...] | None:
    """Return the jobs that a struct at the address says are held; None if it is no such struct.

    A struct of zeros is taken for one that holds no job.
    """
    found = []
    for kind, names, at in _KINDS:
        number = peek.number(address + at, 4)
        words = peek.words(address + at + WORD, 3)
        if number is None or number >= len(names) or len(words) < 3:
            return None
        owner, pointer, started = words
        since = started / 1000
        api = peek.text(pointer, _LONGEST_OWNER) if pointer else None
        is_named = api is not None and api.isprintable()
        is_recent = now - _LONGEST_JOB < since <= now + 1
        if number == 0:
            if owner or pointer or started:
                return None
            continue
        # Its thread may have handed it on, as that of an incoming migration does.
        if not is_recent or not (owner in tids if owner else True) or not (is_named or not pointer):
            return None
        found.append(Job(kind, names[number], owner or None, api, since))
    return tuple(found)
