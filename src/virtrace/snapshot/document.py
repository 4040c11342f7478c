"""From a look to the document of a snapshot."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from virtrace import __version__
from virtrace.image.core import CoreImage
from virtrace.image.model import Program as Image
from virtrace.snapshot.format import (
    FORMAT,
    VERSION,
    CommandRecord,
    DomainRecord,
    JobRecord,
    JobsOrUnavailable,
    KeepaliveOrUnavailable,
    MonitorRecord,
    NeighbourRecord,
    NetworkRecord,
    QemuRecord,
    RequestRecord,
    ServerRecord,
    Snapshot,
    ThreadRecord,
    VerdictRecord,
)
from virtrace.snapshot.logs import stored_crash
from virtrace.snapshot.model import (
    Command,
    Domain,
    Job,
    Keepalive,
    Look,
    Monitor,
    Neighbour,
    Network,
    Qemu,
    Request,
    SeenThread,
    Server,
)
from virtrace.snapshot.modules_here import ModulesHere
from virtrace.snapshot.stacks import look_at_text
from virtrace.snapshot.take import take_from_core
from virtrace.snapshot.verdicts import Verdict, doing, verdicts
from virtrace.targets import target_of
from virtrace.trace.format import Program


def snapshot_of_core(
    core: Path, root: Path, progress: Callable[[str], None] | None = None
) -> Snapshot:
    """Return the snapshot of a core. root, progress: as of ``CoreImage``. Raises: TargetError."""
    image = CoreImage(core, root, progress)
    look = take_from_core(image, core.stat().st_mtime)
    return snapshot_of(look, image.program, "core")


def snapshot_of_text(text: str, name: str, modules: ModulesHere | None = None) -> Snapshot:
    """Return the snapshot of stacks and logs in a text.

    name: of the file. modules: by which a place is named; None: by none. Raises: TraceError.
    """
    look = look_at_text(text, name, time.time(), modules)
    crash = stored_crash(text)
    exe = "" if crash is None else crash.exe
    return _document(look, exe, {"name": "libvirt", "version": None}, "text")


def snapshot_of(look: Look, program: Image, source: str) -> Snapshot:
    """Return the document of a look. source: ``process`` or ``core``."""
    record = target_of(program).to_record(program)
    return _document(look, program.exe, record, source)


def _document(look: Look, exe: str, program: Program, source: str) -> Snapshot:
    taken = datetime.fromtimestamp(look.taken, timezone.utc).isoformat()
    found = verdicts(look, os.path.basename(exe))
    return {
        "type": "snapshot",
        "format": FORMAT,
        "version": VERSION,
        "source": source,
        "taken": taken,
        "seconds": round(look.seconds, 3),
        "tool": {"virtrace": __version__, "python": platform.python_version()},
        "host": {"machine": platform.machine(), "kernel": platform.release()},
        "daemon": {
            "pid": look.pid,
            "exe": exe,
            "program": program,
        },
        "crash": None
        if look.crash is None
        else {
            "signal": look.crash.signal,
            "code": look.crash.code,
            "address": None if look.crash.address is None else f"{look.crash.address:#x}",
            "sender": look.crash.sender,
            "access": look.crash.access,
        },
        "verdicts": [_verdict(verdict) for verdict in found],
        "threads": [_thread(look, thread) for thread in look.threads],
        "domains": [_domain(domain) for domain in look.domains],
        "monitors": [_monitor(look, monitor) for monitor in look.monitors],
        "servers": [_server(server) for server in look.servers],
        "qemus": [_qemu(qemu) for qemu in look.qemus.values()],
        "neighbours": [_neighbour(look, neighbour) for neighbour in look.neighbours],
        "networks": [_network(network) for network in look.networks],
        "objects": dict(look.objects),
        "object_bytes": {name: number * look.sizes[name] for name, number in look.objects.items()},
        "notes": [*look.notes],
    }


def _verdict(verdict: Verdict) -> VerdictRecord:
    return {
        "verdict": verdict.name,
        "says": verdict.says,
        "means": verdict.means,
        "do": [{"command": command, "effect": effect} for command, effect in verdict.do],
        "thread": verdict.thread,
        "behind": [*verdict.behind],
    }


def _thread(look: Look, thread: SeenThread) -> ThreadRecord:
    client, request, wait = thread.client, thread.request, thread.wait
    domain = look.domain(wait.domain)
    return {
        "tid": thread.tid,
        "own_tid": thread.own_tid,
        "name": thread.name,
        "role": thread.role,
        "state": thread.state,
        "moved": thread.moved,
        "asleep_s": thread.asleep,
        "stopped_ms": None if thread.stopped is None else round(thread.stopped * 1000, 3),
        "api": thread.api,
        "client": None
        if client is None
        else {"pid": client.pid, "user": client.user, "command": client.command},
        "request": _request(request),
        "doing": doing(look, thread),
        "wait": {
            "kind": wait.kind,
            "what": wait.what,
            "owner": wait.owner,
            "domain": None if domain is None else domain.name,
            "since": wait.since,
            "until": wait.until,
            "command": _command(wait.command),
            "late": wait.is_late,
            "system_call": wait.system_call,
            "file": wait.file,
            "descriptor": wait.descriptor,
            "function": wait.function,
            "children": [
                {"pid": child.pid, "command": child.command, "state": child.state}
                for child in wait.children
            ],
            "mount": None
            if wait.mount is None
            else {"point": wait.mount[0], "type": wait.mount[1]},
            "fifo": wait.is_fifo,
        },
        "frames": [frame.text for frame in thread.frames],
        "frames_end": thread.ended,
    }


def _request(request: Request | None) -> RequestRecord | None:
    if request is None:
        return None
    return {
        "program": request.program,
        "procedure": request.procedure,
        "serial": request.serial,
        "subject": request.subject,
        "name": request.name,
        "arguments": dict(request.arguments),
    }


def _command(command: Command | None) -> CommandRecord | None:
    if command is None:
        return None
    return {"text": command.text, "name": command.name, "id": command.id, "sent": command.is_sent}


def _job(job: Job) -> JobRecord:
    return {
        "kind": job.kind,
        "work": job.work,
        "owner": job.owner,
        "api": job.api,
        "since": job.since,
    }


def _domain(domain: Domain) -> DomainRecord:
    jobs: JobsOrUnavailable = (
        {"unavailable": "where this version of libvirt keeps its jobs was not found"}
        if domain.jobs is None
        else [_job(job) for job in domain.jobs]
    )
    return {
        "name": domain.name,
        "uuid": domain.uuid,
        "id": domain.id,
        "qemu": domain.qemu,
        "jobs": jobs,
    }


def _monitor(look: Look, monitor: Monitor) -> MonitorRecord:
    domain = look.domain(monitor.domain)
    return {
        "kind": monitor.kind,
        "domain": None if domain is None else domain.name,
        "command": _command(monitor.command),
    }


def _server(server: Server) -> ServerRecord:
    pool = server.pool
    return {
        "name": server.name,
        "clients": len(server.clients),
        "connections": [
            {
                "pid": one.pid,
                "requests": one.requests,
                "most_requests": one.most_requests,
                "full": one.is_full,
                "keepalive": _keepalive(one.keepalive),
            }
            for one in server.connections
        ],
        "most_clients": server.most_clients,
        "unauthenticated": server.unauthenticated,
        "most_unauthenticated": server.most_unauthenticated,
        "pool": None
        if pool is None
        else {
            "most": pool.most,
            "workers": pool.workers,
            "free": pool.free,
            "queued": [
                {"request": _request(one.request), "priority": one.is_priority}
                for one in pool.queued
            ],
        },
    }


def _keepalive(keepalive: Keepalive | None) -> KeepaliveOrUnavailable:
    if keepalive is None:
        return {"unavailable": "no keepalive that runs for this connection was found"}
    return {
        "interval_s": keepalive.interval,
        "most": keepalive.most,
        "unanswered": keepalive.unanswered,
        "heard": keepalive.heard,
        "closes": keepalive.closes,
    }


def _neighbour(look: Look, neighbour: Neighbour) -> NeighbourRecord:
    waiting = [
        thread.tid
        for thread in look.threads
        if thread.wait.kind == "peer"
        and any(child.pid == neighbour.pid for child in thread.wait.children)
    ]
    return {
        "name": neighbour.name,
        "socket": neighbour.socket,
        "pid": neighbour.pid,
        "state": neighbour.state,
        "has_socket": neighbour.has_socket,
        "waiting": waiting,
    }


def _network(network: Network) -> NetworkRecord:
    return {"name": network.name, "dnsmasq": network.dnsmasq, "state": network.state}


def _qemu(qemu: Qemu) -> QemuRecord:
    return {
        "pid": qemu.pid,
        "tracer": qemu.tracer,
        "threads": [
            {"tid": one.tid, "name": one.name, "state": one.state, "waits_in": one.waits_in}
            for one in qemu.threads
        ],
    }
