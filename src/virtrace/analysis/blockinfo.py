"""What one call of virDomainGetBlockInfo, and QEMU in it, said of a disk.

Names of QMP and of libvirt 5.6 to 12.8: `query-blockstats` has an entry for each device and,
where it was asked with `query-nodes`, for each node; `query-named-block-nodes`, or
`query-block` where QEMU was started with -drive, has the image of each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Union

from virtrace.analysis.decision import CAPACITY, OFFSET, USAGE, Decision, decide
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.spans import Call, Point, Span
from virtrace.trace.format import Event, Json

NUMBERS = ("capacity", "allocation", "physical")
API = "virDomainGetBlockInfo"
DRIVER = "qemuDomainGetBlockInfo"
GATHER = "qemuDomainBlocksStatsGather"
RAISED = ("error.raised", "error.system")

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

# QEMU's drivers that only stand between two nodes: libvirt's own, and those of block jobs.
_FILTERS = frozenset(
    {"backup-top", "commit_top", "copy-before-write", "copy-on-read", "mirror_top", "throttle"}
)
_DEVICES = frozenset({"host_device", "host_cdrom"})

_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_TARGET = re.compile("(?:fd|hd|vd|sd|xvd|ubd)([a-z]+)")
_ALIAS = re.compile("(?:^|/|drive-)[a-z]+-disk([0-9]+)(?:/|$)")

Key = Union[str, int]


@dataclass(frozen=True)
class Reading:
    """A value that stands in the trace. where: the function or QMP command that gave it.

    seq: its event. path: where in the event's ``values``, as jq writes it.
    """

    value: Json
    where: str
    seq: int
    path: str = ""

    def get(self, *keys: Key) -> Reading | None:
        """What stands below; None where it does not have that."""
        value, path = self.value, self.path
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
            plain = isinstance(key, str) and _IDENTIFIER.fullmatch(key)
            quoted = str(key).replace("\\", "\\\\").replace('"', '\\"')
            path += f".{key}" if plain else f"[{key}]" if isinstance(key, int) else f'["{quoted}"]'
        return Reading(value, self.where, self.seq, path)

    def number(self, *keys: Key) -> Reading | None:
        """The same, where it is an integer."""
        found = self.get(*keys)
        return found if found is not None and type(found.value) is int else None

    def text(self, *keys: Key) -> str | None:
        found = self.get(*keys)
        return found.value if found is not None and isinstance(found.value, str) else None

    def items(self) -> Iterator[Reading]:
        """Of an array, one by one; nothing of anything else."""
        for index in range(len(self.value) if isinstance(self.value, list) else 0):
            found = self.get(index)
            assert found is not None
            yield found


@dataclass(frozen=True)
class Device:
    """A device of the guest with a medium, as QEMU described it in the call.

    name: its QOM path, or its alias where QEMU was started with -drive. entry: of
    `query-blockstats`. node: where libvirt reads offsets, another than ``entry`` where a
    filter stands on top. image: as in `query-named-block-nodes`.
    format, protocol: QEMU's drivers; None where they were not told. file: path of the file
    or device; None for what has none, such as a network image.
    """

    name: str
    entry: Reading
    node: Reading
    image: Reading | None
    format: str | None
    protocol: str | None
    file: str | None

    @property
    def capacity(self) -> Reading | None:
        """V, bytes: the size that the guest sees."""
        return self.image.number("virtual-size") if self.image else None

    @property
    def actual_size(self) -> Reading | None:
        """Bytes that the host keeps for it; None where QEMU cannot tell."""
        return self.image.number("actual-size") if self.image else None

    @property
    def usage(self) -> Reading | None:
        """P, bytes: what libvirt takes for it, the size where QEMU cannot tell."""
        return self.actual_size or self.capacity

    @property
    def highest_offset(self) -> Reading | None:
        """W, bytes: the end of the farthest write, of the node below; None is `not valid`."""
        return self.node.number("parent", "stats", "wr_highest_offset")

    @property
    def own_highest_offset(self) -> Reading | None:
        """The same of the node itself, which libvirt does not read."""
        return self.node.number("stats", "wr_highest_offset")

    def sizes(self) -> tuple[int | None, ...]:
        """V, P and W."""
        readings = (self.capacity, self.usage, self.highest_offset)
        return tuple(reading.value if reading else None for reading in readings)

    @property
    def is_qcow2_file(self) -> bool | None:
        """None where the trace does not tell what a qcow2 image lies on."""
        if self.format != "qcow2":
            return None if self.format is None else False
        return None if self.protocol is None else self.protocol == "file"

    @property
    def is_block_device(self) -> bool:
        return self.protocol in _DEVICES

    @property
    def has_filter(self) -> bool:
        return self.node.path != self.entry.path or self.node.seq != self.entry.seq

    def discards(self) -> Iterator[Reading]:
        """Counters of discards that are not zero."""
        for keys in (
            ("stats", "unmap_operations"),
            ("parent", "driver-specific", "discard-nb-ok"),
            ("driver-specific", "discard-nb-ok"),
        ):
            for entry in (self.entry, self.node) if self.has_filter else (self.entry,):
                found = entry.number(*keys)
                if found is not None and found.value > 0:
                    yield found


@dataclass(frozen=True)
class BlockInfo:
    """One call, and what can be known from the trace about it.

    info, driver_info: the three numbers as the API and as the driver returned them. stats:
    the qemuBlockStats of the disk. Each is None where the trace does not have it.
    running: None where it cannot be told. devices: those that can be the disk: one as a rule,
    none where QEMU was not asked or the trace has no QMP text. chosen_by: how they were told
    from the others.
    """

    call: Call
    info: Reading | None
    driver_info: Reading | None
    stats: Reading | None
    running: bool | None
    devices: tuple[Device, ...]
    chosen_by: str

    @property
    def domain(self) -> str:
        return _name(self.call.root.arguments.get("domain"))

    @property
    def disk(self) -> str:
        return _name(self.call.root.arguments.get("disk"))

    @property
    def device(self) -> Device | None:
        """The disk, where it is sure which one it is."""
        return self.devices[0] if len(self.devices) == 1 else None

    def number(self, name: str) -> int | None:
        """One of NUMBERS, as answered."""
        found = self.info.number(name) if self.info else None
        return found.value if found else None

    @cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """What libvirt's code makes of what QEMU said; empty where the trace lacks that.

        Several where the trace leaves open what the disk is, those first that give the answer.
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
        """Whether the answer is what the decision gives, as far as the trace can tell."""
        physical = decision.physical_bytes
        return self.number("allocation") == decision.allocation_bytes and (
            physical is None or self.number("physical") == physical
        )

    def follows_from_any(self) -> bool:
        return any(self.follows(decision) for decision in self.decisions)

    def _inputs(self, device: Device | None) -> Iterator[tuple[int, int | None]]:
        """P and W: of libvirt's struct, or where the trace lacks that, of QEMU's answer."""
        usage = self.stats.number(USAGE) if self.stats else None
        valid = self.stats.get(f"{OFFSET}_valid") if self.stats else None
        offset = self.stats.number(OFFSET) if self.stats else None
        if usage is not None and valid is not None and offset is not None:
            yield usage.value, offset.value if valid.value is True else None
        elif device is not None and device.usage is not None:
            told = device.highest_offset
            yield device.usage.value, told.value if told else None

    @property
    def error(self) -> Event | None:
        """The error that the call failed with, as libvirt worded it."""
        errors = self.call.errors() if self.call.failed else []
        return errors[-1] if errors else None

    @property
    def raised(self) -> Event | None:
        """Where that error was raised: function, file and line."""
        error = self.error
        places = (
            node.event
            for node in self.call.nodes()
            if isinstance(node, Point) and node.event.name in RAISED
        )
        before = [each for each in places if error is not None and each.seq < error.seq]
        return before[-1] if before else None


def _possible(device: Device | None) -> tuple[bool, ...]:
    known = device.is_qcow2_file if device else None
    return (False, True) if known is None else (known,)


def read(call: Call, levels: Mapping[str, str], alias: str | None = None) -> BlockInfo:
    """What a call of API says.

    levels: what each probe of the trace resolved to, by name. alias: libvirt's name of the
    device, where something besides the trace told it.
    """
    spans = {node.name: node for node in call.nodes() if isinstance(node, Span)}
    stats = _returned(spans.get(GATHER), "stats")
    qmp = _Qmp(node for node in call.nodes() if isinstance(node, Exchange))
    every = tuple(qmp.devices())
    disk = _name(call.root.arguments.get("disk"))
    devices, chosen_by = _choose(every, disk, stats, alias)
    block = BlockInfo(
        call=call,
        info=_returned(call.root, "info"),
        driver_info=_returned(spans.get(DRIVER), "info"),
        stats=stats,
        running=_running(spans, qmp, levels),
        devices=devices,
        chosen_by=chosen_by,
    )
    if len(devices) > 1:
        fitting = tuple(
            device for device in devices if replace(block, devices=(device,)).follows_from_any()
        )
        if 0 < len(fitting) < len(devices):
            also = f"{chosen_by}, and libvirt's answer follows from its numbers"
            return replace(block, devices=fitting, chosen_by=also)
    return block


def _running(spans: Mapping[str, Span], qmp: _Qmp, levels: Mapping[str, str]) -> bool | None:
    if GATHER in spans or qmp.asked:
        return True
    # What would have been seen, had it happened.
    seen = {name for name, level in levels.items() if level != "missing"}
    driver_called = DRIVER in spans or DRIVER not in seen
    return False if driver_called and seen & {GATHER, "qmp.send"} else None


def _returned(span: Span | None, name: str) -> Reading | None:
    if span is None or span.returned is None or span.exit_seq is None:
        return None
    return Reading(span.returned, span.name, span.exit_seq).get(name)


def _name(value: Json) -> str:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"] + "..."
    return value if isinstance(value, str) else "?"


class _Qmp:
    """The replies of a call, and what they say of each other's nodes."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.asked = False
        self._entries: dict[str, Reading] = {}
        self._devices: list[Reading] = []
        self._nodes: dict[str, Reading] = {}
        self._drives: dict[str, Reading] = {}
        for exchange in exchanges:
            self.asked = True
            if exchange.reply is not None:
                where = f"{exchange.command} {exchange.id}"
                reply = Reading(exchange.reply.values, where, exchange.reply.seq)
                self._take(exchange, reply.get("json", "return"))

    def devices(self) -> Iterator[Device]:
        for entry in self._devices:
            alias = entry.text("device") or ""
            name = alias if alias else entry.text("qdev")
            node = self._offsets(entry)
            image, driver = self._image(alias, node)
            if name and (image is not None or not (self._nodes or self._drives)):
                yield self._device(name, entry, node, image, driver)

    def _take(self, exchange: Exchange, answer: Reading | None) -> None:
        if answer is None:
            return
        if exchange.command == "query-blockstats":
            arguments = exchange.send.values["json"].get("arguments")
            of_nodes = isinstance(arguments, dict) and arguments.get("query-nodes") is True
            for entry in answer.items():
                if not of_nodes:
                    self._devices.append(entry)
                self._keep(entry)
        elif exchange.command == "query-named-block-nodes":
            self._nodes = {node.text("node-name") or "": node for node in answer.items()}
        elif exchange.command == "query-block":
            self._drives = {drive.text("device") or "": drive for drive in answer.items()}

    def _keep(self, entry: Reading | None) -> None:
        """The first one of each node, as libvirt does; a device's backing images too."""
        while entry is not None:
            name = entry.text("node-name")
            if name:
                self._entries.setdefault(name, entry)
            entry = entry.get("backing")

    def _offsets(self, entry: Reading) -> Reading:
        """The entry of the node that libvirt knows the disk by, which stands below filters."""
        node = self._nodes.get(entry.text("node-name") or "")
        if node is None or node.text("drv") not in _FILTERS:
            return entry
        below = self._below_filters(node)
        # Up to libvirt 7.8, which did not ask for nodes, there are no offsets below a filter.
        return self._entries.get(below.text("node-name") or "", below) if below else entry

    def _below_filters(self, node: Reading) -> Reading | None:
        """The child, where QEMU tells children; else the one other node with that file."""
        children = node.get("children")
        if children is not None:
            for child in children.items():
                below = self._nodes.get(child.text("node-name") or "")
                if below is not None and child.text("child") in ("file", "backing"):
                    filtered = below.text("drv") in _FILTERS
                    return self._below_filters(below) if filtered else below
            return None
        file = node.text("image", "filename")
        own = [
            other
            for other in self._nodes.values()
            if other.text("image", "filename") == file and other.text("drv") not in _FILTERS
        ]
        with_format = [other for other in own if not self._is_storage(other)]
        chosen = with_format or own
        return chosen[0] if len(chosen) == 1 else None

    def _is_storage(self, node: Reading) -> bool:
        """Nothing is below it: since libvirt 9.10 also the node of a raw disk."""
        entry = self._entries.get(node.text("node-name") or "")
        return entry is not None and entry.get("parent") is None

    def _image(self, alias: str, node: Reading) -> tuple[Reading | None, str | None]:
        """The image of a device, and QEMU's driver of it."""
        found = self._nodes.get(node.text("node-name") or "")
        if found is None and alias in self._drives:
            found = self._drives[alias].get("inserted")
        return (found.get("image"), found.text("drv")) if found else (None, None)

    def _device(
        self, name: str, entry: Reading, node: Reading, image: Reading | None, driver: str | None
    ) -> Device:
        below = self._nodes.get(node.text("parent", "node-name") or "")
        protocol = below.text("drv") if below else None
        if driver is not None and self._is_storage(node):
            driver, protocol = "raw", driver
        elif protocol is None:
            protocol = node.text("parent", "driver-specific", "driver")
        names = (part.text("filename") for part in (image, below and below.get("image")) if part)
        file = next((path for path in names if path and path.startswith("/")), None)
        return Device(name, entry, node, image, driver, protocol, file)


def _choose(
    devices: tuple[Device, ...], disk: str, stats: Reading | None, alias: str | None
) -> tuple[tuple[Device, ...], str]:
    """Those that can be the disk, and how they were told from the rest."""
    if len(devices) < 2:
        return devices, "the only device with a medium" if devices else "QEMU was not asked"
    index = target_index(disk)
    signs: tuple[tuple[str, Callable[[Device], bool]], ...] = (
        ("its alias in the domain's XML", lambda device: alias in device.name.split("/")),
        (
            "libvirt's struct holds its counters and sizes",
            lambda device: stats is not None and not any(differences(stats, device)),
        ),
        ("its file, which the caller named", lambda device: device.file == disk),
        (
            f"its alias, which libvirt makes from the target {disk}",
            lambda device: index is not None and alias_index(device.name) == index,
        ),
    )
    told: list[str] = []
    for text, fits in signs:
        left = tuple(device for device in devices if fits(device))
        if 0 < len(left) < len(devices):
            devices = left
            told.append(text)
        if len(devices) == 1:
            break
    return devices, " and ".join(told) or "nothing tells them apart"


def alias_index(name: str) -> int | None:
    """0 of `/machine/peripheral/virtio-disk0/virtio-backend`; None for other names."""
    found = _ALIAS.search(name)
    return int(found[1]) if found else None


def target_index(disk: str) -> int | None:
    """0 of vda, 26 of vdaa; None for what is no target."""
    found = _TARGET.fullmatch(disk)
    if found is None:
        return None
    index = 0
    for letter in found[1]:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def differences(stats: Reading, device: Device) -> Iterator[tuple[Reading, Reading]]:
    """The numbers of libvirt's struct that are not what QEMU said of a device, beside that."""
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
