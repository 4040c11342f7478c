"""What the host says of the disks in a trace, asked once it is over and outside of GDB.

Every question is a command with a time limit: a file on storage that hangs would keep whoever
looks at it waiting. A disk's content is nobody's to trust: an image is opened only as the
format that libvirt or QEMU has it as, only read, and only where its header names no other file.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from virtrace.analysis.blockinfo import API, BlockInfo, read
from virtrace.analysis.spans import CallBuilder
from virtrace.cli.owner import Owner, Unavailable, owner_of, seen_from_here
from virtrace.trace.format import Json, Record, unavailable
from virtrace.trace.reader import Recording

_SECONDS_EACH = 10.0
_SECONDS_IN_ALL = 60.0
_SOCKETS = (b"libvirt-sock-ro", b"virtqemud-sock-ro", b"libvirt-sock", b"virtqemud-sock")
_ACCEPTS = 0x10000  # a socket that listens, in the flags of /proc/net/unix
_QCOW2_HEADER = 80
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_DATA_FILE = 1 << 2


class Failed(Unavailable):
    """A program did not end well; the message has what it said, names of the host's included."""


def collect(trace: Recording, pid: int) -> list[Record]:
    """A ``host`` record of each disk that the trace asks about. pid: of the traced daemon."""
    asker = Asker(time.monotonic() + _SECONDS_IN_ALL)
    return [_facts(block, pid, asker) for block in _disks(trace)]


def _disks(trace: Recording) -> Iterator[BlockInfo]:
    """The last call of each disk that libvirt knows."""
    builder = CallBuilder()
    levels = {probe["name"]: probe["level"] for probe in trace.header["probes"]}
    last: dict[tuple[str, str], BlockInfo] = {}
    for event in trace:
        call = builder.feed(event)
        if call is not None and call.root.name == API and not call.failed:
            block = read(call, levels)
            last[block.domain, block.disk] = block
    yield from last.values()


def _facts(block: BlockInfo, pid: int, asker: Asker) -> Record:
    element = fact(lambda: _disk_element(block.domain, block.disk, pid, asker))
    device = block.device
    path, format_ = _source(element)
    path = path or (device.file if device else None)
    format_ = format_ or (device.format if device else None)
    there = None if path is None else seen_from_here(path, pid)
    kind = fact(lambda: stat_of(there, asker))
    return {
        "type": "host",
        "collected": datetime.now(timezone.utc).isoformat(),
        "domain": block.domain,
        "disk": block.disk,
        "path": path,
        "xml": element,
        "stat": kind,
        "file_system": fact(lambda: _file_system(there, kind, asker)),
        "image_info": fact(lambda: image_info(there, kind, format_, asker)),
        "lvm": fact(lambda: _logical_volume(there, kind, asker)),
    }


def fact(ask: Callable[[], Json]) -> Json:
    try:
        return ask()
    except Unavailable as reason:
        return unavailable(str(reason))


class Asker:
    """Runs commands, none longer than _SECONDS_EACH, all of them until the deadline."""

    def __init__(self, deadline: float, owner: Owner | None = None) -> None:
        """deadline: by time.monotonic(). owner: whose rights the commands have; None: ours."""
        self.deadline = deadline
        self._owner = owner

    def run(self, name: str, *arguments: str | bytes) -> bytes:
        """What it printed; Unavailable where it cannot be run, Failed where it did not end well.

        A name of the trace is UTF-8, whatever the locale: it is given as bytes.
        """
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise Unavailable(f"{name} is not installed")
        given = [
            each.encode(errors="surrogatepass") if isinstance(each, str) else each
            for each in arguments
        ]
        if any(b"\0" in each for each in given):
            raise Unavailable(f"{name} cannot be asked for a name with a NUL byte")
        left = min(_SECONDS_EACH, self.deadline - time.monotonic())
        if left <= 0:
            raise Unavailable(f"the {_SECONDS_IN_ALL:.0f} s for all disks were over")
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [program, *given],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # In C alone a name that is not ASCII comes as escapes, which nobody knows again.
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            **(self._owner.credentials if self._owner else {}),
        )
        try:
            printed, said = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            # Not waited for: where the storage hangs, not even SIGKILL ends it.
            process.kill()
            raise Unavailable(f"{name} did not end within {left:.1f} s") from None
        if process.returncode != 0:
            reason = said.decode(errors="replace").strip() or f"ended with {process.returncode}"
            raise Failed(f"{name}: {reason}")
        return printed


# The domain's XML


def _disk_element(domain: str, disk: str, pid: int, asker: Asker) -> str:
    uri, *options = way_to(pid)
    printed = asker.run("virsh", *options, "-c", uri, "dumpxml", "--domain", domain)
    try:
        document = ElementTree.fromstring(printed)
    except ElementTree.ParseError as error:
        raise Unavailable(f"virsh dumpxml: {error}") from error
    for element in document.iterfind("devices/disk"):
        target = element.find("target")
        if disk in (target.get("dev") if target is not None else None, _path_of(element)):
            return ElementTree.tostring(element, encoding="unicode").strip()
    raise Unavailable(f"the domain's XML has no disk {disk}")


def way_to(pid: int) -> list[str]:
    """A URI that reaches this very daemon, and virsh's options for it."""
    try:
        session = owner_of(pid).uid != 0
        own = set()
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            own.add(os.readlink(descriptor.path).removeprefix("socket:[").removesuffix("]"))
        table = Path(f"/proc/{pid}/net/unix").read_bytes()
    except OSError as error:
        raise Unavailable(f"the daemon's sockets cannot be seen: {error.strerror}") from error
    sockets = {}
    for line in table.split(b"\n")[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[6].decode() in own and int(fields[3], 16) & _ACCEPTS:
            sockets[os.path.basename(fields[7])] = fields[7]
    for name in _SOCKETS:
        if name in sockets:
            root = seen_from_here("/", pid).rstrip("/").encode()
            socket = quote(root + sockets[name])
            uri = f"qemu+unix:///{'session' if session else 'system'}?socket={socket}"
            return [uri, "-r"] if name.endswith(b"-ro") else [uri]
    raise Unavailable("the daemon listens on none of libvirt's sockets")


def _source(element: Json) -> tuple[str | None, str | None]:
    """Path and format of the disk, by its XML."""
    if not isinstance(element, str):
        return None, None
    disk = ElementTree.fromstring(element)
    driver = disk.find("driver")
    return _path_of(disk), driver.get("type") if driver is not None else None


def _path_of(disk: ElementTree.Element) -> str | None:
    source = disk.find("source")
    return None if source is None else source.get("file") or source.get("dev")


# The file or device


def stat_of(path: str | None, asker: Asker) -> Record:
    """Type and sizes of the file or device, symbolic links followed."""
    if path is None or not os.path.isabs(path):
        raise Unavailable("the disk is no file or device of this host")
    printed = asker.run("stat", "-L", "--printf=%f %s %b %B %t %T", "--", path)
    mode, size, blocks, block_size, major, minor = printed.decode().split()
    kind = "other"
    length = int(size)
    if stat.S_ISREG(int(mode, 16)):
        kind = "file"
    elif stat.S_ISBLK(int(mode, 16)):
        kind = "block device"
        # The kernel's own number, in its fixed sectors of 512 bytes: the device stays closed.
        sectors = Path(f"/sys/dev/block/{int(major, 16)}:{int(minor, 16)}/size")
        try:
            length = int(sectors.read_text()) * 512
        except (OSError, ValueError) as error:
            raise Unavailable(f"the size of the device cannot be read: {error}") from error
    allocated = int(blocks) * int(block_size)
    return {"type": kind, "size_bytes": length, "allocated_bytes": allocated}


def _file_system(path: str | None, kind: Record, asker: Asker) -> str:
    if path is None or kind.get("type") != "file":
        raise Unavailable("the disk is no file of this host")
    return asker.run("stat", "-f", "-L", "--printf=%T", "--", path).decode()


def image_info(path: str | None, kind: Record, format_: str | None, asker: Asker) -> Record:
    """What qemu-img says of the image. kind: what stat_of said."""
    if path is None or kind.get("type") not in ("file", "block device"):
        raise Unavailable("the disk is no file or device that can be looked at")
    if format_ not in ("raw", "qcow2"):
        # Without it qemu-img would believe the guest, who writes the first bytes of a raw disk.
        raise Unavailable(f"the format is {format_ or 'not known'}; only raw and qcow2 are opened")
    if format_ == "qcow2" and _names_a_data_file(asker.run("head", "-c", f"{_QCOW2_HEADER}", path)):
        raise Unavailable("the image keeps its data in another file, which is not opened")
    printed = asker.run("qemu-img", "info", "-U", "-f", format_, "--output=json", path)
    try:
        info = json.loads(printed)
    except ValueError as error:
        raise Unavailable(f"qemu-img: {error}") from error
    return info if isinstance(info, dict) else unavailable("qemu-img printed no object")


def _names_a_data_file(header: bytes) -> bool:
    features = int.from_bytes(header[72:80], "big")
    version = int.from_bytes(header[4:8], "big")
    return header[:4] == _QCOW2_MAGIC and version >= 3 and bool(features & _QCOW2_DATA_FILE)


def _logical_volume(path: str | None, kind: Record, asker: Asker) -> Record:
    if path is None or kind.get("type") != "block device":
        raise Unavailable("the disk is no block device")
    fields = "lv_full_name,segtype,lv_size,data_percent"
    report = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields)
    try:
        volumes = json.loads(asker.run("lvs", *report, "--", path))["report"][0]["lv"]
        return dict(volumes[0])
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable("lvs knows no logical volume of it") from error
