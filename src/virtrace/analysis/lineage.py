"""Where a number in libvirt's answer came from, step by step, back to QEMU or the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from virtrace.analysis import in_qemu
from virtrace.analysis.blockinfo import API, DRIVER, GATHER, NUMBERS, BlockInfo
from virtrace.analysis.decision import CAPACITY, OFFSET, STAT, USAGE
from virtrace.analysis.devices import Device
from virtrace.analysis.host import HostDisk
from virtrace.analysis.quoted import Quoted
from virtrace.analysis.source_lines import Seen
from virtrace.analysis.spans import Call


class Origin(NamedTuple):
    """One place where the number was, and what it was taken from.

    kind: ``api``, ``driver``, ``struct`` (libvirt's copy of QEMU's values), ``qmp``, ``qemu`` (what
    QEMU itself read) or ``host`` (libvirt's own look at the file or device).
    where: the function, the QMP command with its id, or what libvirt read.
    meaning: what the number is at this place, in words; empty if it is only passed on.
    value: bytes; None if the trace lacks it.
    missing: why the trace lacks it.
    seq: the event that contains it; None if none does, as with host facts.
    path: its path in the event's ``values``, for jq.
    sources: what it was taken from. Several: any of them can be the source, and the trace does not
    tell which. Empty: this is as far back as libvirt can know.
    """

    kind: str
    where: str
    meaning: str = ""
    value: int | None = None
    missing: str | None = None
    seq: int | None = None
    path: str | None = None
    sources: tuple[Origin, ...] = ()


class Rule(NamedTuple):
    """Why libvirt took one source and not another.

    seen: what the driver's source lines show of it; empty if the rule follows from the values.
    """

    text: str
    seen: tuple[Seen, ...] = ()


class Lineage(NamedTuple):
    """The origin of one number. number: one of NUMBERS. answer: what the API returned."""

    number: str
    answer: Origin
    rule: Rule

    def steps(self) -> Iterator[Origin]:
        """Yield every step, the answer first, alternatives one after the other."""
        rest = [self.answer]
        while rest:
            step = rest.pop()
            yield step
            rest.extend(reversed(step.sources))


_NOT_TRACED = "the trace does not have it"
_THE_KERNEL = "libvirt asked the kernel, which the trace does not show"
_MEANING = {
    CAPACITY: "the size that the guest sees",
    USAGE: "space used on the host",
    OFFSET: "end of the farthest write since QEMU opened the image",
}
_SIZE = {
    None: "size of the file or device",
    False: "size of the file",
    True: "size of the device",
}
_STOPPED_ALLOCATION = {
    None: "for a file the space used; for a device its size, or 0 if it is not raw",
    False: "space used by the file (st_blocks * 512)",
    True: "size of the device, or 0 if the image is not raw",
}


def trace_back(block: BlockInfo, host: HostDisk | None = None) -> tuple[Lineage, ...]:
    """Return the lineage of each of the three numbers; none if the call returned no numbers."""
    if block.info is None or not block.answered:
        return ()
    unknown = Rule("not known from the trace")
    chains: dict[str, _Chain] = dict.fromkeys(NUMBERS, ((), unknown))
    if block.running is False:
        chains = _stopped(block, host)
    elif block.decisions:
        chains = _running(block, host)
    return tuple(
        Lineage(
            number,
            _answer(block, block.info, number, sources),
            Rule(rule.text, block.seen(number)),
        )
        for number, (sources, rule) in chains.items()
    )


def on_device(block: BlockInfo, host: HostDisk | None) -> bool | None:
    """Whether the disk is a block device of the host; None if unknown."""
    if host is not None and host.is_block_device is not None:
        return host.is_block_device
    if block.device is not None and block.device.protocol is not None:
        return block.device.is_block_device
    numbers = {block.number(name) for name in NUMBERS}
    # For a raw device all three are equal; for any other image on a device allocation is 0.
    if block.running is False and block.number("allocation") and len(numbers) > 1:
        return False
    return None


def _answer(block: BlockInfo, info: Quoted, number: str, sources: tuple[Origin, ...]) -> Origin:
    driver = _step("driver", DRIVER, block.driver_info, number, sources=sources)
    return _step("api", API, info, number, sources=(driver,))


def _step(
    kind: str,
    where: str,
    reading: Quoted | None,
    name: str,
    meaning: str = "",
    sources: tuple[Origin, ...] = (),
) -> Origin:
    """Make a step with the number called ``name``, or with the reason why it is missing."""
    found = reading.number(name) if reading else None
    if found is not None:
        return Origin(kind, where, meaning, found.value, None, found.seq, found.path, sources)
    unread = reading.text(name, "unavailable") or reading.text("unavailable") if reading else None
    return Origin(kind, where, meaning, missing=unread or _NOT_TRACED, sources=sources)


_Chain = tuple[tuple[Origin, ...], Rule]


def _running(block: BlockInfo, host: HostDisk | None) -> dict[str, _Chain]:
    decision = block.decisions[0]
    allocation = [each.allocation for each in block.decisions]
    physical = [each.physical for each in block.decisions]
    # The values alone cannot tell two sources apart that have the same value.
    if decision.offset == decision.usage:
        allocation += [OFFSET, USAGE]
    if decision.physical == STAT and block.number("physical") == decision.usage:
        physical.append(USAGE)
    size = _own_look(block, host)

    def sources(names: list[str]) -> tuple[Origin, ...]:
        return tuple(
            size if name == STAT else _struct(block, name) for name in dict.fromkeys(names)
        )

    return {
        "capacity": (sources([CAPACITY]), Rule("always QEMU's virtual size")),
        "allocation": (sources(allocation), Rule(decision.why_allocation)),
        "physical": (sources(physical), Rule(decision.why_physical)),
    }


def _struct(block: BlockInfo, name: str) -> Origin:
    sources = tuple(_qmp(block.call, device, name) for device in block.devices)
    if not sources:
        sources = (Origin("qmp", "QEMU", _MEANING[name], missing=_NOT_TRACED),)
    return _step("struct", GATHER, block.stats, name, sources=sources)


def _qmp(call: Call, device: Device, name: str) -> Origin:
    readings = {
        CAPACITY: device.capacity,
        USAGE: device.usage,
        OFFSET: device.highest_offset,
    }
    meaning, found = _MEANING[name], readings[name]
    if found is None:
        return Origin("qmp", device.node.where, meaning, missing="QEMU did not report it")
    if name == USAGE and device.actual_size is None:
        meaning = "the size that the guest sees, because QEMU did not report the space used"
    return Origin(
        *("qmp", found.where, meaning, found.value, None, found.seq, found.path),
        sources=_in_qemu(call, device, name, found),
    )


def _in_qemu(call: Call, device: Device, name: str, answer: Quoted) -> tuple[Origin, ...]:
    """Return what QEMU took the number of its answer from, in a trace of QEMU, too."""
    qmp_id = answer.where.rpartition(" ")[2]
    if name == OFFSET:
        storage = device.node.text("parent", "node-name") or ""
        seen = in_qemu.highest_offset(call, qmp_id, storage, answer.value)
        where, meaning = f"QEMU's node {storage}", "its mark in QEMU's memory"
    elif name == USAGE:
        seen = in_qemu.blocks(call, qmp_id, device.node_name, answer.value)
        where = f"QEMU's node {device.node_name}"
        meaning = "st_blocks * 512, from QEMU's system call fstat"
    else:
        seen = None
    if seen is None:
        return ()
    return (Origin("qemu", where, meaning, answer.value, None, seen.seq, seen.path),)


def _own_look(block: BlockInfo, host: HostDisk | None) -> Origin:
    """Describe the size that libvirt asks the kernel for: not in QMP, but maybe in host facts."""
    files = {device.file for device in block.devices} or {host.path if host else None}
    file = files.pop() if len(files) == 1 else None
    where = f"read by libvirt from {file or 'the image'}"
    meaning = _SIZE[on_device(block, host)]
    if host is None or host.size is None:
        return Origin("host", where, meaning, missing=_THE_KERNEL)
    return Origin("host", where, f"{meaning}, by the host facts of this trace", host.size)


def _stopped(block: BlockInfo, host: HostDisk | None) -> dict[str, _Chain]:
    """The guest is off: libvirt opened the file or device itself, and read its header."""
    rule = Rule("the guest does not run, so libvirt read the image itself")
    size = _own_look(block, host)
    kind = on_device(block, host)
    header = "size in the image's header; for a raw image, its own size"
    allocation = Origin("host", size.where, _STOPPED_ALLOCATION[kind], missing=_THE_KERNEL)
    if kind is False and host is not None and host.allocated is not None:
        meaning = f"{_STOPPED_ALLOCATION[kind]}, by the host facts of this trace"
        allocation = Origin("host", size.where, meaning, host.allocated)
    return {
        "capacity": ((Origin("host", size.where, header, missing=_THE_KERNEL),), rule),
        "allocation": ((allocation,), rule),
        "physical": ((size,), rule),
    }
