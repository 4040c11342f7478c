"""What the numbers of a host are; texts in hosts.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from virtrace.analysis.explain.model import (
    Bytes,
    CallCase,
    Catalogue,
    EachCall,
    Explainer,
    Fact,
    Nanoseconds,
    failed,
)
from virtrace.analysis.explain.sources import returned_by
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json

_INFO, _MEMORY, _CPU = "virNodeGetInfo", "virNodeGetMemoryStats", "virNodeGetCPUStats"
_SUBJECTS = {_INFO: "host", _MEMORY: "host's memory", _CPU: "host's CPU times"}
_KIB = 1024
_ALL = -1
# Of virNodeGetInfo: what each number is.
_MEANINGS = {
    "cpus": "CPUs that are online",
    "mhz": "MHz of the first CPU now",
    "nodes": "NUMA nodes",
    "sockets": "of each node",
    "cores": "of each socket",
    "threads": "of each core",
}


@dataclass(frozen=True)
class HostCase(CallCase):
    """One answer about the host. values: what it returned, by name; empty if it failed."""

    values: Mapping[str, Quoted]

    moves = True

    @property
    def api(self) -> str:
        return self.call.root.name

    @property
    def subject(self) -> tuple[str, ...]:
        part = self.part
        return (_SUBJECTS[self.api], *([] if part is None else [part]))

    @property
    def part(self) -> str | None:
        """The NUMA node or CPU that the answer is about, if not all of them."""
        for name, what in (("cell", "node"), ("cpu", "CPU")):
            number = self.call.root.arguments.get(name)
            if type(number) is int and number != _ALL:
                return f"{what} {number}"
        return None

    @property
    def names(self) -> Mapping[str, Json]:
        return {**super().names, "part": self.part or "the host"}

    @property
    def key(self) -> object:
        # What does not change while the host runs.
        fixed = [value.value for name, value in self.values.items() if name in _MEANINGS]
        return self.subject, self.error, *(fixed if self.api == _INFO else [])

    @property
    def numbers(self) -> Mapping[str, int | None]:
        found: dict[str, int | None] = {name: each.value for name, each in self.values.items()}
        for name in ("memory", "free"):
            kib = found.get(name)
            found[name] = None if kib is None else Bytes(kib * _KIB)
        return {"product": self.product, "cpus": None, "memory": None, "free": None, **found}

    @property
    def product(self) -> int | None:
        """CPUs by the topology."""
        product = 1
        for name in ("nodes", "sockets", "cores", "threads"):
            if name not in self.values:
                return None
            product *= self.values[name].value
        return product

    @property
    def facts(self) -> Sequence[Fact]:
        return [
            Fact(name, self._typed(name, each.value), _MEANINGS.get(name, ""), each.seq, each.path)
            for name, each in self.values.items()
        ]

    def _typed(self, name: str, value: int) -> int:
        if self.api == _CPU:
            return Nanoseconds(value)
        in_kib = self.api == _MEMORY or name == "memory"
        return Bytes(value * _KIB) if in_kib else value


def _case(call: Call) -> HostCase | None:
    if call.root.name not in _SUBJECTS:
        return None
    if call.failed:
        return HostCase(call, {})
    values: dict[str, Quoted] = {}
    info, stats = returned_by(call.root, "info"), returned_by(call.root, "stats")
    for name in ("memory", *_MEANINGS):
        value = info.number(name) if info else None
        if value is not None:
            values[name] = value
    for each in stats.items() if stats else ():
        field, value = each.text("field"), each.number("value")
        if field is not None and value is not None:
            values[field] = value
    # A caller asks first for the number of values.
    return HostCase(call, values) if values else None


_CAUSES: Catalogue[HostCase] = Catalogue(Path(__file__).with_name("hosts.yaml"))
EXPLAINER = Explainer("hosts", _CAUSES, lambda _: EachCall(_case))


_CAUSES.condition("error")(failed)


@_CAUSES.condition("uneven")
def _uneven(case: HostCase) -> list[Evidence] | None:
    if case.product is None or case.product == case.values["cpus"].value:
        return None
    return [state(each, name) for name, each in case.values.items() if name in _MEANINGS]


def _of(api: str, name: str, source: str, case: HostCase) -> list[Evidence] | None:
    if case.api != api or name not in case.values:
        return None
    return [state(case.values[name], f"{name}, from {source}")]


_CAUSES.condition("host")(partial(_of, _INFO, "cpus", "/sys/devices/system/cpu/online"))
_CAUSES.condition("memory")(partial(_of, _MEMORY, "free", "/proc/meminfo or that of the node"))
_CAUSES.condition("cpu-times")(partial(_of, _CPU, "user", "/proc/stat"))


@_CAUSES.condition("unknown")
def _unknown(_: HostCase) -> list[Evidence]:
    return []
