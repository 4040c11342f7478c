"""What one look at a daemon found. Times are seconds since 1970, of this host's clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from virtrace.image.model import SystemCall
from virtrace.image.unwind import Frame


@dataclass(frozen=True)
class NamedFrame:
    """A frame of a stack. function: None where no name is known. text: the frame in words."""

    frame: Frame
    function: str | None
    text: str


@dataclass(frozen=True)
class Client:
    """Who made a call, as the kernel told libvirt.

    pid, user, command: None where it is not known; command: only while the process lives.
    """

    pid: int | None
    user: str | None
    command: str | None


@dataclass(frozen=True)
class Request:
    """A call that a client made, from its own message.

    program, procedure, serial: as in the message. subject: what the first argument names, such as
    ``domain``; name: its name. arguments: texts that follow it, by the names of libvirt's API.
    """

    program: int
    procedure: int
    serial: int
    subject: str | None = None
    name: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command in flight, to QEMU or to a guest agent.

    text: as libvirt sends it. name, id: from the text; None where it has none.
    is_sent: whether libvirt has written all of it to the socket.
    """

    text: str
    name: str | None
    id: str | None
    is_sent: bool


# The kind of a job for a guest agent, which keeps only other calls of the agent waiting.
AGENT_JOB = "agent job"


@dataclass(frozen=True)
class Job:
    """A job that a domain's object says is held.

    kind: ``job``, ``agent job`` or ``async job``. work: what for, such as ``query`` or ``save``.
    owner: the thread, as the process counts; None where the job has none.
    api: the function that took it. since: when.
    """

    kind: str
    work: str
    owner: int | None
    api: str | None
    since: float


@dataclass(frozen=True)
class Domain:
    """A domain of the daemon.

    address: of its virDomainObj. uuid: as text. id: -1 while it does not run. Both are None in
    what is read from a log.
    qemu: the pid of its QEMU, on this host; None where it has none, or it is not known.
    jobs: None where it is not known whether it has any.
    """

    address: int
    name: str
    uuid: str | None
    id: int | None
    qemu: int | None
    jobs: tuple[Job, ...] | None


@dataclass(frozen=True)
class Monitor:
    """A connection to QEMU (``qemuMonitor``) or to a guest agent (``qemuAgent``).

    domain: address of its virDomainObj. command: what is in flight; message: its address.
    """

    kind: str
    address: int
    domain: int | None
    command: Command | None
    message: int | None


@dataclass(frozen=True)
class Queued:
    """A call that no worker has taken up yet."""

    request: Request | None
    client: int | None
    is_priority: bool


@dataclass(frozen=True)
class Pool:
    """The workers of a server. busy: of those that are not only for short calls."""

    most: int
    workers: int
    free: int
    queued: tuple[Queued, ...]

    @property
    def is_exhausted(self) -> bool:
        return self.workers >= self.most and self.free == 0


@dataclass(frozen=True)
class Keepalive:
    """How a server asks whether a client is there.

    interval: seconds. most: how many messages without an answer end the connection.
    unanswered: how many it has sent since it heard of the client. heard: when that was.
    closes: when it will close the connection if it hears nothing.
    """

    interval: int
    most: int
    unanswered: int
    heard: float
    closes: float


@dataclass(frozen=True)
class Connection:
    """A client of a server, which has made a call.

    pid: None where it is not known. requests: its calls that are not answered yet.
    most_requests: how many it may have (max_client_requests). is_full: nothing more is read of it.
    keepalive: None where none was found.
    """

    address: int
    pid: int | None
    requests: int
    most_requests: int
    is_full: bool
    keepalive: Keepalive | None


@dataclass(frozen=True)
class Server:
    """A server of the daemon, such as ``libvirtd`` or ``admin``.

    clients: addresses of them. connections: of those of which the calls are known.
    """

    name: str
    clients: tuple[int, ...]
    connections: tuple[Connection, ...]
    most_clients: int | None
    unauthenticated: int | None
    most_unauthenticated: int | None
    pool: Pool | None


@dataclass(frozen=True)
class Child:
    """A process that the daemon waits for.

    It started it; or the process has outlived such a one and still holds its output; or it is at
    the other end of a socket.
    """

    pid: int
    command: str
    state: str


@dataclass(frozen=True)
class Wait:
    """What a thread waits in. Only what belongs to the kind is set.

    kind: idle, loop, mutex, rwlock, job, qemu, agent, event, child, peer, condition, system call,
        computes, or not known.
    what: the object, in words. owner: the thread that holds it, as the process counts.
    domain: its address. since, until: when the wait began, and when it gives up.
    command: what is asked. is_late: the wait itself is over, but its lock cannot be had again.
    system_call, file, descriptor: what the kernel is asked for. function: of libvirt that waits.
    children: the processes that are waited for: started by the daemon, or the peer of a socket.
    mount: where the file's file system is mounted, and its type. is_fifo: whether the file is one.
    """

    kind: str
    what: str | None = None
    owner: int | None = None
    domain: int | None = None
    since: float | None = None
    until: float | None = None
    command: Command | None = None
    is_late: bool = False
    system_call: str | None = None
    file: str | None = None
    descriptor: int | None = None
    function: str | None = None
    children: tuple[Child, ...] = ()
    mount: tuple[str, str] | None = None
    is_fifo: bool = False


@dataclass(frozen=True)
class SeenThread:
    """A thread.

    tid: as this host counts; own_tid: as the process counts.
    state: the letter of /proc/PID/stat. ended: why there are no more frames.
    asleep: seconds; None where it is not known. moved: whether it ran between the two looks.
    api: the call that it serves, such as virDomainGetBlockInfo. stopped: for how long it was
    stopped for its registers, s; None where it was not.
    """

    tid: int
    own_tid: int
    name: str | None
    role: str
    state: str | None
    frames: tuple[NamedFrame, ...]
    ended: str | None
    waits_in: SystemCall | None
    wait_channel: str | None
    asleep: float | None
    moved: bool | None
    api: str | None
    client: Client | None
    request: Request | None
    wait: Wait
    stopped: float | None = None


@dataclass(frozen=True)
class QemuThread:
    """A thread of a QEMU."""

    tid: int
    name: str
    state: str
    waits_in: str | None


@dataclass(frozen=True)
class Qemu:
    """The QEMU of a domain. tracer: the pid of a debugger. threads: the first is the main loop."""

    pid: int
    tracer: int | None
    threads: tuple[QemuThread, ...]


@dataclass(frozen=True)
class Neighbour:
    """A daemon that this one uses, such as virtlogd.

    socket: where it listens, as this daemon sees it. pid: None where no process of that name does.
    state: its main thread's, the letter of /proc/PID/stat; None with the pid.
    has_socket: whether there is such a socket, which may be that of a service manager.
    """

    name: str
    socket: str
    pid: int | None
    state: str | None
    has_socket: bool


@dataclass(frozen=True)
class Network:
    """An active network whose guests a dnsmasq serves.

    dnsmasq: its pid; None where it does not run. state: its letter of /proc/PID/stat.
    """

    name: str
    dnsmasq: int | None
    state: str | None


@dataclass(frozen=True)
class Crash:
    """What ended the process: the signal and its si_code. The first thread got it.

    address: of a fault; None where the signal is none, or the processor does not tell.
    sender: the pid of the process that sent the signal, as the process counts; None of a fault.
    access: ``reading``, ``writing`` or ``executing``; is_protected: whether the page was there, and
    did not allow that. Both, and no code, from a kernel's log.
    """

    signal: int
    code: int | None
    address: int | None
    sender: int | None = None
    access: str | None = None
    is_protected: bool = False


@dataclass(frozen=True)
class Look:
    """All that one look found.

    pid: None where a core does not say. tracer: the pid of a debugger that holds the daemon.
    objects: how many there are in memory of each type of libvirt; freed ones may be among them.
    sizes: of one object of each type, bytes; without what it points to.
    crash: None of a live process, and of a core that gcore made.
    """

    pid: int | None
    taken: float
    seconds: float
    threads: tuple[SeenThread, ...]
    domains: tuple[Domain, ...]
    monitors: tuple[Monitor, ...]
    servers: tuple[Server, ...]
    qemus: dict[int, Qemu]
    tracer: int | None
    objects: Mapping[str, int]
    notes: Sequence[str]
    crash: Crash | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    neighbours: Sequence[Neighbour] = ()
    networks: Sequence[Network] = ()

    def thread(self, own_tid: int | None) -> SeenThread | None:
        """Return the thread that the process counts so."""
        return next((one for one in self.threads if one.own_tid == own_tid), None)

    def domain(self, address: int | None) -> Domain | None:
        return next((one for one in self.domains if one.address == address), None)
