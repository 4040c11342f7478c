"""Facts of the disks in a trace, collected once the recording has ended.

Every question is a program with a time limit: a file on storage that hangs would block its reader.
A guest writes the content of its disk: an image is opened only in the format that libvirt or QEMU
uses for it, only for reading, and only if its header names no other file.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from virtrace import markup
from virtrace.analysis.blockinfo import BlockInfo, read_block_info, seen_by
from virtrace.analysis.spans import CallBuilder
from virtrace.errors import Unavailable
from virtrace.files import root_of
from virtrace.host.programs import Programs, fact
from virtrace.host.virsh import virsh
from virtrace.trace.format import HostRecord, Json, Record, unavailable
from virtrace.trace.reader import ReadableTrace
from virtrace.trace.roles import DISK_SIZES

_SECONDS_IN_ALL = 60.0
_QCOW2_HEADER = 80
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_DATA_FILE = 1 << 2


def collect(trace: ReadableTrace, pid: int) -> list[HostRecord]:
    """A ``host`` record for each disk that the trace is about.

    pid: of the traced daemon.
    """
    programs = Programs(time.monotonic() + _SECONDS_IN_ALL)
    return [_facts(block, pid, programs) for block in _disks(trace)]


def _disks(trace: ReadableTrace) -> Iterator[BlockInfo]:
    """The last successful call for each disk."""
    builder = CallBuilder()
    seen = seen_by(trace.header["probes"])
    last: dict[tuple[str, str], BlockInfo] = {}
    for event in trace:
        call = builder.feed(event)
        if call is not None and call.root.role == DISK_SIZES and not call.failed:
            block = read_block_info(call, seen)
            last[block.domain, block.disk] = block
    yield from last.values()


def _facts(block: BlockInfo, pid: int, programs: Programs) -> HostRecord:
    element = fact(lambda: _disk_element(block.domain, block.disk, pid, programs))
    device = block.device
    path, format_ = _source(element)
    path = path or (device.file if device else None)
    format_ = format_ or (device.format if device else None)
    there = None if path is None else f"{root_of(pid).rstrip('/')}{path}"
    kind = fact(lambda: stat_of(there, programs))
    return {
        "type": "host",
        "collected": datetime.now(timezone.utc).isoformat(),
        "domain": block.domain,
        "disk": block.disk,
        "path": path,
        "xml": element,
        "stat": kind,
        "file_system": fact(lambda: _file_system(there, kind, programs)),
        "image_info": fact(lambda: image_info(there, kind, format_, programs)),
        "lvm": fact(lambda: _logical_volume(there, kind, programs)),
    }


# The domain's XML


def _disk_element(domain: str, disk: str, pid: int, programs: Programs) -> str:
    printed = virsh(pid, programs, "dumpxml", "--domain", domain)
    try:
        document = markup.parse_xml(printed)
    except ValueError as error:
        raise Unavailable(f"virsh dumpxml: {error}") from error
    for element in document.iterfind("devices/disk"):
        target = element.find("target")
        if disk in (target.get("dev") if target is not None else None, _path_of(element)):
            return ElementTree.tostring(element, encoding="unicode").strip()
    raise Unavailable(f"the domain's XML has no disk {disk}")


def _source(element: Json) -> tuple[str | None, str | None]:
    """Path and format of the disk, from its XML element."""
    if not isinstance(element, str):
        return None, None
    disk = markup.parse_xml(element)
    driver = disk.find("driver")
    return _path_of(disk), driver.get("type") if driver is not None else None


def _path_of(disk: ElementTree.Element) -> str | None:
    source = disk.find("source")
    return None if source is None else source.get("file") or source.get("dev")


# The file or device


def stat_of(path: str | None, programs: Programs) -> Record:
    """Type and sizes of a file or device; symbolic links are followed.

    Raises: Unavailable.
    """
    if path is None or not os.path.isabs(path):
        raise Unavailable("the disk is not a file or device of this host")
    printed = programs.run("stat", "-L", "--printf=%f %s %b %B %t %T", "--", path)
    mode, size, blocks, block_size, major, minor = printed.decode().split()
    kind = "other"
    length = int(size)
    if stat.S_ISREG(int(mode, 16)):
        kind = "file"
    elif stat.S_ISBLK(int(mode, 16)):
        kind = "block device"
        # In the kernel's fixed sectors of 512 bytes; this does not open the device.
        device = f"{int(major, 16)}:{int(minor, 16)}"
        try:
            length = int(Path(f"/sys/dev/block/{device}/size").read_text()) * 512
        except (OSError, ValueError) as error:
            raise Unavailable(f"the size of the device cannot be read: {error}") from error
    allocated = int(blocks) * int(block_size)
    return {"type": kind, "size_bytes": length, "allocated_bytes": allocated}


def _file_system(path: str | None, kind: Record, programs: Programs) -> str:
    if path is None or kind.get("type") != "file":
        raise Unavailable("the disk is not a file of this host")
    return programs.run("stat", "-f", "-L", "--printf=%T", "--", path).decode()


def image_info(path: str | None, kind: Record, format_: str | None, programs: Programs) -> Record:
    """The output of ``qemu-img info``.

    kind: from stat_of().
    Raises: Unavailable.
    """
    if path is None or kind.get("type") not in ("file", "block device"):
        raise Unavailable("the disk is not a file or device that can be opened")
    if format_ not in ("raw", "qcow2"):
        # Otherwise qemu-img would trust the guest, which writes the first bytes of a raw disk.
        raise Unavailable(f"the format is {format_ or 'not known'}; only raw and qcow2 are opened")
    if format_ == "qcow2" and _names_a_data_file(
        programs.run("head", "-c", f"{_QCOW2_HEADER}", path)
    ):
        raise Unavailable("the image has its data in another file, which is not opened")
    printed = programs.run("qemu-img", "info", "-U", "-f", format_, "--output=json", path)
    try:
        info = json.loads(printed)
    except ValueError as error:
        raise Unavailable(f"qemu-img: {error}") from error
    return info if isinstance(info, dict) else unavailable("qemu-img did not print a JSON object")


def _names_a_data_file(header: bytes) -> bool:
    features = int.from_bytes(header[72:80], "big")
    version = int.from_bytes(header[4:8], "big")
    return header[:4] == _QCOW2_MAGIC and version >= 3 and bool(features & _QCOW2_DATA_FILE)


def _logical_volume(path: str | None, kind: Record, programs: Programs) -> Record:
    if path is None or kind.get("type") != "block device":
        raise Unavailable("the disk is not a block device")
    fields = "lv_full_name,segtype,lv_size,data_percent"
    report = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields)
    try:
        volumes = json.loads(programs.run("lvs", *report, "--", path))["report"][0]["lv"]
        return dict(volumes[0])
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable("lvs knows no logical volume at this path") from error
