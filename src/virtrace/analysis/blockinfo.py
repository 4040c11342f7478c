"""What one call of virDomainGetBlockInfo returned about a disk, and what QEMU reported in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from virtrace.analysis.decision import CAPACITY, OFFSET, USAGE, Decision, decide
from virtrace.analysis.devices import Device, Qmp
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Quoted
from virtrace.analysis.source_lines import Line, Seen, lines_of, watch
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace import roles
from virtrace.trace.format import Event, Json, ProbeRecord

NUMBERS = ("capacity", "allocation", "physical")
API = "virDomainGetBlockInfo"
DRIVER = "qemuDomainGetBlockInfo"
GATHER = "qemuDomainBlocksStatsGather"

# The fields of qemuBlockStats that are counted per device, by their QMP names.
COUNTERS = {
    "rd_req": "rd_operations",
    "rd_bytes": "rd_bytes",
    "wr_req": "wr_operations",
    "wr_bytes": "wr_bytes",
    "rd_total_times": "rd_total_time_ns",
    "wr_total_times": "wr_total_time_ns",
    "flush_req": "flush_operations",
    "flush_total_times": "flush_total_time_ns",
}

_VIRTIO_TARGET = re.compile("vd([a-z]+)")


@dataclass(frozen=True)
class BlockInfo:
    """One call, and what the trace tells about it.

    info, driver_info: the three numbers as returned by the API and by the driver; None if the trace
    lacks them.
    stats: the qemuBlockStats of the disk; None if the trace lacks it.
    lines: the source lines of the driver's method; empty if they were not traced.
    running: whether the guest runs; None if unknown.
    devices: candidates for the disk. Usually one; none if QEMU was not asked or the trace has no
    QMP text; two of one name if libvirt may have read one node or another.
    chosen_by: how they were told from other devices, in words.
    """

    call: Call
    info: Quoted | None
    driver_info: Quoted | None
    stats: Quoted | None
    running: bool | None
    devices: tuple[Device, ...]
    chosen_by: str
    lines: tuple[Line, ...] = ()

    @property
    def domain(self) -> str:
        return _name(self.call.root.arguments.get("domain"))

    @property
    def disk(self) -> str:
        return _name(self.call.root.arguments.get("disk"))

    @cached_property
    def answered(self) -> bool:
        """Whether the call returned three numbers."""
        return self.info is not None and not self.call.failed

    @cached_property
    def device(self) -> Device | None:
        """The disk, if there is only one candidate."""
        return self.devices[0] if len(self.devices) == 1 else None

    def number(self, name: str) -> int | None:
        """Return one of NUMBERS, as returned by the API, in bytes."""
        found = self.info.number(name) if self.info else None
        return found.value if found else None

    def seen(self, name: str) -> tuple[Seen, ...]:
        """Return what the driver's source lines show about one of NUMBERS."""
        returned = self.driver_info.number(name) if self.driver_info else None
        return watch(self.lines, name, returned)

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What libvirt's code makes of QEMU's values; empty if the trace lacks these.

        Several if the trace leaves open which device the disk is. If some of them lead to the
        answer, only these.
        """
        found = [
            decide(usage, offset, is_qcow2_file)
            for device in self.devices or (None,)
            for usage, offset in self._inputs(device)
            for is_qcow2_file in _possible(device)
        ]
        follow = [decision for decision in found if self.follows(decision)]
        return tuple(dict.fromkeys(follow or found))

    def follows(self, decision: Decision) -> bool:
        """Whether the answer is what the decision leads to, as far as the trace can tell."""
        physical = decision.physical_bytes
        return self.number("allocation") == decision.allocation_bytes and (
            physical is None or self.number("physical") == physical
        )

    def follows_from_any(self) -> bool:
        return any(self.follows(decision) for decision in self.decisions)

    def _inputs(self, device: Device | None) -> Iterator[tuple[int, int | None]]:
        """Yield P and W: from libvirt's struct or, if the trace lacks it, from QEMU's reply."""
        usage = self.stats.number(USAGE) if self.stats else None
        valid = self.stats.get(f"{OFFSET}_valid") if self.stats else None
        offset = self.stats.number(OFFSET) if self.stats else None
        if usage is not None and valid is not None and offset is not None:
            yield usage.value, offset.value if valid.value is True else None
        elif device is not None and device.usage is not None:
            told = device.highest_offset
            yield device.usage.value, told.value if told else None

    @cached_property
    def error(self) -> Event | None:
        """The error with which the call failed."""
        errors = self.call.errors() if self.call.failed else []
        return errors[-1] if errors else None

    @property
    def raised(self) -> Event | None:
        """The event that says where that error was raised: function, file and line."""
        error = self.error
        places = (
            node.event
            for node in self.call.nodes()
            if isinstance(node, Point) and node.event.role == roles.ERROR_PLACE
        )
        before = [each for each in places if error is not None and each.seq < error.seq]
        return before[-1] if before else None


def _possible(device: Device | None) -> tuple[bool, ...]:
    known = device.is_qcow2_file if device else None
    return (False, True) if known is None else (known,)


def seen_by(probes: Iterable[ProbeRecord]) -> frozenset[str]:
    """Return names and roles of the probes that were found."""
    found = [probe for probe in probes if probe["level"] != "missing"]
    return frozenset({probe["name"] for probe in found} | {str(probe["role"]) for probe in found})


def read_block_info(call: Call, seen: Collection[str], alias: str | None = None) -> BlockInfo:
    """Return what a call of virDomainGetBlockInfo shows.

    seen: from seen_by().
    alias: libvirt's name of the device, if a source outside of the trace knows it.
    """
    spans = {node.name: node for node in call.nodes() if isinstance(node, Span)}
    stats = _returned(spans.get(GATHER), "stats")
    qmp = Qmp(node for node in call.nodes() if isinstance(node, Exchange))
    every = tuple(qmp.devices())
    disk = _name(call.root.arguments.get("disk"))
    devices, chosen_by = _choose(every, disk, stats, alias)
    block = BlockInfo(
        call=call,
        info=_returned(call.root, "info"),
        driver_info=_returned(spans.get(DRIVER), "info"),
        stats=stats,
        running=_running(spans, qmp, seen),
        devices=devices,
        chosen_by=chosen_by,
        lines=tuple(lines_of(spans[DRIVER])) if DRIVER in spans else (),
    )
    if len(devices) > 1:
        fitting = tuple(
            device for device in devices if replace(block, devices=(device,)).follows_from_any()
        )
        if 0 < len(fitting) < len(devices):
            also = f"{chosen_by}, and libvirt's answer follows from its numbers"
            return replace(block, devices=fitting, chosen_by=also)
    return block


def _running(spans: Mapping[str, Span], qmp: Qmp, seen: Collection[str]) -> bool | None:
    if GATHER in spans or qmp.asked:
        return True
    driver_called = DRIVER in spans or DRIVER not in seen
    # These would have been seen if the guest was running.
    return False if driver_called and {GATHER, roles.QMP_COMMAND} & set(seen) else None


def _returned(span: Span | None, name: str) -> Quoted | None:
    if span is None or span.returned is None or span.exit_seq is None:
        return None
    return Quoted(span.returned, span.name, span.exit_seq).get(name)


def _name(value: Json) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"] + "..."
    return value if isinstance(value, str) else "?"


def _choose(
    devices: tuple[Device, ...], disk: str, stats: Quoted | None, alias: str | None
) -> tuple[tuple[Device, ...], str]:
    """Return the candidates for the disk, and how they were told from the rest."""
    if not devices:
        return devices, "QEMU reported none"
    index = target_index(disk)
    signs: tuple[tuple[str, Callable[[Device], bool]], ...] = (
        (
            "its alias in the domain's XML",
            lambda device: alias in device.name.removeprefix("drive-").split("/"),
        ),
        (
            "libvirt's struct holds its counters and sizes",
            lambda device: stats is not None and not any(differences(stats, device)),
        ),
        ("its file, which the caller named", lambda device: device.file == disk),
        (
            f"its alias, which libvirt makes from the target {disk}",
            lambda device: index is not None and device.index == index,
        ),
    )
    alone = len({device.name for device in devices}) == 1
    told = ["it is the only one with a medium"] if alone else []
    for text, fits in signs:
        left = tuple(device for device in devices if fits(device))
        if 0 < len(left) < len(devices):
            devices = left
            told.append(text)
        if len(devices) == 1:
            break
    return devices, " and ".join(told) or "nothing tells them apart"


def target_index(disk: str) -> int | None:
    """Index of a virtio disk, by which libvirt names it: vda 0, vdaa 26; None on other buses."""
    found = _VIRTIO_TARGET.fullmatch(disk)
    if found is None:
        return None
    index = 0
    for letter in found[1]:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def differences(stats: Quoted, device: Device) -> Iterator[tuple[Quoted, Quoted]]:
    """Yield values of libvirt's struct that differ from QEMU's for a device, with QEMU's."""
    said = {
        **{field: device.entry.number("stats", name) for field, name in COUNTERS.items()},
        CAPACITY: device.capacity,
        USAGE: device.usage,
        OFFSET: device.highest_offset,
    }
    for field, qemu in said.items():
        libvirt = stats.number(field)
        if libvirt is not None and qemu is not None and libvirt.value != qemu.value:
            yield libvirt, qemu
    valid = stats.get(f"{OFFSET}_valid")
    if valid is not None and valid.value is (device.highest_offset is None):
        yield valid, device.node
