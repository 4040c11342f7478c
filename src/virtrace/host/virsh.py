"""Ask a daemon through virsh, over the socket that this very daemon listens on."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from virtrace.errors import Unavailable
from virtrace.files import root_of
from virtrace.host.owner import owner_of
from virtrace.host.programs import Programs

_SOCKETS = (b"libvirt-sock-ro", b"virtqemud-sock-ro", b"libvirt-sock", b"virtqemud-sock")
_ACCEPTS = 0x10000  # __SO_ACCEPTCON of linux/net.h: a listening socket, in /proc/net/unix


def virsh(pid: int, programs: Programs, *arguments: str) -> bytes:
    """Output of virsh, connected to a daemon.

    Raises: Unavailable; Failed.
    """
    uri, *options = connection(pid)
    return programs.run("virsh", *options, "-c", uri, *arguments)


def connection(pid: int) -> list[str]:
    """A URI that leads to this daemon and no other, and the options that virsh needs for it.

    Raises: Unavailable.
    """
    try:
        session = owner_of(pid).uid != 0
        own = set()
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            own.add(os.readlink(descriptor.path).removeprefix("socket:[").removesuffix("]"))
        table = Path(f"/proc/{pid}/net/unix").read_bytes()
    except OSError as error:
        raise Unavailable(f"cannot read the daemon's sockets: {error.strerror}") from error
    sockets = {}
    for line in table.split(b"\n")[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[6].decode() in own and int(fields[3], 16) & _ACCEPTS:
            sockets[os.path.basename(fields[7])] = fields[7]
    for name in _SOCKETS:
        if name in sockets:
            socket = quote(root_of(pid).rstrip("/").encode() + sockets[name])
            uri = f"qemu+unix:///{'session' if session else 'system'}?socket={socket}"
            return [uri, "-r"] if name.endswith(b"-ro") else [uri]
    raise Unavailable("the daemon listens on none of libvirt's sockets")
