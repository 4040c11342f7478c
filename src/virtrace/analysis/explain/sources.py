"""The files that libvirt read in a call, and what their text says of a number."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from virtrace.analysis.quoted import Evidence, Quoted
from virtrace.analysis.spans import Call, Point, Span

# The probe; another one begins with this name.
FILE_READ = "file.read"
# The kernel counts for processes in these, and libvirt's numbers are ns.
_TICK_NS = 10_000_000
_PAGE_KIB = 4
# Of /proc/PID/stat behind the name of the program, from 0.
_USER, _SYSTEM, _RSS = 11, 12, 21

_FILE = re.compile(
    r"(?P<process>/proc/[0-9]+/stat)"
    r"|(?P<thread>/proc/[0-9]+/task/[0-9]+/stat)"
    r"|(?P<scheduled>/proc/[0-9]+/task/[0-9]+/schedstat)"
    r"|(?P<cgroup>/.*/(?:cpu\.stat|cpuacct\.usage|cpuacct\.stat))"
)
# The kinds of files: the names of its groups.
PROCESS, THREAD, SCHEDULED, CGROUP = "process", "thread", "scheduled", "cgroup"


class FileRead(NamedTuple):
    """A file that was read. kind: of what. text: None if the trace does not have all of it."""

    path: str
    kind: str
    text: str | None
    seq: int

    @property
    def numbers(self) -> dict[str, int]:
        """What it says, by name: times in ns, memory in KiB. Empty if that is not known."""
        return _numbers(self.kind, self.text) if self.text is not None else {}

    def evidence(self, what: str) -> Evidence:
        return Evidence(f"{what}: read from {self.path}", None, self.seq, ".text")


def files_read(call: Call) -> Iterator[FileRead]:
    """Yield what was read in a call of the kinds that numbers come from, in order of time."""
    for node in call.nodes():
        if not isinstance(node, Point) or not node.event.name.startswith(FILE_READ):
            continue
        path, text = node.event.values.get("path"), node.event.values.get("text")
        kind = _kind(path) if isinstance(path, str) else None
        if kind is not None:
            text = text if isinstance(text, str) else None
            yield FileRead(str(path), kind, text, node.event.seq)


def _kind(path: str) -> str | None:
    found = _FILE.fullmatch(path)
    return found.lastgroup if found else None


def _of_stat(text: str) -> dict[str, int]:
    fields = text.rpartition(")")[2].split()
    user, system = (int(fields[at]) * _TICK_NS for at in (_USER, _SYSTEM))
    rss = int(fields[_RSS]) * _PAGE_KIB
    return {"time": user + system, "user": user, "system": system, "rss": rss}


def _of_schedstat(text: str) -> dict[str, int]:
    ran, waited, _ = map(int, text.split())
    return {"ran": ran, "delay": waited}


def _of_cgroup(text: str) -> dict[str, int]:
    if text.strip().isdigit():
        return {"time": int(text)}
    found = dict(line.split() for line in text.strip().splitlines())
    if "usage_usec" in found:
        names = {"time": "usage_usec", "user": "user_usec", "system": "system_usec"}
        return {name: int(found[other]) * 1000 for name, other in names.items()}
    return {name: int(found[name]) * _TICK_NS for name in ("user", "system")}


_OF_KIND = {
    PROCESS: _of_stat,
    THREAD: _of_stat,
    SCHEDULED: _of_schedstat,
    CGROUP: _of_cgroup,
}


# Several explainers ask for the same of one call.
@functools.lru_cache(maxsize=1024)
def _numbers(kind: str, text: str) -> dict[str, int]:
    try:
        return _OF_KIND[kind](text)
    except (ValueError, LookupError):
        return {}


def returned_by(span: Span, name: str) -> Quoted | None:
    """Return a value that a function returned; None if the trace does not have it."""
    if span.returned is None or span.exit_seq is None:
        return None
    found = Quoted(span.returned, span.name, span.exit_seq).get(name)
    lost = found is None or (isinstance(found.value, dict) and "unavailable" in found.value)
    return None if lost else found


def records_of(call: Call, most: int) -> Iterator[tuple[str, Quoted]]:
    """Yield the statistics of each guest in an answer, by its name. most: of guests."""
    records = None if call.failed else returned_by(call.root, "records")
    names = list(records.value) if records and isinstance(records.value, dict) else []
    for domain in names[:most]:
        record = records.get(domain) if records else None
        if record is not None:
            yield domain, record
