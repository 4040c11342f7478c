"""What the host says as a call fails: who may open the files, who holds them, what was denied.

A process of its own asks, as soon as a call has failed: what it finds can be gone a second later.
It asks the kernel and reads files; the daemon is not asked, as that would come into the trace.
"""

from __future__ import annotations

import json
import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, cast
from xml.etree import ElementTree

from virtrace import detached
from virtrace.errors import Unavailable
from virtrace.files import open_regular, root_of
from virtrace.host.holders import holders_of, listeners_at
from virtrace.host.own_files import definition, qemu_log
from virtrace.host.paths import file_system_of, steps_to
from virtrace.host.programs import Programs, fact
from virtrace.host.users import opener
from virtrace.trace.format import (
    AddressFacts,
    FailedCall,
    FailureRecord,
    Json,
    PathFacts,
    PathStep,
    Record,
    UnavailableValue,
    unavailable,
)

# Seconds: for one failure, for one file system, and after the recording for those not done yet.
_SECONDS, _SECONDS_EACH, _SECONDS_AFTER = 10.0, 2.0, 15.0
_MOST_FAILURES = 20
_MOST_PATHS, _MOST_LINES, _LONGEST_LINE = 32, 20, 1000
_MOST_ADDRESSES = 4
_QCOW2 = struct.Struct(">4sIQI")
_QCOW2_MAGIC, _QCOW2_LONGEST_NAME, _HEAD = b"QFI\xfb", 1023, 8192
_PATH = re.compile(r"""['"\[](/[^'"\]\n]+)['"\]]""")
_PORT = re.compile(r"\bport=(\d+)|(?:\d+\.\d+\.\d+\.\d+|\]):(\d+)\b")
_DISPLAY = re.compile(r"-vnc \S*?:(\d+)\b")
_SOCKET = re.compile(r"\b(?:path|unix:)=?(/[^,'\"\n]+)")
_FIRST_DISPLAY = 5900
# Words of messages, by what else they ask for.
_BY_ERROR = "named by the error"
_OF_LOCKS, _OF_ADDRESSES, _OF_KVM = (
    ('" lock', "in use", "busy"),
    ("Address already in use",),
    ("kvm",),
)
_OF_MEMINFO = re.compile(r"^(\w+):\s+(\d+)", re.M)
_MEMINFO = ("MemTotal", "MemAvailable", "SwapFree", "CommitLimit", "Committed_AS")
_DENIED = re.compile(
    r'apparmor="DENIED"|\bavc: +denied\b|\btype=(?:1326|SECCOMP)\b'
    r"|\baudit\(\d+\.\d+:\d+\).*\bsig=\d"
)
_OF_GUESTS = re.compile(r"libvirt|qemu|virt", re.I)
_AUDITED = re.compile(r"audit\((\d+\.\d+):\d+\)")
_AUDIT_LOG, _AUDIT_BYTES = "/var/log/audit/audit.log", 256 << 10
_STARTED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+\d{4}): starting up ")
_LEEWAY = 2.0


class FailureWatch:
    """Asks the host about each call that fails, while a recording goes on.

    told: a descriptor to which the recording writes each FailedCall, as a line.
    """

    def __init__(self, pid: int) -> None:
        """pid: of the traced process. Raises: OSError."""
        asked, self.told = os.pipe()
        self._answers, answer = os.pipe()
        try:
            # Whoever writes must not wait: a failure beyond the pipe's room is left out.
            os.set_blocking(self.told, False)
            detached.spawn("virtrace-asks", [asked, answer], lambda: _serve(asked, answer, pid))
        finally:
            os.close(asked)
            os.close(answer)

    def records(self) -> list[FailureRecord]:
        """End it, and return what it has found; those that take too long are left out."""
        os.close(self.told)
        data = b""
        until = time.monotonic() + _SECONDS_AFTER
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._answers], [], [], left)[0]:
                break
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                break
            data += piece
        os.close(self._answers)
        return [json.loads(line) for line in data.split(b"\n")[:-1]]


def _serve(asked: int, answer: int, pid: int) -> None:
    with open(asked, "rb") as lines:
        for number, line in enumerate(lines):
            if number < _MOST_FAILURES:
                data = json.dumps(failure_record(json.loads(line), pid)).encode() + b"\n"
                with suppress(BrokenPipeError):
                    while data:
                        data = data[os.write(answer, data) :]


def failure_record(failed: FailedCall, pid: int) -> FailureRecord:
    """What the host says now about a call that has failed."""
    began = time.time() - failed["seconds"]
    programs = Programs(time.monotonic() + _SECONDS)
    domain, said = failed["domain"], "\n".join(failed["messages"])
    kept = None
    if domain is not None:
        with suppress(Unavailable):
            kept = definition(domain, pid, programs)
    looked = _Looking(pid, programs, said)
    paths = looked.paths(kept)
    names = {path["path"] for path in paths}
    return {
        "type": "failure",
        "collected": datetime.now(timezone.utc).isoformat(),
        "call": failed["call"],
        "name": failed["name"],
        "domain": domain,
        "user": _fact(lambda: opener(failed, kept, pid, programs)),
        "paths": paths,
        "addresses": [*looked.addresses()],
        "log": _fact(lambda: _last_words(domain, pid, began, programs)),
        "kernel": _fact(lambda: _denials(began, names)),
        "memory": _memory(kept),
    }


def _fact(ask: Callable[[], Json]) -> Json:
    """The answer, or why there is none: the daemon, say, may have ended."""
    try:
        return fact(ask)
    except (OSError, ValueError) as error:
        return unavailable(str(error) or type(error).__name__)


class _Wanted(NamedTuple):
    """A path, how it is known, and the format by which libvirt opens it; None: not known."""

    path: str
    why: str
    kind: str | None = None


@dataclass
class _Looking:
    """Looks at what the messages of one failure name."""

    pid: int
    programs: Programs
    said: str

    def paths(self, kept: ElementTree.Element | None) -> list[PathFacts]:
        """What the error names, and the disks of the guest with all that is below them."""
        wanted = [*self._named(), *_disks(kept)]
        found: dict[str, PathFacts] = {}
        while wanted and len(found) < _MOST_PATHS:
            path, why, kind = wanted.pop(0)
            if path not in found:
                found[path] = self._path(path, why)
            elif found[path]["why"] == _BY_ERROR:
                # It says more.
                found[path]["why"] = why
            below = self._backing(found[path]["steps"], kind)
            if below is not None and len(wanted) < _MOST_PATHS:
                wanted.insert(0, _Wanted(below[0], f"backing file of {path}", below[1]))
        return [*found.values()]

    def _named(self) -> Iterator[_Wanted]:
        yield from (_Wanted(path, _BY_ERROR) for path in _PATH.findall(self.said))
        if any(word in self.said.lower() for word in _OF_KVM):
            yield _Wanted("/dev/kvm", "KVM")

    def _path(self, path: str, why: str) -> PathFacts:
        left = min(_SECONDS_EACH, self.programs.deadline - time.monotonic())
        steps: list[PathStep] = [{"path": path, "problem": "there was no time to look at it"}]
        if left > 0:
            with suppress(OSError):
                steps = steps_to(path, self.pid, left)
        last = steps[-1]["path"]
        outside = f"{root_of(self.pid).rstrip('/')}{last}"
        asks = any(word in self.said for word in _OF_LOCKS) and "problem" not in steps[-1]
        return {
            "path": path,
            "why": why,
            "steps": steps,
            "file_system": file_system_of(last, self.pid),
            "holders": fact(lambda: holders_of(outside, self.programs.deadline)) if asks else [],
        }

    def _backing(
        self, steps: Sequence[PathStep], kind: str | None
    ) -> tuple[str, str | None] | None:
        """Path and format of the file below a qcow2 image.

        kind: the format that libvirt uses: what a guest wrote into a raw disk is no header.
        """
        last = steps[-1]
        if kind != "qcow2" or last.get("type") not in ("file", "block device"):
            return None
        file = f"{root_of(self.pid).rstrip('/')}{last['path']}"
        try:
            head = self.programs.run("head", "-c", f"{_HEAD}", "--", file)
        except Unavailable:
            return None
        return backing_in(head, last["path"])

    def addresses(self) -> Iterator[AddressFacts]:
        if not any(word in self.said for word in _OF_ADDRESSES):
            return
        found = [one or other for one, other in _PORT.findall(self.said)]
        found += [str(_FIRST_DISPLAY + int(display)) for display in _DISPLAY.findall(self.said)]
        found += _SOCKET.findall(self.said)
        for address in list(dict.fromkeys(found))[:_MOST_ADDRESSES]:
            try:
                yield listeners_at(address, self.pid, self.programs.deadline)
            except Unavailable as reason:
                yield {
                    "address": address,
                    "holders": cast("UnavailableValue", unavailable(str(reason))),
                }


def _disks(kept: ElementTree.Element | None) -> Iterator[_Wanted]:
    """The images that the definition of a guest names, with their formats."""
    for disk in kept.iterfind("devices/disk") if kept is not None else ():
        source, driver, target = (disk.find(name) for name in ("source", "driver", "target"))
        if source is None:
            continue
        path = source.get("file") or source.get("dev")
        # Libvirt starts a guest without a medium that is optional.
        if path is not None and source.get("startupPolicy", "mandatory") == "mandatory":
            name = "" if target is None else target.get("dev", "")
            yield _Wanted(path, f"disk {name}", None if driver is None else driver.get("type"))


def backing_in(head: bytes, path: str) -> tuple[str, str | None] | None:
    r"""Path and format of the backing file, by the header of a qcow2 image at a path.

    >>> name = b"base.raw"
    >>> backing_in(struct.pack(">4sIQI", b"QFI\xfb", 3, 20, len(name)) + name, "/images/top.qcow2")
    ('/images/base.raw', None)
    """
    if len(head) < _QCOW2.size:
        return None
    magic, _, offset, size = _QCOW2.unpack_from(head)
    if magic != _QCOW2_MAGIC or not 0 < size <= _QCOW2_LONGEST_NAME or offset + size > len(head):
        return None
    name = head[offset : offset + size].decode(errors="surrogateescape")
    name = name.removeprefix("file:")
    if not name.startswith("/"):
        # Another protocol, or described by JSON.
        if ":" in name:
            return None
        name = os.path.join(os.path.dirname(path), name)
    return name, _backing_format(head)


def _backing_format(head: bytes) -> str | None:
    """The format that the header names: the content of the file below is not to be trusted."""
    version = int.from_bytes(head[4:8], "big")
    at = int.from_bytes(head[100:104], "big") if version >= 3 else 72
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == 0xE2792ACA:
            return head[at + 8 : at + 8 + length].decode(errors="replace")
        if kind == 0:
            break
        at += 8 + (length + 7) // 8 * 8
    return None


def _last_words(domain: str | None, pid: int, began: float, programs: Programs) -> str:
    """What QEMU said since it was started in this call."""
    if domain is None:
        raise Unavailable("the name of the guest is not in the trace")
    lines = qemu_log(domain, pid, programs).splitlines()
    at = _STARTED.match(lines[0]) if lines else None
    if at is None:
        raise Unavailable("the log has no start of QEMU")
    if datetime.strptime(at[1], "%Y-%m-%d %H:%M:%S.%f%z").timestamp() < began - _LEEWAY:
        raise Unavailable("QEMU was not started in this call")
    # The command line goes on as long as its lines end with a backslash.
    after = next((n for n, line in enumerate(lines[1:], 1) if not line.endswith("\\")), len(lines))
    words = [
        line[:_LONGEST_LINE] for line in lines[after + 1 :] if "shutting down, reason" not in line
    ]
    return "\n".join(words[-_MOST_LINES:])


def _denials(began: float, names: set[str]) -> list[str]:
    """Records of AppArmor, SELinux and seccomp that are about guests or these files."""
    found = []
    for line in (*_kernel_lines(), *_audit_lines()):
        at = _AUDITED.search(line)
        if at is None or float(at[1]) < began - _LEEWAY or not _DENIED.search(line):
            continue
        if _OF_GUESTS.search(line) or any(name in line for name in names):
            found.append(line[:_LONGEST_LINE])
    return list(dict.fromkeys(found))[-_MOST_LINES:]


def _kernel_lines() -> Iterator[str]:
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"the kernel's log cannot be read: {error.strerror}") from error
    try:
        while True:
            try:
                record = os.read(log, 8192)
            except BrokenPipeError:
                # The oldest one was overwritten meanwhile.
                continue
            yield record.decode(errors="replace").partition(";")[2].partition("\n")[0]
    except OSError:
        # BlockingIOError: all was read.
        return
    finally:
        os.close(log)


def _audit_lines() -> Iterator[str]:
    """Where auditd runs, the kernel's log has none of its records."""
    with suppress(OSError), open_regular(_AUDIT_LOG) as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _AUDIT_BYTES))
        yield from log.read(_AUDIT_BYTES).decode(errors="replace").splitlines()


def _memory(kept: ElementTree.Element | None) -> Record:
    """Of the host, by the names of /proc/meminfo; free hugepages; what the guest asks for."""
    found: Record = {}
    with suppress(OSError):
        table = dict(_OF_MEMINFO.findall(Path("/proc/meminfo").read_text()))
        found.update((name, int(table[name])) for name in _MEMINFO if name in table)
    with suppress(OSError, ValueError):
        for folder in Path("/sys/kernel/mm/hugepages").iterdir():
            size = folder.name.removeprefix("hugepages-").removesuffix("kB")
            free = int((folder / "free_hugepages").read_text())
            found[f"free hugepages of {size} KiB"] = free
    element = None if kept is None else kept.find("memory")
    if (
        element is not None
        and (element.text or "").isdecimal()
        and element.get("unit", "KiB") == "KiB"
    ):
        found["guest"] = int(element.text or "")
    return found
