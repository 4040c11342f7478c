"""What libvirt's maintainers ask for beside a trace, asked on the host of the traced daemon."""

from __future__ import annotations

import os
import pwd
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from virtrace.bundle.collect import HostFacts
from virtrace.cli.host_facts import Asker, Failed, fact, way_to
from virtrace.cli.owner import Unavailable, end_of_file, owner_of
from virtrace.engines.gdb.launch import backtrace
from virtrace.errors import TargetError
from virtrace.image.process import Process, inspect
from virtrace.trace.format import Json, is_unavailable, unavailable
from virtrace.trace.reader import Recording
from virtrace.trace.target import is_of_build

_SECONDS_IN_ALL = 30.0
_LOG_BYTES = 64 << 10
_SETTINGS_BYTES = 1 << 20
_MOST_DOMAINS = 8
_USER_LOGS = (b"libvirt", b"qemu", b"log")
_STARTED = "starting up libvirt version"


def gather(trace: Recording, pid: int | None, *, with_backtrace: bool) -> HostFacts:
    """pid: of the daemon, or of None the one that was traced, if it still runs."""
    chosen = trace.header["target"]["pid"] if pid is None else pid
    private = {"host": _host_names(), "user": _user_names()}
    names = list(_domains(trace))
    try:
        _require_same(trace, chosen)
        owner = owner_of(chosen)
    except Unavailable as reason:
        missing = unavailable(str(reason))
        told = {name: {"xml": missing, "log": missing} for name in names}
        return HostFacts(missing, told, missing, missing if with_backtrace else None, private)
    asker = Asker(time.monotonic() + _SECONDS_IN_ALL, owner)
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
        is_same = is_of_build(trace.header, lambda name: _build_id(process, name))
    except TargetError as error:
        raise Unavailable(
            f"the traced daemon does not run here as pid {pid}, so the host was not asked; "
            "make the bundle there, or name the daemon with -p PID"
        ) from error
    if not is_same:
        raise Unavailable(
            f"pid {pid} is no daemon of the build that was traced, so the host was not asked"
        )


def _build_id(process: Process, name: str) -> str | None:
    module = process.module(name)
    return None if module is None else module.build_id


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
    printed = _virsh(pid, asker, "version")
    found = re.search(r"^Running hypervisor: (.+)$", printed, re.M)
    if found is None:
        raise Unavailable("virsh version names no hypervisor")
    return found[1]


def _xml(domain: str, pid: int, asker: Asker) -> str:
    return _virsh(pid, asker, "dumpxml", "--domain", domain)


def _virsh(pid: int, asker: Asker, command: str, *arguments: str) -> str:
    uri, *options = way_to(pid)
    try:
        printed = asker.run("virsh", *options, "-c", uri, command, *arguments)
    except Failed as error:
        # What it says was made for whoever asks, and not for a bundle.
        raise Unavailable(f"virsh {command} failed") from error
    return printed.decode(errors="replace")


def _log(domain: str, pid: int, asker: Asker) -> str:
    file = domain.encode(errors="surrogatepass") + b".log"
    if b"/" in file or b"\0" in file:
        raise Unavailable("the guest has no log of its name")
    folder, names = b"/var/log/libvirt/qemu", [file]
    if owner_of(pid).uid:
        folder, names = _folder(pid, b"XDG_CACHE_HOME", b".cache"), [*_USER_LOGS, file]
    printed = _file("the log", pid, folder, names, _LOG_BYTES, asker)
    if printed is None:
        raise Unavailable("the log is not there")
    text = printed.decode(errors="replace")
    # From the last start, or else from the first whole line.
    start = text.rfind(_STARTED)
    first = text.rfind("\n", 0, max(start, 0)) + 1
    return text[first:] if start >= 0 else text.partition("\n")[2] or text


def _settings(pid: int, asker: Asker) -> dict[str, str]:
    """What each file holds; nothing of one that is not there, as all is the default."""
    folder, below = b"/etc/libvirt", list[bytes]()
    if owner_of(pid).uid:
        folder, below = _folder(pid, b"XDG_CONFIG_HOME", b".config"), [b"libvirt"]
    found = {}
    for name in (os.path.basename(os.readlink(f"/proc/{pid}/exe")), "qemu"):
        names = [*below, f"{name}.conf".encode()]
        text = _file("the configuration", pid, folder, names, _SETTINGS_BYTES, asker) or b""
        if len(text) == _SETTINGS_BYTES:
            raise Unavailable("the configuration is too large")
        path = b"/".join((folder, *names)).decode(errors="replace")
        found[path] = text.decode(errors="replace")
    return found


def _file(
    what: str, pid: int, folder: bytes, names: Sequence[bytes], most: int, asker: Asker
) -> bytes | None:
    """None where there is none."""
    try:
        return end_of_file(pid, folder, names, most, asker.deadline)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"{what} cannot be read: {error.strerror}") from error


def _folder(pid: int, variable: bytes, below_home: bytes) -> bytes:
    """Of a daemon of a user's own."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        raise Unavailable(f"the daemon's environment cannot be read: {error.strerror}") from error
    environment = {
        name: value for name, _, value in (pair.partition(b"=") for pair in raw.split(b"\0"))
    }
    for folder in (
        environment.get(variable, b""),
        os.path.join(environment.get(b"HOME", b""), below_home),
    ):
        if folder.startswith(b"/"):
            return folder
    raise Unavailable("the daemon's environment has no HOME")


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
