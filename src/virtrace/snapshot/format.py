"""The file of a snapshot: one JSON document on one line; docs/snapshot-format.md describes it.

The reader's checks and schema.json follow from the types here (trace/schema.py).
"""

from __future__ import annotations

import json
import os
from typing import BinaryIO, Literal, Optional, TypedDict, Union

from virtrace.errors import TraceError
from virtrace.trace.format import (
    Address,
    Count,
    CountOrNull,
    NumberOrNull,
    Program,
    TextOrNull,
    Time,
    UnavailableValue,
)
from virtrace.trace.schema import ShapeError, check, schema_of

FORMAT = "virtrace-snapshot"
VERSION = 1
BEGINNING = b'{"type":"snapshot"'
# Of a file. A daemon with 1,000 threads makes 4 MB.
LARGEST = 64 << 20
# Verdicts by which nothing hangs, and waits of threads that have nothing to do.
WELL = ("busy", "healthy")
AT_REST = ("idle", "loop")
BoolOrNull = Optional[bool]


class ToolRecord(TypedDict):
    """The virtrace that took the snapshot. python: version of the interpreter it ran in."""

    virtrace: str
    python: str


class HostRecord(TypedDict):
    """The host."""

    machine: str
    kernel: str


class DaemonRecord(TypedDict):
    """The daemon. pid: null in a core that does not say."""

    pid: CountOrNull
    exe: str
    program: Program


class StepRecord(TypedDict):
    """What to do. command: as typed; effect: what it does."""

    command: str
    effect: str


class VerdictRecord(TypedDict):
    """What the snapshot means; the first one is the answer.

    verdict: a name from docs/snapshot.md. thread: tid of the root; behind: tids of those that wait
    for it.
    """

    verdict: str
    says: str
    means: str
    do: list[StepRecord]
    thread: CountOrNull
    behind: list[Count]


class ClientRecord(TypedDict):
    """Who made a call."""

    pid: CountOrNull
    user: TextOrNull
    command: TextOrNull


ClientOrNull = Optional[ClientRecord]


class RequestRecord(TypedDict):
    """What a client asks for: subject and name, such as ``domain`` and ``vm1``, and texts."""

    program: Count
    procedure: Count
    serial: Count
    subject: TextOrNull
    name: TextOrNull
    arguments: dict[str, str]


RequestOrNull = Optional[RequestRecord]


class CommandRecord(TypedDict):
    """A command in flight. sent: whether all of it was written to the socket."""

    text: str
    name: TextOrNull
    id: TextOrNull
    sent: bool


CommandOrNull = Optional[CommandRecord]


class ChildRecord(TypedDict):
    """A process that the daemon started. state: the letter of /proc/PID/stat."""

    pid: Count
    command: str
    state: str


class MountRecord(TypedDict):
    """The file system of a file: where it is mounted, and its type."""

    point: str
    type: str


MountOrNull = Optional[MountRecord]


class WaitRecord(TypedDict):
    """What a thread waits in; keys that do not belong to the kind are null.

    owner: the thread that holds it, as the process counts. since, until: seconds since 1970.
    """

    kind: str
    what: TextOrNull
    owner: CountOrNull
    domain: TextOrNull
    since: NumberOrNull
    until: NumberOrNull
    command: CommandOrNull
    late: bool
    system_call: TextOrNull
    file: TextOrNull
    descriptor: CountOrNull
    function: TextOrNull
    children: list[ChildRecord]
    mount: MountOrNull
    fifo: bool


class ThreadRecord(TypedDict):
    """A thread. own_tid: as the process counts. asleep_s: since it last ran.

    moved: whether it ran between the two looks. doing: the same as `wait`, in words.
    frames: innermost first; frames_end: why there are no more, null if the last is the outermost.
    """

    tid: Count
    own_tid: Count
    name: TextOrNull
    role: str
    state: TextOrNull
    moved: BoolOrNull
    asleep_s: NumberOrNull
    api: TextOrNull
    client: ClientOrNull
    request: RequestOrNull
    doing: str
    wait: WaitRecord
    frames: list[str]
    frames_end: TextOrNull


class JobRecord(TypedDict):
    """A job that is held. owner: the thread; null where none holds it. since: s since 1970."""

    kind: str
    work: str
    owner: CountOrNull
    api: TextOrNull
    since: float


JobsOrUnavailable = Union[list[JobRecord], UnavailableValue]


class DomainRecord(TypedDict):
    """A domain. id: -1 while it does not run. qemu: pid of its QEMU."""

    name: str
    uuid: str
    id: int
    qemu: CountOrNull
    jobs: JobsOrUnavailable


class MonitorRecord(TypedDict):
    """A connection to QEMU or to a guest agent, and what is in flight on it."""

    kind: str
    domain: TextOrNull
    command: CommandOrNull


class QueuedRecord(TypedDict):
    """A call that no worker has taken up."""

    request: RequestOrNull
    priority: bool


class PoolRecord(TypedDict):
    """Workers: at most, now, and without work; calls that wait for one."""

    most: Count
    workers: Count
    free: Count
    queued: list[QueuedRecord]


PoolOrNull = Optional[PoolRecord]


class ConnectionRecord(TypedDict):
    """A client that has made a call. requests: its calls that are not answered yet.

    full: it has as many as it may have, and nothing more is read of it.
    """

    pid: CountOrNull
    requests: Count
    most_requests: Count
    full: bool


class ServerRecord(TypedDict):
    """A server of the daemon; null where a number is not known.

    connections: of the clients, those of which the calls are known.
    """

    name: str
    clients: Count
    connections: list[ConnectionRecord]
    most_clients: CountOrNull
    unauthenticated: CountOrNull
    most_unauthenticated: CountOrNull
    pool: PoolOrNull


class QemuThreadRecord(TypedDict):
    """A thread of a QEMU. waits_in: the kernel's function."""

    tid: Count
    name: str
    state: str
    waits_in: TextOrNull


class QemuRecord(TypedDict):
    """The QEMU of a domain. tracer: pid of a debugger."""

    pid: Count
    tracer: CountOrNull
    threads: list[QemuThreadRecord]


class CrashRecord(TypedDict):
    """The signal that ended the process, its si_code, and the address of a fault."""

    signal: Count
    code: int
    address: Address


CrashOrNull = Optional[CrashRecord]


class Snapshot(TypedDict):
    """The document.

    source: ``process``, ``core`` or ``text``. seconds: between the two looks; 0 of the others.
    crash: null of a process, and of a core that gcore made.
    objects: how many are in memory, by their type; some of them may have been freed.
    """

    type: Literal["snapshot"]
    format: str
    version: Count
    source: str
    taken: Time
    seconds: float
    tool: ToolRecord
    host: HostRecord
    daemon: DaemonRecord
    crash: CrashOrNull
    verdicts: list[VerdictRecord]
    threads: list[ThreadRecord]
    domains: list[DomainRecord]
    monitors: list[MonitorRecord]
    servers: list[ServerRecord]
    qemus: list[QemuRecord]
    objects: dict[str, Count]
    notes: list[str]


def encoded(snapshot: Snapshot) -> bytes:
    """Return the file's content."""
    text = json.dumps(snapshot, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


def schema() -> dict[str, object]:
    """Return the JSON Schema (2020-12) of a snapshot, which is kept as schema.json."""
    described = schema_of(Snapshot)
    described["properties"].update(format={"const": FORMAT}, version={"const": VERSION})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:virtrace:snapshot:{VERSION}",
        "title": f"A virtrace snapshot, format version {VERSION}",
        "description": "docs/snapshot-format.md says what each key means. Keys that are not named "
        f"here may be added within version {VERSION}.",
        **described,
    }


def is_snapshot(file: BinaryIO) -> bool:
    """Whether a file begins as a snapshot does; what is read of it stays to be read."""
    return os.pread(file.fileno(), len(BEGINNING), 0) == BEGINNING


def read_snapshot(file: BinaryIO, path: str) -> Snapshot:
    """Read a snapshot, which may be a stranger's. Raises: TraceError if it is damaged."""
    data = file.read(LARGEST + 1)
    try:
        if len(data) > LARGEST:
            raise ShapeError(f"it is larger than {LARGEST >> 20} MiB")
        document: Snapshot = json.loads(data)
        check(document, Snapshot)
    except (ShapeError, ValueError, RecursionError) as error:
        raise TraceError(
            f"{path} is not a whole snapshot: {error}", "take a fresh copy of the file"
        ) from error
    if document["format"] != FORMAT or document["version"] != VERSION:
        raise TraceError(
            f"{path} is a snapshot of format version {document['version']}, and this virtrace "
            f"reads version {VERSION}",
            "update virtrace",
        )
    return document
