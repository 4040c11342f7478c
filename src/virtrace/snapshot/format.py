"""The file of a snapshot: one JSON document; docs/snapshot-format.md describes it.

The reader's checks and schema.json follow from the types here (trace/schema.py).
"""

import json
import os
from datetime import datetime
from io import BufferedReader
from typing import BinaryIO, Literal, Optional, TypedDict, Union

from virtrace.trace.bundle_reader import MAX_VALUES, TRACE, BundleReader, is_bundle
from virtrace.trace.compression import GZIP
from virtrace.trace.document import DocumentFormat, begins_as
from virtrace.trace.format import (
    AddressOrNull,
    Count,
    CountOrNull,
    NumberOrNull,
    Program,
    Record,
    TextOrNull,
    Time,
    UnavailableValue,
)

FORMAT = "virtrace-snapshot"
VERSION = 1
# Its name in a bundle.
SNAPSHOT = "snapshot.json"
# Of a file. A daemon with 1,000 threads makes 4 MB.
LARGEST = 64 << 20
# Verdicts by which nothing hangs, and waits of threads that have nothing to do.
WELL = ("busy", "healthy")
AT_REST = ("idle", "loop")
# States of a process (letters of /proc/PID/stat) in which it answers nobody.
STATES = {"T": "stopped by a signal", "t": "held by a debugger", "D": "waiting for the kernel"}
# The wait of a thread of which only a job, or a crash, is known.
NOT_KNOWN = "not known"
BoolOrNull = Optional[bool]
CodeOrNull = Optional[int]


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

    verdict: a name from docs/hang.md. thread: tid of the root; behind: tids of those that wait
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
    """A process that the daemon waits for. state: the letter of /proc/PID/stat."""

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
    """A thread. own_tid: as the process counts. asleep_s: since it last ran, without steal.

    moved: whether it ran between the two looks. stopped_ms: for how long it was stopped for its
    registers; null where it was not. doing: the same as `wait`, in words.
    frames: innermost first; frames_end: why there are no more, null if the last is the outermost.
    """

    tid: Count
    own_tid: Count
    name: TextOrNull
    role: str
    state: TextOrNull
    moved: BoolOrNull
    asleep_s: NumberOrNull
    stopped_ms: NumberOrNull
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
    uuid: TextOrNull
    id: CodeOrNull
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


class KeepaliveRecord(TypedDict):
    """How the server asks whether a client is there.

    most: how many messages without an answer end the connection; unanswered: how many it has sent
    since it heard of the client. heard: when that was; closes: when it will close the connection
    if it hears nothing; seconds since 1970.
    """

    interval_s: Count
    most: Count
    unanswered: Count
    heard: float
    closes: float


KeepaliveOrUnavailable = Union[KeepaliveRecord, UnavailableValue]


class ConnectionRecord(TypedDict):
    """A client that has made a call. requests: its calls that are not answered yet.

    full: it has as many as it may have, and nothing more is read of it.
    """

    pid: CountOrNull
    requests: Count
    most_requests: Count
    full: bool
    keepalive: KeepaliveOrUnavailable


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


class NeighbourRecord(TypedDict):
    """A daemon that this one uses. socket: where it listens, or would.

    pid, state: null where no such process listens there. has_socket: whether anybody listens.
    waiting: tids of threads that wait for it.
    """

    name: str
    socket: str
    pid: CountOrNull
    state: TextOrNull
    has_socket: bool
    waiting: list[Count]


class NetworkRecord(TypedDict):
    """An active network whose guests dnsmasq serves. dnsmasq: its pid; null where none runs."""

    name: str
    dnsmasq: CountOrNull
    state: TextOrNull


class CrashRecord(TypedDict):
    """The signal that ended the process, its si_code, and the address of a fault.

    address: null where it is not known, or was replaced in a bundle. sender: pid of who sent it.
    """

    signal: Count
    code: CodeOrNull
    address: AddressOrNull
    sender: CountOrNull
    access: TextOrNull


CrashOrNull = Optional[CrashRecord]


class _Snapshot(TypedDict):
    """The document.

    source: ``process``, ``core`` or ``text``. seconds: between the two looks; 0 of the others.
    crash: null of a process, and of a core that gcore made.
    objects: how many are in memory, by their type; some of them may have been freed.
    object_bytes: how large these are in all, without what they point to.
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
    neighbours: list[NeighbourRecord]
    objects: dict[str, Count]
    object_bytes: dict[str, Count]
    notes: list[str]


class Snapshot(_Snapshot, total=False):
    """The document. redacted: of a bundle, the kinds of names that were kept.

    networks: not in the first snapshots of this version.
    """

    networks: list[NetworkRecord]
    redacted: list[str]


def encoded(snapshot: Snapshot) -> bytes:
    """Return the file's content."""
    text = json.dumps(snapshot, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"


_DOCUMENT = DocumentFormat(FORMAT, "snapshot", VERSION, Snapshot, LARGEST, MAX_VALUES)


def schema() -> Record:
    """Return the JSON Schema (2020-12) of a snapshot, which is kept as schema.json."""
    return _DOCUMENT.schema(
        "A virtrace snapshot",
        "docs/snapshot-format.md says what each key means. Keys that are not named here may be "
        f"added within version {VERSION}.",
    )


def may_be_snapshot(file: BinaryIO) -> bool:
    """Whether ``is_snapshot`` can hold, as far as the first bytes of a file say."""
    return _is_packed(file) or begins_as("snapshot", file)


def is_snapshot(file: BinaryIO, path: str) -> bool:
    """Whether a file is a snapshot, or a bundle of one alone; it can be read from its beginning.

    path: name in errors. Raises: TraceError if it is a damaged bundle.
    """
    if not _is_packed(file):
        return begins_as("snapshot", file)
    try:
        return is_bundle(file, path) and _is_of_snapshot(file, path)
    finally:
        file.seek(0)


def _is_packed(file: BinaryIO) -> bool:
    return os.pread(file.fileno(), len(GZIP), 0) == GZIP


def _is_of_snapshot(file: BinaryIO, path: str) -> bool:
    """Whether a bundle has a snapshot and no trace."""
    names = []
    for name, _ in BundleReader(file, path).members():
        # It can be large, and decides.
        if name == TRACE:
            return False
        names.append(name)
    return SNAPSHOT in names


def _content(file: BinaryIO, path: str) -> bytes:
    beginning = file.read(len(GZIP))
    if beginning != GZIP:
        return beginning + file.read(LARGEST)
    for name, member in BundleReader(file, path).members():
        if name == SNAPSHOT:
            return BufferedReader(member).read(LARGEST + 1)
    return b""


def read_snapshot(file: BinaryIO, path: str) -> Snapshot:
    """Read a snapshot, or that of a bundle, which may be a stranger's.

    Raises: TraceError if it is damaged.
    """
    document: Snapshot = _DOCUMENT.parse(_content(file, path), path)
    try:
        datetime.fromisoformat(document["taken"])
    except ValueError as error:
        raise _DOCUMENT.damaged(path, error) from error
    if not document["verdicts"]:
        raise _DOCUMENT.damaged(path, "it has no verdict")
    return document
