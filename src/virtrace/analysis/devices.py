"""What QEMU said of a guest's block devices in one call of libvirt.

Names of QMP: `query-blockstats` has an entry for each device and, where it was asked with
`query-nodes`, for each node; `query-named-block-nodes`, or `query-block` where QEMU was
started with -drive, has the image of each.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Union

from virtrace.analysis.qmp import Exchange
from virtrace.trace.format import Json

# QEMU's drivers that only stand between two nodes: libvirt's own, and those of block jobs.
_FILTERS = frozenset(
    {"backup-top", "commit_top", "copy-before-write", "copy-on-read", "mirror_top", "throttle"}
)
_BLOCK_DEVICES = frozenset({"host_device", "host_cdrom"})

_IDENTIFIER = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_VIRTIO_ALIAS = re.compile("(?:/|^drive-)virtio-disk([0-9]+)(?:/|$)")

Key = Union[str, int]


@functools.lru_cache(maxsize=1024)
def step(key: Key) -> str:
    """What stands below, as jq writes it: ``.name``, ``["odd name"]``, ``[3]``."""
    if isinstance(key, int):
        return f"[{key}]"
    quoted = key.replace("\\", "\\\\").replace('"', '\\"')
    return f".{key}" if _IDENTIFIER.fullmatch(key) else f'["{quoted}"]'


class Reading(NamedTuple):
    """A value that stands in the trace. where: the function or QMP command that gave it.

    seq: its event. keys: where in the event's ``values``.
    """

    value: Json
    where: str
    seq: int
    keys: tuple[Key, ...] = ()

    @property
    def path(self) -> str:
        """Where in the event's ``values``, as jq writes it."""
        return "".join(map(step, self.keys))

    def get(self, *keys: Key) -> Reading | None:
        """What stands below; None where it does not have that."""
        value = self.value
        try:
            for key in keys:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
        return Reading(value, self.where, self.seq, self.keys + keys)

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
    """A device of the guest with a medium.

    name: its QOM path, or its alias where QEMU was started with -drive. entry: of
    `query-blockstats`. node: where libvirt reads offsets of it. image: as in
    `query-named-block-nodes`. format, protocol: QEMU's drivers; None where they were not told.
    file: path of the file or device; None for what has none, such as a network image.
    """

    name: str
    entry: Reading
    node: Reading
    image: Reading | None
    format: str | None
    protocol: str | None
    file: str | None

    @functools.cached_property
    def capacity(self) -> Reading | None:
        """V, bytes: the size that the guest sees."""
        return self.image.number("virtual-size") if self.image else None

    @functools.cached_property
    def actual_size(self) -> Reading | None:
        """Bytes that the host keeps for it; None where QEMU cannot tell."""
        return self.image.number("actual-size") if self.image else None

    @functools.cached_property
    def usage(self) -> Reading | None:
        """P, bytes: what libvirt takes for it, the size where QEMU cannot tell."""
        return self.actual_size or self.capacity

    @functools.cached_property
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
        return self.protocol in _BLOCK_DEVICES

    @property
    def index(self) -> int | None:
        """0 of `/machine/peripheral/virtio-disk0/virtio-backend`; None on other buses."""
        found = _VIRTIO_ALIAS.search(self.name)
        return int(found[1]) if found else None

    def discards(self) -> Iterator[Reading]:
        """Counters of discards that are not zero: of the device, and of the storage."""
        counters = (
            self.entry.number("stats", "unmap_operations"),
            self.node.number("parent", "driver-specific", "discard-nb-ok"),
            self.node.number("driver-specific", "discard-nb-ok"),
        )
        return (counter for counter in counters if counter is not None and counter.value > 0)


class Qmp:
    """QEMU's replies in a call. asked: whether there was a command at all."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.asked = False
        self._asked_for_nodes = False
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
        """With a filter on top of the image, several of a device, one by each way of libvirt's.

        It knows the disk by one node or the other; and versions before 7.10, which did not ask
        for nodes, may have no offsets of the one below.
        """
        for entry in self._devices:
            top, *below = self._down_to_image(entry)
            bottom = below[-1] if below else top
            ways = [(top, entry)]
            if below:
                ways.append((bottom, self._entries.get(bottom, self._nodes[bottom])))
                if not self._asked_for_nodes:
                    ways.append((bottom, self._nodes[bottom]))
            for node, offsets in ways:
                device = self._device(entry, node, offsets, bottom)
                if device is not None:
                    yield device

    def _down_to_image(self, entry: Reading) -> Iterator[str]:
        """Names of a device's nodes, from the top to the first that is no filter."""
        name, below = entry.text("node-name") or "", entry
        yield name
        while self._driver(name) in _FILTERS:
            name = below.text("parent", "node-name") or ""
            if name not in self._nodes:
                return
            yield name
            below = self._entries.get(name, below)

    def _device(self, entry: Reading, node: str, offsets: Reading, bottom: str) -> Device | None:
        """node: by which libvirt knows the disk. bottom: of the image, below all filters."""
        alias = entry.text("device") or ""
        name = alias or entry.text("qdev")
        told = self._nodes.get(node) or self._drive(alias)
        if not name or (told is None and (self._nodes or self._drives)):
            return None
        image = told.get("image") if told else None
        format_, protocol = self._drivers(entry, bottom, told)
        return Device(name, entry, offsets, image, format_, protocol, self._file(bottom, image))

    def _drivers(
        self, entry: Reading, bottom: str, told: Reading | None
    ) -> tuple[str | None, str | None]:
        """Of the format, and of the storage below it."""
        statistics = self._entries.get(bottom, entry)
        driver = self._driver(bottom) or (told.text("drv") if told else None)
        below = statistics.get("parent")
        if below is None and driver is not None and bottom in self._entries:
            # Since libvirt 9.10 a raw disk has no node of its own for the format.
            return "raw", driver
        storage = below.text("node-name") if below else None
        own = below.text("driver-specific", "driver") if below else None
        return driver, self._driver(storage or "") or own

    def _driver(self, node: str) -> str | None:
        found = self._nodes.get(node)
        return found.text("drv") if found else None

    def _drive(self, alias: str) -> Reading | None:
        found = self._drives.get(alias)
        return found.get("inserted") if found else None

    def _file(self, bottom: str, image: Reading | None) -> str | None:
        below = self._nodes.get(bottom)
        statistics = self._entries.get(bottom)
        parent = statistics.text("parent", "node-name") if statistics else None
        storage = self._nodes.get(parent or "")
        named = (
            image.text("filename") if image else None,
            below.text("image", "filename") if below else None,
            storage.text("image", "filename") if storage else None,
        )
        # With options that a path cannot say, QEMU writes JSON instead.
        return next((name for name in named if name and name.startswith("/")), None)

    def _take(self, exchange: Exchange, answer: Reading | None) -> None:
        if answer is None:
            return
        if exchange.command == "query-blockstats":
            arguments = exchange.send.values["json"].get("arguments")
            of_nodes = isinstance(arguments, dict) and arguments.get("query-nodes") is True
            for entry in answer.items():
                if of_nodes:
                    self._asked_for_nodes = True
                else:
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
