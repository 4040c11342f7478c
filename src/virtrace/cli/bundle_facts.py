"""What libvirt's maintainers ask for beside a trace, asked on the host of the traced daemon."""

from __future__ import annotations

import os
import pwd
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from virtrace.binary.process import inspect
from virtrace.bundle.collect import HostFacts
from virtrace.cli.gdb import backtrace
from virtrace.cli.host_facts import Asker, Unavailable, fact, seen_from_here, way_to
from virtrace.errors import TargetError
from virtrace.trace.format import Json, is_unavailable, unavailable
from virtrace.trace.reader import Recording

_SECONDS_IN_ALL = 30.0
_LOG_BYTES = 64 << 10
_MOST_DOMAINS = 8
_STARTED = "starting up libvirt version"


def gather(trace: Recording, pid: int | None, *, with_backtrace: bool) -> HostFacts:
    """pid: of the daemon, or of None the one that was traced, if it still runs."""
    chosen = trace.header["target"]["pid"] if pid is None else pid
    private = {"host": _host_names(), "user": _user_names()}
    names = list(_domains(trace))
    try:
        _require_same(trace, chosen)
    except Unavailable as reason:
        missing = unavailable(str(reason))
        told = {name: {"xml": missing, "log": missing} for name in names}
        return HostFacts(missing, told, missing, missing if with_backtrace else None, private)
    asker = Asker(time.monotonic() + _SECONDS_IN_ALL)
    domains = {
        name: {
            "xml": fact(lambda name=name: _xml(name, chosen, asker)),  # type: ignore[misc]
            "log": fact(lambda name=name: _log(name, chosen, asker)),  # type: ignore[misc]
        }
        for name in names
    }
    return HostFacts(
        fact(lambda: _qemu(chosen, asker)),
        domains,
        fact(lambda: _settings(chosen, asker)),
        fact(lambda: _backtrace(chosen)) if with_backtrace else None,
        private,
    )


def _require_same(trace: Recording, pid: int) -> None:
    """Unavailable where this is no daemon of the build that was traced."""
    try:
        process = inspect(pid)
    except TargetError as error:
        raise Unavailable(
            f"the traced daemon does not run here as pid {pid}, so the host was not asked; "
            "make the bundle there, or name the daemon with -p PID"
        ) from error
    for traced in trace.header["target"]["modules"]:
        found = process.module(os.path.basename(traced["path"]))
        if traced["build_id"] and (found is None or found.build_id != traced["build_id"]):
            raise Unavailable(
                f"pid {pid} is no daemon of the build that was traced, so the host was not asked"
            )


def _domains(trace: Recording) -> Iterator[str]:
    """In the order in which the trace names them."""
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


def _qemu(pid: int, asker: Asker) -> str:
    uri, *options = way_to(pid)
    printed = asker.run("virsh", *options, "-c", uri, "version").decode(errors="replace")
    found = re.search(r"^Running hypervisor: (.+)$", printed, re.M)
    if found is None:
        raise Unavailable("virsh version names no hypervisor")
    return found[1]


def _xml(domain: str, pid: int, asker: Asker) -> str:
    uri, *options = way_to(pid)
    printed = asker.run("virsh", *options, "-c", uri, "dumpxml", "--domain", domain)
    return printed.decode(errors="replace")


def _log(domain: str, pid: int, asker: Asker) -> str:
    if "/" in domain:
        raise Unavailable("the guest has no log of its name")
    system, user = Path("/var/log/libvirt/qemu"), "libvirt/qemu/log"
    folder = system if _is_system(pid) else _folder(pid, "XDG_CACHE_HOME", ".cache") / user
    file = seen_from_here(str(folder / f"{domain}.log"), pid)
    printed = asker.run("tail", "-c", str(_LOG_BYTES), "--", file).decode(errors="replace")
    # From the last start, or else from the first whole line.
    start = printed.rfind(_STARTED)
    first = printed.rfind("\n", 0, max(start, 0)) + 1
    return printed[first:] if start >= 0 else printed.partition("\n")[2] or printed


def _settings(pid: int, asker: Asker) -> dict[str, list[str]]:
    """By file, what is set; what is not stands there behind a `#`, as the default."""
    folder = Path("/etc/libvirt")
    if not _is_system(pid):
        folder = _folder(pid, "XDG_CONFIG_HOME", ".config") / "libvirt"
    found = {}
    for name in (f"{os.path.basename(os.readlink(f'/proc/{pid}/exe'))}.conf", "qemu.conf"):
        file = folder / name
        try:
            text = asker.run("cat", "--", seen_from_here(str(file), pid)).decode(errors="replace")
        except Unavailable as reason:
            if "No such file" not in str(reason):
                raise
            text = ""
        found[str(file)] = list(_set_lines(text))
    return found


def _set_lines(text: str) -> Iterator[str]:
    """``key = value``; a list that goes over lines in one."""
    open_list = ""
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        open_list = f"{open_list} {line}".strip()
        if open_list.count("[") <= open_list.count("]"):
            yield open_list
            open_list = ""


def _is_system(pid: int) -> bool:
    return os.stat(f"/proc/{pid}").st_uid == 0


def _folder(pid: int, variable: str, below_home: str) -> Path:
    """Of a daemon of a user's own."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise Unavailable(f"the daemon's environment cannot be read: {error.strerror}") from error
    pairs = (pair.partition("=") for pair in os.fsdecode(raw).split("\0"))
    environment = {name: value for name, _, value in pairs}
    if environment.get(variable):
        return Path(environment[variable])
    if environment.get("HOME"):
        return Path(environment["HOME"]) / below_home
    raise Unavailable(f"the daemon's environment has neither {variable} nor HOME")


def _backtrace(pid: int) -> Json:
    try:
        return backtrace(pid)
    except TargetError as error:
        raise Unavailable(error.what) from error


def _host_names() -> list[str]:
    name = socket.gethostname()
    return list(dict.fromkeys(each for each in (name, name.partition(".")[0]) if each))


def _user_names() -> list[str]:
    """Whoever makes the bundle; those of the system are everywhere the same."""
    names = [os.environ.get("SUDO_USER", ""), os.environ.get("USER", "")]
    with suppress(KeyError):
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    return list(dict.fromkeys(name for name in names if name))
