"""What QEMU reported about a guest's block devices in one call of libvirt.

In QMP, `query-blockstats` has an entry for each device or, with `query-nodes`, for each node.
`query-named-block-nodes` has the image of each node; `query-block` has it if QEMU was started
with -drive.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Quoted

# QEMU's filter drivers, which only pass data on: libvirt's own, and those of block jobs.
_FILTERS = frozenset(
    {"backup-top", "commit_top", "copy-before-write", "copy-on-read", "mirror_top", "throttle"}
)
_BLOCK_DEVICES = frozenset({"host_device", "host_cdrom"})

_VIRTIO_ALIAS = re.compile("(?:/|^drive-)virtio-disk([0-9]+)(?:/|$)")


@dataclass(frozen=True)
class Device:
    """A device of the guest, with a medium.

    name: its QOM path, or its alias if QEMU was started with -drive.
    node_name: of the node by which libvirt knows the disk; empty if it has no name.
    entry: in `query-blockstats`.
    node: the entry from which libvirt reads its offsets.
    image: as in `query-named-block-nodes`.
    format, protocol: QEMU's drivers; None if unknown.
    file: path of the file or device; None if it has none, for example a network image.
    """

    name: str
    node_name: str
    entry: Quoted
    node: Quoted
    image: Quoted | None
    format: str | None
    protocol: str | None
    file: str | None

    @functools.cached_property
    def capacity(self) -> Quoted | None:
        """V, in bytes: the size that the guest sees."""
        return self.image.number("virtual-size") if self.image else None

    @functools.cached_property
    def actual_size(self) -> Quoted | None:
        """Space that it uses on the host, in bytes; None if QEMU does not report it."""
        return self.image.number("actual-size") if self.image else None

    @functools.cached_property
    def usage(self) -> Quoted | None:
        """P, in bytes: the space used as libvirt sees it; the size if QEMU does not report it."""
        return self.actual_size or self.capacity

    @functools.cached_property
    def highest_offset(self) -> Quoted | None:
        """W, in bytes: end of the farthest write, of the node below; None: `not valid`."""
        return self.node.number("parent", "stats", "wr_highest_offset")

    @property
    def own_highest_offset(self) -> Quoted | None:
        """The same for the node itself, which libvirt does not read."""
        return self.node.number("stats", "wr_highest_offset")

    def sizes(self) -> tuple[int | None, ...]:
        """V, P and W."""
        readings = (self.capacity, self.usage, self.highest_offset)
        return tuple(reading.value if reading else None for reading in readings)

    @property
    def is_qcow2_file(self) -> bool | None:
        """Whether it is qcow2 in a file; None if the trace does not tell what the image is on."""
        if self.format != "qcow2":
            return None if self.format is None else False
        return None if self.protocol is None else self.protocol == "file"

    @property
    def is_block_device(self) -> bool:
        return self.protocol in _BLOCK_DEVICES

    @property
    def index(self) -> int | None:
        """0 for `/machine/peripheral/virtio-disk0/virtio-backend`; None on other buses."""
        found = _VIRTIO_ALIAS.search(self.name)
        return int(found[1]) if found else None

    def discards(self) -> Iterator[Quoted]:
        """Yield counters of discards that are not zero, of the device and of the storage."""
        counters = (
            self.entry.number("stats", "unmap_operations"),
            self.node.number("parent", "driver-specific", "discard-nb-ok"),
            self.node.number("driver-specific", "discard-nb-ok"),
        )
        return (counter for counter in counters if counter is not None and counter.value > 0)


class Qmp:
    """QEMU's replies in a call. asked: whether there was any command."""

    def __init__(self, exchanges: Iterable[Exchange]) -> None:
        self.asked = False
        self._asked_for_nodes = False
        self._entries: dict[str, Quoted] = {}
        self._devices: list[Quoted] = []
        self._nodes: dict[str, Quoted] = {}
        self._drives: dict[str, Quoted] = {}
        for exchange in exchanges:
            self.asked = True
            if exchange.reply is not None:
                where = f"{exchange.command} {exchange.id}"
                reply = Quoted(exchange.reply.values, where, exchange.reply.seq)
                self._take(exchange, reply.get("json", "return"))

    def devices(self) -> Iterator[Device]:
        """Yield the devices; several of one name if there is a filter above the image.

        libvirt then knows the disk by the top node or by the image's node, depending on its
        version. Before 7.10 it did not ask for nodes, and may lack the offsets of the lower one.
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

    def _down_to_image(self, entry: Quoted) -> Iterator[str]:
        """Yield a device's node names from the top to the first that is not a filter."""
        name, below = entry.text("node-name") or "", entry
        yield name
        while self._driver(name) in _FILTERS:
            name = below.text("parent", "node-name") or ""
            if name not in self._nodes:
                return
            yield name
            below = self._entries.get(name, below)

    def _device(self, entry: Quoted, node: str, offsets: Quoted, bottom: str) -> Device | None:
        """node: the name by which libvirt knows the disk. bottom: the image, below all filters."""
        alias = entry.text("device") or ""
        name = alias or entry.text("qdev")
        told = self._nodes.get(node) or self._drive(alias)
        if not name or (told is None and (self._nodes or self._drives)):
            return None
        image = told.get("image") if told else None
        format_, protocol = self._drivers(entry, bottom, told)
        return Device(
            name, node, entry, offsets, image, format_, protocol, self._file(bottom, image)
        )

    def _drivers(
        self, entry: Quoted, bottom: str, told: Quoted | None
    ) -> tuple[str | None, str | None]:
        """Return the drivers of the format and of the storage below it."""
        statistics = self._entries.get(bottom, entry)
        driver = self._driver(bottom) or (told.text("drv") if told else None)
        below = statistics.get("parent")
        if below is None and driver is not None and bottom in self._entries:
            # Since libvirt 9.10, a raw disk has no separate node for the format.
            return "raw", driver
        storage = below.text("node-name") if below else None
        own = below.text("driver-specific", "driver") if below else None
        return driver, self._driver(storage or "") or own

    def _driver(self, node: str) -> str | None:
        found = self._nodes.get(node)
        return found.text("drv") if found else None

    def _drive(self, alias: str) -> Quoted | None:
        found = self._drives.get(alias)
        return found.get("inserted") if found else None

    def _file(self, bottom: str, image: Quoted | None) -> str | None:
        below = self._nodes.get(bottom)
        statistics = self._entries.get(bottom)
        parent = statistics.text("parent", "node-name") if statistics else None
        storage = self._nodes.get(parent or "")
        named = (
            image.text("filename") if image else None,
            below.text("image", "filename") if below else None,
            storage.text("image", "filename") if storage else None,
        )
        # QEMU writes JSON instead of a path if the image needs more options.
        return next((name for name in named if name and name.startswith("/")), None)

    def _take(self, exchange: Exchange, answer: Quoted | None) -> None:
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

    def _keep(self, entry: Quoted | None) -> None:
        """Keep the first entry of each node, as libvirt does, also of a device's backing images."""
        while entry is not None:
            name = entry.text("node-name")
            if name:
                self._entries.setdefault(name, entry)
            entry = entry.get("backing")
