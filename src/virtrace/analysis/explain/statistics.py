"""What the numbers of a guest's disks in its statistics are; texts in statistics.yaml.

`virsh domstats` reports other numbers than `virsh domblkinfo` of the same disk: Allocation is
always the end of the farthest write, also of a qcow2 file, or 0; Physical is the space used, or the
size of the file or device if QEMU reports a space used of 0. Measured on libvirt 9.0.0 and 12.8.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from virtrace.analysis.devices import Device, Qmp
from virtrace.analysis.explain import model
from virtrace.analysis.explain.model import Bytes, Catalogue, Explainer, Fact, Node
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, Quoted, quote
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json

_OF_DOMAINS = frozenset({"virConnectGetAllDomainStats", "virDomainListGetStats"})
_OF_DISK = "virDomainBlockStatsFlags"
_NUMBERS = ("capacity", "allocation", "physical")
# A stranger's trace can claim any number of disks.
_MOST_DISKS = 1000


@dataclass(frozen=True)
class DiskStatistics(model.Case):
    """A disk in a guest's statistics.

    answer: of the guest, as it was returned. place: before the names of its values.
    asked: whether QEMU was asked anything in the call.
    candidates: QEMU's devices that can be the disk.
    """

    domain: str
    disk: str
    answer: Quoted
    place: str
    asked: bool
    candidates: tuple[Device, ...]

    @cached_property
    def _quoted(self) -> dict[str, Quoted | None]:
        return {name: self.answer.number(f"{self.place}{name}") for name in _NUMBERS}

    def quoted(self, name: str) -> Quoted | None:
        return self._quoted[name]

    def number(self, name: str) -> int | None:
        found = self.quoted(name)
        return found.value if found else None

    @cached_property
    def device(self) -> Device | None:
        """The disk, or any candidate if QEMU reported the same of all; None if it is not known."""
        same = {(each.protocol, each.sizes()) for each in self.candidates}
        return self.candidates[0] if len(same) == 1 else None

    @cached_property
    def usage(self) -> int | None:
        """The space used, as QEMU reported it."""
        found = self.device.actual_size if self.device else None
        return found.value if found else None

    @cached_property
    def mark(self) -> int | None:
        """The end of the farthest write, as QEMU reported it."""
        found = self.device.highest_offset if self.device else None
        return found.value if found else None

    @property
    def subject(self) -> tuple[str, ...]:
        return self.domain, self.disk

    @property
    def names(self) -> Mapping[str, Json]:
        path = self.answer.text(f"{self.place}path")
        return {"domain": self.domain, "disk": self.disk, "file": path}

    @cached_property
    def numbers(self) -> Mapping[str, int | None]:
        found = {name: self.number(name) for name in _NUMBERS}
        found |= {"usage": self.usage}
        return {name: None if value is None else Bytes(value) for name, value in found.items()}

    @property
    def facts(self) -> Sequence[Fact]:
        return [
            Fact(name, Bytes(found.value), self._meaning(name), found.seq, found.path)
            for name in _NUMBERS
            if (found := self.quoted(name)) is not None
        ]

    def _meaning(self, name: str) -> str:
        if self.device is None:
            return ""
        if name == "capacity":
            return "the size that the guest sees"
        if name == "allocation":
            if self.mark is None:
                return "QEMU reported no end of the farthest write"
            return "end of the farthest write since QEMU opened the image"
        return "space used on the host" if self.usage else "size of the file or device"

    def values(self) -> Iterator[Evidence]:
        """Quote what QEMU reported."""
        device = self.device
        if device is None:
            return
        for found, text in (
            (device.capacity, "size that the guest sees"),
            (device.actual_size, "space used on the host"),
            (device.highest_offset, "end of the farthest write since QEMU opened the image"),
        ):
            if found is not None:
                yield quote(found, text)


class _Reader:
    def take(self, node: Node) -> Iterator[DiskStatistics]:
        if isinstance(node, Call) and node.root.name in _OF_DOMAINS and not node.failed:
            yield from _disks(node)

    def finish(self, end_ns: int) -> Sequence[DiskStatistics]:
        return ()


def _disks(call: Call) -> Iterator[DiskStatistics]:
    root = call.root
    if root.returned is None or root.exit_seq is None:
        return
    records = Quoted(root.returned, root.name, root.exit_seq).get("records")
    if records is None or not isinstance(records.value, dict):
        return
    asked, devices = _devices(call)
    left = _MOST_DISKS
    for domain in records.value:
        answer = records.get(domain)
        count = answer.number("block.count") if answer else None
        if answer is None or count is None:
            continue
        for index in range(min(count.value, left)):
            left -= 1
            place = f"block.{index}."
            path = answer.text(f"{place}path") or ""
            if answer.number(f"{place}capacity"):
                name = answer.text(f"{place}name") or "?"
                candidates = tuple(devices.get(path, ()))
                yield DiskStatistics(domain, name, answer, place, asked, candidates)


def _devices(call: Call) -> tuple[bool, dict[str, list[Device]]]:
    """Return whether any QEMU was asked, and the devices of all, by the path of the file."""
    of_qemu: dict[str, list[Exchange]] = {}
    for node in call.nodes():
        if isinstance(node, Exchange) and node.is_qmp:
            of_qemu.setdefault(str(node.send.values.get("mon")), []).append(node)
    devices: dict[str, list[Device]] = {}
    for exchanges in of_qemu.values():
        for device in Qmp(exchanges).devices():
            if device.file is not None:
                devices.setdefault(device.file, []).append(device)
    return bool(of_qemu), devices


_CAUSES: Catalogue[DiskStatistics] = Catalogue(Path(__file__).with_name("statistics.yaml"))
EXPLAINER = Explainer("statistics", _CAUSES, lambda _: _Reader())


@_CAUSES.condition("contradiction")
def _contradiction(case: DiskStatistics) -> list[Evidence] | None:
    device = case.device
    if device is None:
        return None
    usage = device.actual_size or device.capacity
    expected = {
        "capacity": device.capacity.value if device.capacity else None,
        "allocation": case.mark or 0,
        # Of a space used of 0, libvirt reports the size that it reads itself.
        "physical": usage.value if usage and usage.value else None,
    }
    wrong = [
        quote(found, f"{name} should be {value}")
        for name, value in expected.items()
        if value is not None and (found := case.quoted(name)) and found.value != value
    ]
    return [*wrong, *case.values()] if wrong else None


@_CAUSES.condition("shut-off")
def _shut_off(case: DiskStatistics) -> list[Evidence] | None:
    return None if case.asked else [Evidence("libvirt asked no QEMU in this call")]


@_CAUSES.condition("no-actual-size")
def _no_actual_size(case: DiskStatistics) -> list[Evidence] | None:
    device = case.device
    if device is None or device.image is None or device.actual_size is not None:
        return None
    return [quote(device.image, "QEMU reported no actual-size"), *case.values()]


@_CAUSES.condition("nothing-written")
def _nothing_written(case: DiskStatistics) -> list[Evidence] | None:
    unused = case.usage == 0 and case.device is not None and not case.device.is_block_device
    return list(case.values()) if unused and not case.mark else None


@_CAUSES.condition("device-unwritten")
def _device_unwritten(case: DiskStatistics) -> list[Evidence] | None:
    on_device = case.device is not None and case.device.is_block_device
    return list(case.values()) if on_device and not case.mark else None


@_CAUSES.condition("no-mark")
def _no_mark(case: DiskStatistics) -> list[Evidence] | None:
    if not case.usage or case.mark is not None or case.number("allocation") != 0:
        return None
    return list(case.values())


@_CAUSES.condition("not-written")
def _not_written(case: DiskStatistics) -> list[Evidence] | None:
    if not case.usage or case.mark != 0 or case.number("allocation") != 0:
        return None
    return list(case.values())


@_CAUSES.condition("mark-equals-usage")
def _mark_equals_usage(case: DiskStatistics) -> list[Evidence] | None:
    return list(case.values()) if case.mark and case.mark == case.usage else None


@_CAUSES.condition("mark-on-device")
def _mark_on_device(case: DiskStatistics) -> list[Evidence] | None:
    on_device = case.device is not None and case.device.is_block_device
    return list(case.values()) if case.mark and on_device else None


@_CAUSES.condition("mark")
def _mark(case: DiskStatistics) -> list[Evidence] | None:
    return list(case.values()) if case.mark and case.usage else None


@_CAUSES.condition("unknown")
def _unknown(case: DiskStatistics) -> list[Evidence]:
    names = ", ".join(device.name for device in case.candidates)
    return [Evidence(f"devices that can be the disk: {names or 'none'}")]
