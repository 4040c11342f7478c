"""What the CPU times of a guest count, and where libvirt read them; texts in cpu.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis.explain.model import (
    NOTHING,
    CallCase,
    Catalogue,
    Explainer,
    Fact,
    Nanoseconds,
    Node,
    failed,
    register_messages,
)
from virtrace.analysis.explain.sources import (
    CGROUP,
    FILE_READ,
    PROCESS,
    SCHEDULED,
    THREAD,
    FileRead,
    files_read,
    records_of,
    returned_by,
)
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json

_INFO, _VCPUS, _STATS = "virDomainGetInfo", "virDomainGetVcpus", "virDomainGetCPUStats"
_OF_DOMAINS = frozenset({"virConnectGetAllDomainStats", "virDomainListGetStats"})
_SHUT_OFF = 5
# A stranger's trace can claim any number of them.
_MOST_DOMAINS, _MOST_VCPUS = 1000, 1000
_MEANINGS = {
    "time": "CPU time of the guest",
    "user": "of that in user mode",
    "system": "of that in the kernel",
}


@dataclass(frozen=True)
class Time:
    """One time in an answer. name: what it is called below it; meaning: in words.

    kinds: of the files that libvirt can read it from. key: the name of the number in these.
    source: the file that it was read from; None if the trace does not show it.
    """

    name: str
    meaning: str
    value: Quoted
    kinds: tuple[str, ...]
    key: str
    source: FileRead | None = None


@dataclass(frozen=True)
class CpuCase(CallCase):
    """The CPU times of one guest in one answer. read: files that libvirt read in the call."""

    domain: str
    times: tuple[Time, ...]
    read: tuple[FileRead, ...]

    moves = True

    @property
    def api(self) -> str:
        return self.call.root.name

    def time(self, name: str) -> Time | None:
        return next((each for each in self.times if each.name == name), None)

    @property
    def total(self) -> Time | None:
        return self.time("time")

    @property
    def source(self) -> str | None:
        found = self.total.source if self.total else None
        return found.kind if found else None

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.domain,)

    @property
    def names(self) -> Mapping[str, Json]:
        return {**super().names, "domain": self.domain}

    @property
    def key(self) -> object:
        return self.domain, self.api, self.source, self.error

    @property
    def facts(self) -> Sequence[Fact]:
        return [
            Fact(
                each.name,
                Nanoseconds(each.value.value),
                f"{each.meaning}{f', from {each.source.path}' if each.source else ''}",
                each.value.seq,
                each.value.path,
            )
            for each in self.times
        ]


class _Reader:
    def take(self, node: Node) -> Iterator[CpuCase]:
        if not isinstance(node, Call):
            return
        root = node.root
        domain = str(root.arguments.get("domain"))
        if root.name in _OF_DOMAINS:
            yield from _of_records(node)
        elif root.name in (_INFO, _VCPUS, _STATS) and node.failed:
            yield CpuCase(node, domain, (), ())
        elif root.name == _INFO:
            info = returned_by(root, "info")
            yield _case(node, domain, _named(info, {"time": "cpuTime"}, (PROCESS,)))
        elif root.name == _VCPUS:
            vcpus = returned_by(root, "vcpus")
            yield _case(node, domain, _of_vcpus(vcpus) if vcpus else [])
        elif root.name == _STATS:
            params = returned_by(root, "params")
            # The caller asks first for the number of times; and for each of the host's CPUs.
            names = {"time": "cpu_time", "user": "user_time", "system": "system_time"}
            if params is not None and root.arguments.get("start_cpu") == -1:
                yield _case(node, domain, _named(params, names, (CGROUP, PROCESS)))

    def finish(self, end_ns: int) -> Sequence[CpuCase]:
        return ()


def _case(call: Call, domain: str, times: list[Time]) -> CpuCase:
    read = tuple(files_read(call))
    return CpuCase(call, domain, tuple(_with_sources(times, list(read))), read)


def _named(values: Quoted | None, names: Mapping[str, str], kinds: tuple[str, ...]) -> list[Time]:
    found = {name: values.number(other) for name, other in names.items()} if values else {}
    return [
        Time(name, _MEANINGS[name], value, kinds, name)
        for name, value in found.items()
        if value is not None
    ]


def _of_vcpus(vcpus: Quoted) -> list[Time]:
    found = []
    for vcpu in vcpus.items():
        number, time = vcpu.number("number"), vcpu.number("cpuTime")
        if number is not None and time is not None:
            name = f"vCPU {number.value}"
            found.append(Time(name, "CPU time of its thread", time, (THREAD,), "time"))
    return found


def _of_records(call: Call) -> Iterator[CpuCase]:
    read = tuple(files_read(call))
    left, vcpus = list(read), _MOST_VCPUS
    for domain, record in records_of(call, _MOST_DOMAINS):
        names = {name: f"cpu.{name}" for name in _MEANINGS}
        times = _named(record, names, (CGROUP, PROCESS))
        most = record.number("vcpu.maximum")
        for number in range(min(most.value if most else 0, vcpus)):
            vcpus -= 1
            for name, what, kind, key in (
                ("time", "CPU time of its thread", THREAD, "time"),
                ("delay", "its thread was ready and had no CPU", SCHEDULED, "delay"),
            ):
                value = record.number(f"vcpu.{number}.{name}")
                if value is not None:
                    below = "" if name == "time" else f" {name}"
                    times.append(Time(f"vCPU {number}{below}", what, value, (kind,), key))
        if times or record.number("vcpu.current"):
            yield CpuCase(call, domain, tuple(_with_sources(times, left)), read)


def _with_sources(times: list[Time], left: list[FileRead]) -> Iterator[Time]:
    """Give each time the next file that says it.

    left: what was read, in the order in which the numbers were asked for. What is used leaves it,
    as the files of the next guest follow.
    """
    for time in times:
        at = next((at for at, file in enumerate(left) if _says(file, time)), None)
        if at is None:
            yield time
            continue
        yield Time(time.name, time.meaning, time.value, time.kinds, time.key, left[at])
        # One file can say several of them.
        del left[:at]


def _says(file: FileRead, time: Time) -> bool:
    return file.kind in time.kinds and file.numbers.get(time.key) == time.value.value


_CAUSES: Catalogue[CpuCase] = Catalogue(Path(__file__).with_name("cpu.yaml"))
EXPLAINER = Explainer(
    "cpu",
    _CAUSES,
    # Without this, nothing is known of a time but its value.
    lambda traced: _Reader() if FILE_READ in traced.seen else NOTHING,
)
# What the message has, by cause.
_MESSAGES = {
    "no-cgroup": ("CPUACCT controller is not mounted",),
    "no-per-cpu": ("operation 'getCpuacctPercpuUsage' not supported",),
}
register_messages(_CAUSES, _MESSAGES)


_CAUSES.condition("error")(failed)


@_CAUSES.condition("contradiction")
def _contradiction(case: CpuCase) -> list[Evidence] | None:
    evidence = []
    for time in case.times:
        said_ = [each for each in case.read if each.kind in time.kinds and time.key in each.numbers]
        unread = any(not each.numbers for each in case.read)
        if time.source is None and said_ and not unread and case.call.complete:
            evidence.append(state(time.value, f"{time.name} is in no file that was read"))
            evidence += [each.evidence(f"{each.numbers[time.key]} ns") for each in said_]
    return evidence or None


@_CAUSES.condition("shut-off")
def _shut_off(case: CpuCase) -> list[Evidence] | None:
    info = None if case.call.failed else returned_by(case.call.root, "info")
    found = info.number("state") if info else None
    if found is None or found.value != _SHUT_OFF:
        return None
    return [state(found, "the guest's state")]


def _sources(case: CpuCase) -> list[Evidence]:
    return [each.source.evidence(each.name) for each in case.times if each.source is not None]


@_CAUSES.condition("of-cgroup")
def _of_cgroup(case: CpuCase) -> list[Evidence] | None:
    return _sources(case) if case.source == CGROUP else None


@_CAUSES.condition("of-process")
def _of_process(case: CpuCase) -> list[Evidence] | None:
    if case.source == PROCESS:
        return _sources(case)
    # Some versions read it where no probe sees it.
    unseen = case.api == _INFO and case.total is not None and case.total.source is None
    if not unseen or _shut_off(case) is not None or case.total is None:
        return None
    return [state(case.total.value, "CPU time in ns; the trace does not show that it was read")]


@_CAUSES.condition("of-vcpus")
def _vcpus(case: CpuCase) -> list[Evidence] | None:
    if case.api != _VCPUS or not case.times:
        return None
    return _sources(case)


@_CAUSES.condition("no-total")
def _no_total(case: CpuCase) -> list[Evidence] | None:
    if case.api not in _OF_DOMAINS or case.total is not None:
        return None
    vcpus = any(each.name.startswith("vCPU") for each in case.times)
    return _sources(case) if vcpus else None


@_CAUSES.condition("parts")
def _parts(case: CpuCase) -> list[Evidence] | None:
    found = [each for name in _MEANINGS if (each := case.time(name)) is not None]
    if len(found) < len(_MEANINGS):
        return None
    total, *parts = found
    if total.value.value == sum(each.value.value for each in parts):
        return None
    return [state(each.value, f"{each.name} in ns") for each in found]


@_CAUSES.condition("unknown")
def _unknown(case: CpuCase) -> list[Evidence]:
    return [each.evidence("a file") for each in case.read]
