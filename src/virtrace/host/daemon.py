"""Facts of a traced daemon that libvirt's maintainers ask for beside a trace."""

from __future__ import annotations

import os
import platform
import pwd
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial

from virtrace.errors import TargetError, Unavailable
from virtrace.host.facts import HostFacts
from virtrace.host.own_files import qemu_log, settings
from virtrace.host.owner import owner_of
from virtrace.host.programs import Failed, Programs, fact
from virtrace.host.virsh import virsh
from virtrace.image.process import Process, began, inspect
from virtrace.trace.format import Json, Record, is_unavailable, unavailable
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.target import is_of_build

_SECONDS_IN_ALL = 30.0
_MOST_DOMAINS = 8


def gather(
    trace: ReadableTrace,
    pid: int | None,
    backtrace: Callable[[int], str] | None = None,
    snapshot: Callable[[int], Record] | None = None,
) -> HostFacts:
    """Facts of a daemon and of the guests in a trace of it.

    pid: of the daemon; None: the one that was traced, if it still runs.
    backtrace: makes the text of a backtrace of all threads, or raises TargetError.
    snapshot: makes the document of a snapshot, or raises TargetError.
    """
    chosen = trace.header["target"]["pid"] if pid is None else pid
    private = _private()
    names = list(_domains(trace))
    try:
        _require_same(trace, chosen)
        owner = owner_of(chosen)
    except Unavailable as reason:
        missing = unavailable(str(reason))
        no_domains = {name: {"xml": missing, "log": missing} for name in names}
        return HostFacts(
            missing,
            no_domains,
            missing,
            missing if backtrace else None,
            missing if snapshot else None,
            private,
        )
    # First: all that follows asks the daemon, and would be found waiting by it.
    taken = fact(partial(_of_process, chosen, snapshot)) if snapshot else None
    programs = Programs(time.monotonic() + _SECONDS_IN_ALL, owner)
    domains = {
        name: {
            "xml": fact(partial(_xml, name, chosen, programs)),
            "log": fact(partial(qemu_log, name, chosen, programs)),
        }
        for name in names
    }
    return HostFacts(
        fact(partial(_qemu, chosen, programs)),
        domains,
        fact(partial(settings, chosen, programs)),
        fact(partial(_of_process, chosen, backtrace)) if backtrace else None,
        taken,
        private,
    )


def gather_beside(snapshot: Record, pid: int | None) -> HostFacts:
    """Facts of a daemon of which a snapshot was taken, from files alone: it may not answer.

    snapshot: the document. pid: of the daemon; None: the one in the snapshot, if it still runs.
    """
    private = _private()
    names = [domain["name"] for domain in snapshot["domains"]][:_MOST_DOMAINS]
    not_asked = unavailable("a daemon that may hang was not asked")
    try:
        chosen = _require_of_snapshot(snapshot, pid)
        owner = owner_of(chosen)
    except Unavailable as reason:
        missing = unavailable(str(reason))
        no_logs = {name: {"log": missing} for name in names}
        return HostFacts(not_asked, no_logs, missing, None, snapshot, private)
    programs = Programs(time.monotonic() + _SECONDS_IN_ALL, owner)
    return HostFacts(
        not_asked,
        {name: {"log": fact(partial(qemu_log, name, chosen, programs))} for name in names},
        fact(partial(settings, chosen, programs)),
        None,
        snapshot,
        private,
    )


def _require_of_snapshot(snapshot: Record, pid: int | None) -> int:
    """Return the pid; raise Unavailable unless the process can be that of the snapshot."""
    daemon = snapshot["daemon"]
    if pid is None and (snapshot["source"] != "process" or daemon["pid"] is None):
        raise Unavailable(
            f"the snapshot is of a {snapshot['source']}; name the daemon with -p PID, "
            "if it runs again on this host"
        )
    chosen: int = daemon["pid"] if pid is None else pid
    try:
        is_same = inspect(chosen).exe == daemon["exe"]
        # Whoever names another pid can mean one that was started anew.
        if pid is None:
            taken = datetime.fromisoformat(snapshot["taken"]).timestamp()
            is_same = (
                is_same
                and snapshot["host"]["kernel"] == platform.release()
                and began(chosen) <= taken
            )
    except (TargetError, ValueError) as error:
        raise Unavailable(
            f"the daemon of the snapshot does not run here as pid {chosen}; "
            "make the bundle there, or name the daemon with -p PID"
        ) from error
    if not is_same:
        raise Unavailable(f"pid {chosen} is not the daemon of the snapshot")
    return chosen


def _require_same(trace: ReadableTrace, pid: int) -> None:
    """Raise Unavailable unless the process is a daemon of the build that was traced."""
    try:
        process = inspect(pid)
        is_same = is_of_build(trace.header, lambda name: _build_id(process, name))
    except TargetError as error:
        raise Unavailable(
            f"the traced daemon does not run here as pid {pid}, so the host was not asked; "
            "make the bundle there, or name the daemon with -p PID"
        ) from error
    if not is_same:
        raise Unavailable(
            f"pid {pid} is not a daemon of the build that was traced, so the host was not asked"
        )


def _build_id(process: Process, name: str) -> str | None:
    module = process.module(name)
    return None if module is None else module.build_id


def _domains(trace: ReadableTrace) -> Iterator[str]:
    """Names of the first guests in a trace, in its order."""
    found: dict[str, None] = {}
    for event in trace:
        if len(found) >= _MOST_DOMAINS:
            break
        name, records = event.values.get("domain"), event.values.get("records")
        if isinstance(name, str) and name:
            found[name] = None
        if isinstance(records, dict) and not is_unavailable(records):
            found.update(dict.fromkeys(records))
    yield from list(found)[:_MOST_DOMAINS]


def _qemu(pid: int, programs: Programs) -> str:
    output = _virsh(pid, programs, "version")
    found = re.search(r"^Running hypervisor: (.+)$", output, re.M)
    if found is None:
        raise Unavailable("virsh version names no hypervisor")
    return found[1]


def _xml(domain: str, pid: int, programs: Programs) -> str:
    return _virsh(pid, programs, "dumpxml", "--domain", domain)


def _virsh(pid: int, programs: Programs, command: str, *arguments: str) -> str:
    try:
        output = virsh(pid, programs, command, *arguments)
    except Failed as error:
        # Its message may contain names of the host.
        raise Unavailable(f"virsh {command} failed") from error
    return output.decode(errors="replace")


def _of_process(pid: int, make: Callable[[int], Json]) -> Json:
    try:
        return make(pid)
    except TargetError as error:
        raise Unavailable(error.what) from error


def _private() -> dict[str, list[str]]:
    """Names of this host, by kind."""
    return {"host": _host_names(), "user": _user_names()}


def _host_names() -> list[str]:
    name = socket.gethostname()
    return list(dict.fromkeys(each for each in (name, name.partition(".")[0]) if each))


def _user_names() -> list[str]:
    """Names of the user who makes the bundle; system users have the same name everywhere."""
    names = [os.environ.get("SUDO_USER", ""), os.environ.get("USER", "")]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    return list(dict.fromkeys(name for name in names if name))
