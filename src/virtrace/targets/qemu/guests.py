"""Which QEMU a guest of a daemon is, and what libvirt noted of its disks.

libvirt keeps two files of each running guest in a folder of its own: the pid, as the daemon counts,
and its state as XML. That the process is this daemon's QEMU of this guest is proven by their common
socket, the monitor, and by its command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from virtrace.errors import TargetError
from virtrace.files import root_of, text_inside
from virtrace.image.pids import Pids
from virtrace.image.process import text_of_process
from virtrace.image.sockets import peer_of
from virtrace.markup import parse_xml
from virtrace.trace.format import Json

_LARGEST_PID, _LARGEST_STATE = 1 << 6, 1 << 22
_LARGEST_COMMAND = 1 << 20
_SOCKET = re.compile(r"socket:\[\d+\]")
_NODE = re.compile(r'"node-name":\s*"([^"]+)"|\bnode-name=([^,\0]+)')
# What the tags above a node's name say of it.
_ROLES = {"mirror": "copy", "backingStore": "backing file"}


@dataclass(frozen=True)
class Guest:
    """A running guest. daemon: its pid here. folder: where libvirt notes its state."""

    name: str
    daemon: int
    folder: str


def qemu_of(daemon: int, name: str) -> tuple[int, Guest]:
    """The pid of the QEMU of a daemon's guest, and the guest.

    Raises: TargetError if the daemon has no such guest that runs, or it is not proven.
    """
    folder, text = _noted_pid(daemon, name)
    if not text.isdecimal():
        raise TargetError(
            f"process {daemon} runs no guest {name}",
            "`virsh list` shows the guests that run; `-p PID` names another daemon",
        )
    own = int(text)
    pid = Pids(daemon).here(own)
    if pid is None or not _is_named(pid, name) or not _talk(daemon, pid):
        raise TargetError(
            f"it is not certain which process is the QEMU of {name}: libvirt notes process {own}, "
            "which has no monitor of this daemon or another guest's name",
            "name the process: -p PID",
        )
    return pid, Guest(name, daemon, folder)


def disks_of(guest: Guest) -> Mapping[str, Mapping[str, Json]]:
    """By node: the disk as the guest's definition names it, and what the node is to it."""
    text = text_inside(
        Path(root_of(guest.daemon)), f"{guest.folder}/{guest.name}.xml", _LARGEST_STATE
    )
    found: dict[str, Mapping[str, Json]] = {}
    with suppress(ValueError):
        for disk in parse_xml(text).iter("disk"):
            target = disk.find("target")
            dev, bus = (None, None) if target is None else (target.get("dev"), target.get("bus"))
            if dev is not None:
                for node, layer, role in _nodes(disk, "disk"):
                    known: dict[str, Json] = {"domain": guest.name, "disk": dev, "is": role}
                    known |= {"layer": layer, "bus": bus}
                    found[node] = known
    return found


def node_names(pid: int) -> set[str]:
    """The names of nodes in the command line of a QEMU."""
    line = text_of_process(pid, "cmdline", _LARGEST_COMMAND)
    return {json_name or name for json_name, name in _NODE.findall(line)}


def _nodes(element: Element, role: str) -> Iterator[tuple[str, str | None, str]]:
    """Each node: its name, what libvirt calls its layer, and what it is to the disk."""
    for child in element:
        name = child.get("name")
        if child.tag == "nodename" and name is not None:
            yield name, child.get("type"), role
        yield from _nodes(child, _ROLES.get(child.tag, role))


def _noted_pid(daemon: int, name: str) -> tuple[str, str]:
    """The folder, and the content of the file with the pid; empty where there is none."""
    # A name with a slash would lead elsewhere; libvirt has none.
    if "/" in name or "\0" in name:
        return "", ""
    variables = text_of_process(daemon, "environ", _LARGEST_COMMAND).split("\0")
    given = dict(one.split("=", 1) for one in variables if "=" in one)
    folders = ["/run/libvirt/qemu", "/var/run/libvirt/qemu"]
    if "XDG_RUNTIME_DIR" in given:
        folders.append(f"{given['XDG_RUNTIME_DIR']}/libvirt/qemu/run")
    for folder in folders:
        text = text_inside(Path(root_of(daemon)), f"{folder}/{name}.pid", _LARGEST_PID).strip()
        if text:
            return folder, text
    return "", ""


def _is_named(pid: int, name: str) -> bool:
    """Whether libvirt started it for a guest of this name."""
    words = text_of_process(pid, "cmdline", _LARGEST_COMMAND).split("\0")
    # A comma in a value is written twice.
    wanted = f"guest={name.replace(',', ',,')}"
    return any(word == wanted or word.startswith(f"{wanted},") for word in words)


def _talk(daemon: int, pid: int) -> bool:
    """Whether two processes have the ends of one Unix socket."""
    own = set(_sockets(daemon))
    return any(peer_of(file, pid) in own for file in _sockets(pid))


def _sockets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                file = os.readlink(f"/proc/{pid}/fd/{name}")
                if _SOCKET.fullmatch(file):
                    yield file
