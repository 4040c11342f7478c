"""What a daemon of libvirt keeps in files: settings, definitions, logs; read as its user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from xml.etree import ElementTree

from virtrace import markup
from virtrace.errors import Unavailable
from virtrace.files import read_inside, root_of
from virtrace.host.owner import owner_of
from virtrace.host.programs import Programs
from virtrace.image.process import text_of_process

_LOG_BYTES = 64 << 10
_SETTINGS_BYTES = 1 << 20
_ENVIRONMENT_BYTES = 1 << 20
_USER_LOGS = (b"libvirt", b"qemu", b"log")
_STARTED = "starting up libvirt version"


def qemu_log(domain: str, pid: int, programs: Programs) -> str:
    """The end of the log of a guest's QEMU, from its last start on. Raises: Unavailable."""
    file = _name_of(domain, ".log")
    folder, names = b"/var/log/libvirt/qemu", [file]
    if owner_of(pid).uid:
        folder, names = _folder(pid, b"XDG_CACHE_HOME", b".cache"), [*_USER_LOGS, file]
    data = _file("the log", pid, folder, names, _LOG_BYTES, programs)
    if data is None:
        raise Unavailable("there is no log")
    text = data.decode(errors="replace")
    # From the last start of QEMU, or else from the first whole line.
    start = text.rfind(_STARTED)
    first = text.rfind("\n", 0, max(start, 0)) + 1
    return text[first:] if start >= 0 else text.partition("\n")[2] or text


def definition(domain: str, pid: int, programs: Programs) -> ElementTree.Element:
    """The definition of a guest as the daemon keeps it, without asking it. Raises: Unavailable."""
    folder, names = b"/etc/libvirt", [b"qemu", _name_of(domain, ".xml")]
    if owner_of(pid).uid:
        folder, names = _folder(pid, b"XDG_CONFIG_HOME", b".config"), [b"libvirt", *names]
    data = _file("the definition", pid, folder, names, _SETTINGS_BYTES, programs)
    if data is None:
        raise Unavailable("the guest has no definition that is kept")
    try:
        return markup.parse_xml(data)
    except ValueError as error:
        raise Unavailable(f"the definition: {error}") from error


def _name_of(domain: str, ending: str) -> bytes:
    file = f"{domain}{ending}".encode(errors="surrogatepass")
    if b"/" in file or b"\0" in file:
        raise Unavailable("the guest's name cannot be the name of a file")
    return file


def settings(pid: int, programs: Programs) -> dict[str, str]:
    """Text of each configuration file, by path; empty if it does not exist: all is the default."""
    folder, below = b"/etc/libvirt", list[bytes]()
    if owner_of(pid).uid:
        folder, below = _folder(pid, b"XDG_CONFIG_HOME", b".config"), [b"libvirt"]
    found = {}
    for name in (os.path.basename(os.readlink(f"/proc/{pid}/exe")), "qemu"):
        names = [*below, f"{name}.conf".encode()]
        text = _file("the configuration", pid, folder, names, _SETTINGS_BYTES, programs) or b""
        if len(text) == _SETTINGS_BYTES:
            raise Unavailable("the configuration is too large")
        path = b"/".join((folder, *names)).decode(errors="replace")
        found[path] = text.decode(errors="replace")
    return found


def _file(
    what: str, pid: int, folder: bytes, names: Sequence[bytes], limit: int, programs: Programs
) -> bytes | None:
    """The last `limit` bytes of a file, read as the daemon's user; None if it does not exist."""
    try:
        return read_inside(
            root_of(pid),
            folder,
            names,
            limit,
            owner=owner_of(pid),
            deadline=programs.deadline,
            only_end=True,
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"cannot read {what}: {error.strerror}") from error


def _folder(pid: int, variable: bytes, below_home: bytes) -> bytes:
    """The folder that a daemon of a user's session uses.

    variable: names it; below_home: the default.
    """
    raw = text_of_process(pid, "environ", _ENVIRONMENT_BYTES).encode(errors="surrogateescape")
    environment = {
        name: value for name, _, value in (pair.partition(b"=") for pair in raw.split(b"\0"))
    }
    for folder in (
        environment.get(variable, b""),
        os.path.join(environment.get(b"HOME", b""), below_home),
    ):
        if folder.startswith(b"/"):
            return folder
    raise Unavailable("the daemon's environment cannot be read, or has no HOME")
