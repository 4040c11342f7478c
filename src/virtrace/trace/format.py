"""Records of the trace file, format version 2; docs/trace-format.md describes them.

One JSON object per line: a header, events, a footer. The readers' checks and schema.json follow
from the types here (trace/schema.py). Python 3.9 evaluates them, hence no `X | None` in them, and
no `from __future__ import annotations`: the text of each type would be compiled at every start.
"""

import base64
import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union

FORMAT = "virtrace-trace"
VERSION = 2

# A JSON value.
Json = Any
Record = dict[str, Any]

# Why the return of a function was not seen: the reason in a `lost` event.
ENDED = "the trace ended before its return"
SWITCHED_OFF = "a probe was switched off before its return"
ROTATED = "the file was full before its return: the recording continues in the next one"

# Levels of nested objects and arrays in a line. Code that walks over them takes up to three calls
# per level, and Python has room for a thousand.
MAX_DEPTH = 250

# The pair behind a type is a keyword of JSON Schema and its value.
Count = Annotated[int, ("minimum", 0)]
Positive = Annotated[int, ("minimum", 1)]
Address = Annotated[str, ("pattern", "^0x[0-9a-f]+$")]
BuildId = Annotated[str, ("pattern", "^[0-9a-f]+$")]
Blank = Annotated[str, ("pattern", "^[ \t\r\n]+$")]
Time = Annotated[str, ("format", "date-time")]
Level = Annotated[str, ("enum", ("dwarf", "pack", "symbol", "inferred", "usdt", "missing"))]
Reason = Annotated[str, ("enum", ("done", "limit", "interrupt", "target-exit", "error", "rotated"))]
TextOrNull = Optional[str]
Number = Union[int, float]
NumberOrNull = Optional[Number]
CountOrNull = Optional[Count]
PositiveOrNull = Optional[Positive]
AddressOrNull = Optional[Address]
BuildIdOrNull = Optional[BuildId]


class UnavailableValue(TypedDict):
    """A value that is not known, and the reason."""

    unavailable: Annotated[str, ("minLength", 1)]


TextOrUnavailable = Union[str, UnavailableValue]


class Clock(TypedDict):
    """The clock that `t_ns` counts on.

    source: its name, such as CLOCK_MONOTONIC.
    start_ns: its reading where `t_ns` is 0, ns.
    """

    source: str
    start_ns: Count


class Engine(TypedDict):
    """The engine that recorded the trace. version: null if not known."""

    name: str
    version: TextOrNull


class Tool(TypedDict):
    """The virtrace that recorded the trace. python: version of the interpreter it ran in."""

    virtrace: str
    engine: Engine
    python: str


class Program(TypedDict):
    """The traced program, such as libvirt. version: null if not known."""

    name: str
    version: TextOrNull


class _LoadedModule(TypedDict):
    path: str
    build_id: BuildIdOrNull
    base: Address


class LoadedModule(_LoadedModule, total=False):
    """A loaded file that the recipe names.

    remedy: how to get the debug info that it lacks.
    """

    remedy: TextOrNull


class Target(TypedDict):
    """The traced process. pid: 0 if only its files were resolved, and nothing was traced."""

    pid: Count
    exe: str
    program: Program
    modules: list[LoadedModule]


class QemuTarget(Target):
    """The QEMU of a guest that was traced together with a daemon. probes: the names of its own."""

    probes: list[str]


class _Machine(TypedDict):
    machine: str
    kernel: str
    system: TextOrNull


class Machine(_Machine, total=False):
    """The host.

    warnings: what made the trace dangerous for the daemon.
    """

    warnings: list[str]


class Selection(TypedDict):
    """What of the recipe was recorded.

    where: required values at the entry of a call. calls, seconds: when the recording had to end.
    """

    where: dict[str, str]
    calls: PositiveOrNull
    seconds: NumberOrNull


class Limits(TypedDict, total=False):
    """What the trace was allowed to cost; an engine that never stops threads has no first two.

    max_stop_ms: ms that one call may be held.
    max_load: percent of each second that the daemon may stand.
    max_events, max_bytes: of the recording.
    """

    max_stop_ms: Number
    max_load: Number
    max_events: int
    max_bytes: int


class Part(TypedDict):
    """Place of this file in a recording of several files.

    number: from 1. open: the calls that began in an earlier file.
    """

    number: Positive
    open: list[Count]


class _ProbeRecord(TypedDict):
    name: str
    kind: str
    role: TextOrNull
    module: TextOrNull
    offset: AddressOrNull
    level: Level
    why: TextOrNull


class ProbeRecord(_ProbeRecord, total=False):
    """What a probe of the recipe resolved to; `role` as in trace/roles.py.

    taken: the alternative that was found. lacks: values that cannot be read at this level.
    """

    taken: TextOrNull
    lacks: list[str]


class _HeaderInEveryVersion(TypedDict):
    type: Literal["header"]
    format: str
    version: int
    started: Time
    clock: Clock
    host: Machine
    recipe: Record


class HeaderInEveryVersion(_HeaderInEveryVersion, total=False):
    """What no version of the format changed. redacted: kinds of names that were kept.

    qemu: the QEMU of a guest, where it was traced together with the daemon.
    """

    selection: Selection
    limits: Limits
    command: TextOrNull
    part: Part
    qemu: QemuTarget
    redacted: list[str]


class Header(HeaderInEveryVersion):
    """The first record of a trace."""

    tool: Tool
    target: Target
    probes: list[ProbeRecord]


class _EventRecord(TypedDict):
    type: Annotated[str, ("enum", ("enter", "exit", "point", "line", "lost"))]
    seq: Count
    t_ns: Count
    tid: Count
    name: str
    span: CountOrNull
    parent: CountOrNull
    call: CountOrNull
    values: Record


class EventRecord(_EventRecord, total=False):
    """The record of an `Event`; `span` is null of points and lines alone.

    json: the text of a point, if it is a JSON object in one line: the last member of the line,
        which has the text as it is (trace/json_text.py). `values` has it otherwise.
    json_end: what ends this text behind the object; absent if nothing does.
    """

    answers: Count
    json_end: Blank
    json: Record


class FileStatus(TypedDict):
    """Type and size of a disk's file or device; links are followed."""

    type: Annotated[str, ("enum", ("file", "block device", "other"))]
    size_bytes: Count
    allocated_bytes: Count


FileStatusOrUnavailable = Union[FileStatus, UnavailableValue]


class HostRecord(TypedDict):
    """What the host said about a disk, after the last event."""

    type: Literal["host"]
    collected: Time
    domain: str
    disk: str
    path: TextOrNull
    xml: TextOrUnavailable
    stat: FileStatusOrUnavailable
    file_system: TextOrUnavailable
    image_info: Record
    lvm: Record


class AclEntry(TypedDict):
    """Rights of a user or group beyond the mode, or the mask of all such rights.

    id: of it; None: the owning group, or the mask.
    """

    kind: Annotated[str, ("enum", ("user", "group", "mask"))]
    id: CountOrNull
    rights: str


class _PathStep(TypedDict):
    path: str


class PathStep(_PathStep, total=False):
    """A folder, link or file on the way to a file, or why there is nothing more.

    mode: permission bits, octal. acl: empty if there is none. target: of a link.
    problem: why it could not be looked at.
    """

    type: Annotated[
        str, ("enum", ("folder", "file", "link", "block device", "character device", "other"))
    ]
    uid: Count
    gid: Count
    mode: Annotated[str, ("pattern", "^[0-7]{4}$")]
    acl: list[AclEntry]
    label: str
    target: str
    problem: str


class Holder(TypedDict):
    """A process that has a file open, or listens. domain: if it is the QEMU of one.

    locks: kinds of its locks on the file, as /proc/PID/fdinfo names them.
    """

    pid: Count
    command: str
    domain: TextOrNull
    locks: list[str]


HoldersOrUnavailable = Union[list[Holder], UnavailableValue]


class PathFacts(TypedDict):
    """A file that the call is about. why: how it is known.

    file_system: type of what is mounted there.
    holders: the processes that have it open; empty if nobody asked, as no error is about that.
    """

    path: str
    why: str
    steps: list[PathStep]
    file_system: TextOrNull
    holders: HoldersOrUnavailable


class UserFacts(TypedDict):
    """The user that opens the files.

    known_by: how it is known which. overrides: whether it may pass owner and mode.
    is_given: whether libvirt makes this user the owner of disks as long as the guest runs.
    """

    uid: Count
    gid: Count
    groups: list[Count]
    name: TextOrNull
    known_by: str
    overrides: bool
    is_given: bool


class AddressFacts(TypedDict):
    """A port or socket that the error is about, and who listens there."""

    address: str
    holders: HoldersOrUnavailable


class FailedCall(TypedDict):
    """A call that has failed, for whoever asks the host about it; not in a trace.

    seconds: since it began. messages: of its errors, in order.
    """

    call: CountOrNull
    name: str
    domain: TextOrNull
    seconds: float
    messages: list[str]


UserOrUnavailable = Union[UserFacts, UnavailableValue]
LinesOrUnavailable = Union[list[str], UnavailableValue]


class FailureRecord(TypedDict):
    """What the host said as a call failed.

    call: of its events. log: the end of QEMU's log, from this start on.
    kernel: what the kernel denied meanwhile. memory: KiB, by the names of /proc/meminfo.
    """

    type: Literal["failure"]
    collected: Time
    call: CountOrNull
    name: str
    domain: TextOrNull
    user: UserOrUnavailable
    paths: list[PathFacts]
    addresses: list[AddressFacts]
    log: TextOrUnavailable
    kernel: LinesOrUnavailable
    memory: Record


class SwitchedOff(TypedDict):
    """A probe that exceeded its budget; it has no events after t_ns."""

    type: Literal["switched-off"]
    t_ns: Count
    name: str
    kind: Annotated[str, ("enum", ("line", "point", "span"))]
    why: str


class _StoppedNs(TypedDict):
    total: Count
    max: Count


class StoppedNs(_StoppedNs, total=False):
    """How long threads of the process were stopped, ns.

    gdb: processor time that GDB spent between the stops, ns.
    """

    gdb: Count


class _Footer(TypedDict):
    type: Literal["footer"]
    reason: Reason
    events: Count
    dropped: Count
    hits: dict[str, Count]
    detached: bool
    stopped_ns: StoppedNs


class Footer(_Footer, total=False):
    """The last record of a trace that was not cut short.

    t_ns: when it ended, on the clock of the events, ns; older files lack it.
    """

    t_ns: Count


class Event(NamedTuple):
    """One event.

    type: enter, exit, point, line or lost.
    seq: its index among the events of the file.
    t_ns: time since the trace started, ns.
    tid: the kernel's thread id.
    name: the probe.
    span: the span that begins or ends; None for a point or a line.
    parent: the span that it happened in.
    call: the outermost span that it happened in; None outside of traced calls.
    values: what was captured, by the names that the recipe gives.
    answers: `seq` of the request that this event answers, if it is in the same file.
    role: of the probe, from the header (trace/roles.py). Not in the record.
    has_json: whether `values` holds `json`, parsed from the text. Not in the record.
    """

    type: str
    seq: int
    t_ns: int
    tid: int
    name: str
    span: Optional[int]
    parent: Optional[int]
    call: Optional[int]
    values: Record
    answers: Optional[int] = None
    role: Optional[str] = None
    has_json: bool = False

    def to_record(self) -> Record:
        """Return the record of the event, with each text in `values`."""
        record = dict(zip(_KEYS, self))
        if self.answers is not None:
            record["answers"] = self.answers
        values = self.values
        if self.has_json:
            values = {name: value for name, value in values.items() if name != "json"}
        record["values"] = values
        return record

    @classmethod
    def from_record(cls, record: Record, roles: Mapping[str, Optional[str]]) -> "Event":
        """Make the event of a record. Unknown keys are ignored.

        roles: of the probes, by their names.
        Raises: KeyError if a key is missing, TypeError if the name is no name.
        """
        parts = _PARTS(record)
        # As _make() does, in less time: this is called for every event of long traces.
        return _new_tuple(cls, (*parts, record.get("answers"), roles.get(parts[_NAME]), False))

    def with_json(self, values: Record, answers: Optional[int]) -> "Event":
        """Return the event with other values, which hold `json`, and another `answers`."""
        # As _replace() does, in a quarter of the time.
        return _new_tuple(Event, (*self[:_VALUES], values, answers, self.role, True))


_KEYS = ("type", "seq", "t_ns", "tid", "name", "span", "parent", "call")
_PARTS = itemgetter(*_KEYS, "values")
_NAME = _KEYS.index("name")
_VALUES = len(_KEYS)
_new_tuple = tuple.__new__
# As of pointer() and text_value().
_POINTER = re.compile("0x[0-9a-f]+")
_TEXT_KEYS = ({"unavailable"}, {"text", "length"}, {"bytes"}, {"bytes", "length"})


def as_argument(value: Json) -> str:
    """Return a value as a command-line argument has it, including bytes that are not UTF-8."""
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return base64.b64decode(value["bytes"]).decode("utf-8", "surrogateescape")
    return str(value)


def pointer(address: int) -> str:
    return f"{address:#x}"


def is_pointer(text: str) -> bool:
    return _POINTER.fullmatch(text) is not None


def is_text(value: Json) -> bool:
    """Whether a value is a C string, complete, cut or unavailable; not a pointer."""
    if isinstance(value, str):
        return not is_pointer(value)
    return isinstance(value, dict) and set(value) in _TEXT_KEYS


def unavailable(reason: str) -> Record:
    return {"unavailable": reason}


def is_unavailable(value: Json) -> bool:
    return isinstance(value, dict) and set(value) == {"unavailable"}


def is_deeper(value: Json, most: int) -> bool:
    """Return whether objects and arrays are nested in more than `most` levels."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return bool(level)


def text_value(raw: bytes, length: Optional[int] = None) -> Json:
    """Return the value of a C string: text, or base64 if it is not UTF-8.

    raw: its bytes, without the NUL.
    length: of the whole string in bytes, if `raw` is only its beginning. A cut never splits a
    character.
    """
    if length is None:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return {"bytes": base64.b64encode(raw).decode("ascii")}
    for cut in range(4):
        try:
            return {"text": raw[: len(raw) - cut].decode("utf-8"), "length": length}
        except UnicodeDecodeError:
            continue
    return {"bytes": base64.b64encode(raw).decode("ascii"), "length": length}
