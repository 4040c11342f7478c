"""Why the three sizes of a disk surprise: conditions here, texts in disks.yaml.

Each cause in disks.yaml has a function of its name here, which decides whether the cause holds for
a case, and on what evidence. A new cause needs an entry there and a function here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtrace.analysis.blockinfo import NUMBERS, BlockInfo, read_block_info
from virtrace.analysis.checks import contradictions
from virtrace.analysis.decision import OFFSET, USAGE, Decision
from virtrace.analysis.devices import Device
from virtrace.analysis.explain import model
from virtrace.analysis.explain.messages import no_return
from virtrace.analysis.explain.model import (
    Bytes,
    Catalogue,
    Condition,
    EachCall,
    Explainer,
    Explanation,
    Traced,
)
from virtrace.analysis.host import HostDisk, find_disk
from virtrace.analysis.lineage import on_device, trace_back
from virtrace.analysis.qmp import Exchange
from virtrace.analysis.quoted import Evidence, quote
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json
from virtrace.trace.roles import DISK_SIZES


@dataclass(frozen=True)
class DiskCase(model.Case):
    """A call, with the host's facts about its disk."""

    block: BlockInfo
    host: HostDisk | None = None

    @functools.cached_property
    def device(self) -> Device | None:
        """The disk, or any candidate if QEMU reported the same values for all candidates."""
        devices = self.block.devices
        same = {(each.format, each.protocol, each.sizes()) for each in devices}
        return devices[0] if len(same) == 1 else None

    @property
    def file(self) -> str | None:
        """Path of the disk's file or device on the host."""
        told = self.device.file if self.device else None
        return told or (self.host.path if self.host else None)

    @property
    def decision(self) -> Decision | None:
        return self.block.decisions[0] if self.block.decisions else None

    @property
    def unanswered(self) -> Exchange | None:
        """The command without a reply, if the call waited for one."""
        asked = [each for each in self.block.call.nodes() if isinstance(each, Exchange)]
        return asked[-1] if asked and asked[-1].is_awaited else None

    @property
    def knows_usage(self) -> bool:
        """Whether QEMU reported the space used, and it is not the size in place of it."""
        if self.device is not None:
            return self.device.actual_size is not None and not self.device.is_block_device
        return self.decision is not None and self.decision.usage != self.block.number("capacity")

    @property
    def subject(self) -> tuple[str, ...]:
        return self.block.domain, self.block.disk

    @property
    def names(self) -> Mapping[str, Json]:
        return {
            "domain": self.block.domain,
            "disk": self.block.disk,
            "file": self.file,
            "format": self.device.format if self.device else None,
            "command": self.unanswered.command if self.unanswered else None,
            "error": self.block.error.values.get("message") if self.block.error else None,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        decision = self.decision
        found = {
            **{name: self.block.number(name) for name in NUMBERS},
            "usage": decision.usage if decision else None,
            "offset": decision.offset if decision else None,
        }
        return {name: None if number is None else Bytes(number) for name, number in found.items()}

    @property
    def key(self) -> object:
        return (
            self.subject,
            tuple(self.block.number(name) for name in NUMBERS),
            str(self.names["error"]),
            self.decision,
        )

    @property
    def note(self) -> str | None:
        names = dict.fromkeys(device.name for device in self.block.devices)
        return f"QEMU's device is {' or '.join(names)}: {self.block.chosen_by}" if names else None


_CAUSES: Catalogue[DiskCase] = Catalogue(Path(__file__).with_name("disks.yaml"))


def _cause(
    name: str, *, answered: bool = True
) -> Callable[[Condition[DiskCase]], Condition[DiskCase]]:
    """Register a condition. answered: whether it is about calls that returned numbers."""

    def add(condition: Condition[DiskCase]) -> Condition[DiskCase]:
        @functools.wraps(condition)
        def guarded(case: DiskCase) -> list[Evidence] | None:
            return condition(case) if case.block.answered is answered else None

        return _CAUSES.condition(name)(guarded)

    return add


def _reader(traced: Traced) -> EachCall[DiskCase]:
    def case(call: Call) -> DiskCase | None:
        if call.root.role != DISK_SIZES:
            return None
        block = read_block_info(call, traced.seen)
        told = find_disk(traced.host.disks, block.domain, block.disk)
        if told is not None and told.alias is not None:
            block = read_block_info(call, traced.seen, told.alias)
        return DiskCase(block, told)

    return EachCall(case)


EXPLAINER = Explainer(
    "disk-sizes",
    _CAUSES,
    _reader,
    lambda case: trace_back(case.block, case.host),
)


def of_disks(explanations: Iterable[Explanation[Any]]) -> list[Explanation[DiskCase]]:
    """Return those that are about the sizes of a disk."""
    return [each for each in explanations if isinstance(each.case, DiskCase)]


# Conditions. Each returns its evidence, or None if it does not hold.


@_cause("contradiction")
def _contradiction(case: DiskCase) -> list[Evidence] | None:
    return contradictions(case.block) or None


@_cause("incomplete", answered=False)
def _incomplete(case: DiskCase) -> list[Evidence] | None:
    return no_return(case.block.call)


@_cause("empty-drive", answered=False)
def _empty_drive(case: DiskCase) -> list[Evidence] | None:
    return _error_that_says(case, "does not currently have a source assigned")


@_cause("unknown-disk", answered=False)
def _unknown_disk(case: DiskCase) -> list[Evidence] | None:
    return _error_that_says(case, "not assigned to domain")


@_cause("qemu-gone", answered=False)
def _qemu_gone(case: DiskCase) -> list[Evidence] | None:
    call, asked = case.block.call, case.unanswered
    if not (call.failed and call.complete) or case.block.error is not None or asked is None:
        return None
    return [Evidence(f"no reply came to {asked.command} {asked.id}", seq=asked.send.seq)]


@_cause("error-not-seen", answered=False)
def _error_not_seen(case: DiskCase) -> list[Evidence] | None:
    return [] if case.block.call.failed and case.block.error is None else None


@_cause("error", answered=False)
def _error(case: DiskCase) -> list[Evidence] | None:
    return _error_that_says(case, "")


def _error_that_says(case: DiskCase, words: str) -> list[Evidence] | None:
    """Find the error by its text: one code covers several errors. Needs untranslated messages."""
    if not case.block.call.failed:
        return None
    error = case.block.error
    if error is None:
        return None
    message = error.values.get("message")
    if words and not (isinstance(message, str) and words in message):
        return None
    evidence = [Evidence(f"{message}", seq=error.seq, path=".message")]
    place = case.block.raised
    if place is not None:
        said = place.values
        where = f"{said.get('function')}, {said.get('file')}:{said.get('line')}"
        evidence.append(Evidence(f"raised in {where}", seq=place.seq))
    return evidence


@_cause("stopped-on-device")
def _stopped_on_device(case: DiskCase) -> list[Evidence] | None:
    allocation = case.block.number("allocation")
    equal = case.block.number("capacity") == allocation == case.block.number("physical")
    return _stopped(case) if equal and on_device(case.block, case.host) is not False else None


@_cause("stopped-on-file")
def _stopped_on_file(case: DiskCase) -> list[Evidence] | None:
    return _stopped(case) if on_device(case.block, case.host) is not True else None


@_cause("stopped-image-on-device")
def _stopped_image_on_device(case: DiskCase) -> list[Evidence] | None:
    none = case.block.number("allocation") == 0
    return _stopped(case) if none and on_device(case.block, case.host) is not False else None


def _stopped(case: DiskCase) -> list[Evidence] | None:
    if case.block.running is not False:
        return None
    return [
        Evidence("the driver asked QEMU nothing, and returned: the guest does not run"),
        *_answers(case, "allocation", "physical"),
        *_host(case),
    ]


@_cause("no-actual-size")
def _no_actual_size(case: DiskCase) -> list[Evidence] | None:
    device = case.device
    if device is None or device.image is None or device.actual_size is not None:
        return None
    return [
        quote(device.image, "QEMU reported no actual-size"),
        *_virtual_size(case),
        Evidence(f"QEMU's driver for the storage: {device.protocol}"),
    ]


@_cause("device-written-at-end")
def _device_written_at_end(case: DiskCase) -> list[Evidence] | None:
    if not _on_device(case.device) or not _all_equal(case) or not _takes_offset(case):
        return None
    return [*_offset(case), *_virtual_size(case), *_host(case)]


@_cause("discarded")
def _discarded(case: DiskCase) -> list[Evidence] | None:
    device = case.device
    discards = list(device.discards()) if device else []
    if not discards or not case.knows_usage or not _takes_offset(case, more_than_usage=True):
        return None
    return [
        *(
            Evidence(
                f"QEMU counted discards: {each.value} ({each.where})", None, each.seq, each.path
            )
            for each in discards
        ),
        *_offset(case),
        *_usage(case),
        *_host(case),
    ]


@_cause("internal-snapshot")
def _internal_snapshot(case: DiskCase) -> list[Evidence] | None:
    image = case.device.image if case.device else None
    snapshots = image.get("snapshots") if image else None
    count = len(list(snapshots.items())) if snapshots else 0
    if snapshots is None or not count or not case.knows_usage:
        return None
    names = ", ".join(str(each.text("name")) for each in snapshots.items())
    return [quote(snapshots, f"snapshots inside the image: {names}"), *_usage(case)]


@_cause("qcow2-on-device")
def _qcow2_on_device(case: DiskCase) -> list[Evidence] | None:
    device = case.device
    if device is None or device.format != "qcow2" or not _on_device(device):
        return None
    return [*_format(device), *_offset(case), *_host(case)]


@_cause("fully-allocated")
def _fully_allocated(case: DiskCase) -> list[Evidence] | None:
    return _allocated(case) if _all_equal(case) else None


@_cause("fully-allocated-and-more")
def _fully_allocated_and_more(case: DiskCase) -> list[Evidence] | None:
    return None if _all_equal(case) else _allocated(case)


def _allocated(case: DiskCase) -> list[Evidence] | None:
    decision, capacity = case.decision, case.block.number("capacity")
    if decision is None or not capacity:
        return None
    if not capacity <= decision.usage == case.block.number("allocation"):
        return None
    return [*_usage(case), *_virtual_size(case), *_host(case)]


@_cause("allocated-and-written-at-end")
def _allocated_and_written_at_end(case: DiskCase) -> list[Evidence] | None:
    decision, capacity = case.decision, case.block.number("capacity")
    if decision is None or not capacity or not case.knows_usage:
        return None
    if decision.usage in range(capacity) or decision.usage == decision.offset:
        return None
    if not _takes_offset(case, at_least=capacity):
        return None
    return [*_offset(case), *_usage(case), *_virtual_size(case), *_host(case)]


@_cause("nothing-written")
def _nothing_written(case: DiskCase) -> list[Evidence] | None:
    decision = case.decision
    if decision is None or decision.offset or decision.usage:
        return None
    # For a device, QEMU never reports the space used, so only an offset of 0 tells something.
    if decision.offset is None and _on_device(case.device):
        return None
    return [*_usage(case), *_offset(case), *_host(case)]


@_cause("no-high-water-mark")
def _no_high_water_mark(case: DiskCase) -> list[Evidence] | None:
    return None if _on_device(case.device) else _without_offset(case)


@_cause("no-high-water-mark-on-device")
def _no_high_water_mark_on_device(case: DiskCase) -> list[Evidence] | None:
    return _without_offset(case) if _on_device(case.device) else None


def _without_offset(case: DiskCase) -> list[Evidence] | None:
    decision, device = case.decision, case.device
    if decision is None or decision.offset is not None:
        return None
    if device is None or device.format != "raw" or device.actual_size is None:
        return None
    own = device.own_highest_offset
    if own is None:
        return None
    if case.block.number("physical") == decision.usage != case.block.number("capacity"):
        # Libvirt could not read the size itself, and took this.
        return None
    return [
        quote(device.node, "its entry has no parent, from which libvirt would read the offset"),
        quote(own, "offset of the node itself, which libvirt does not read"),
        *_usage(case),
        *_host(case),
    ]


@_cause("filter-node")
def _filter_node(case: DiskCase) -> list[Evidence] | None:
    device = case.device
    if device is None or device.node.get("stats") is not None or not case.knows_usage:
        return None
    if case.decision is None or case.decision.allocation != USAGE:
        return None
    return [quote(device.entry, "QEMU's statistics are those of a filter node above the image")]


@_cause("device-high-water-mark")
def _device_high_water_mark(case: DiskCase) -> list[Evidence] | None:
    if not _on_device(case.device) or not _takes_offset(case):
        return None
    return [*_offset(case), *_host(case)]


@_cause("mark-equals-usage")
def _mark_equals_usage(case: DiskCase) -> list[Evidence] | None:
    decision = case.decision
    if decision is None or decision.offset != decision.usage or not case.knows_usage:
        return None
    return _high_water_mark(case)


@_cause("mark-without-usage")
def _mark_without_usage(case: DiskCase) -> list[Evidence] | None:
    return None if case.knows_usage else _high_water_mark(case)


@_cause("high-water-mark")
def _high_water_mark(case: DiskCase) -> list[Evidence] | None:
    if _on_device(case.device) or not _takes_offset(case):
        return None
    return [*_offset(case), *_usage(case), *_host(case)]


@_cause("restarted")
def _restarted(case: DiskCase) -> list[Evidence] | None:
    decision, device = case.decision, case.device
    if decision is None or decision.offset != 0 or not decision.usage:
        return None
    if not case.knows_usage or (device is not None and device.is_qcow2_file):
        return None
    return [*_offset(case), *_usage(case), *_host(case)]


@_cause("external-snapshot")
def _external_snapshot(case: DiskCase) -> list[Evidence] | None:
    image = case.device.image if case.device else None
    below = image.get("full-backing-filename") or image.get("backing-filename") if image else None
    if below is None or not case.knows_usage:
        return None
    return [quote(below, f"the image below it: {below.value}"), *_usage(case)]


@_cause("qcow2")
def _qcow2(case: DiskCase) -> list[Evidence] | None:
    device = case.device
    if device is None or not device.is_qcow2_file or not case.knows_usage:
        return None
    return [*_format(device), *_usage(case), *_host(case)]


@_CAUSES.condition("unknown")
def _unknown(case: DiskCase) -> list[Evidence] | None:
    return [*_answers(case, *NUMBERS), *_offset(case), *_usage(case)]


# Shared parts of conditions


def _on_device(device: Device | None) -> bool:
    return device is not None and device.is_block_device


def _all_equal(case: DiskCase) -> bool:
    return len({case.block.number(name) for name in NUMBERS}) == 1


def _takes_offset(case: DiskCase, *, at_least: int = 0, more_than_usage: bool = False) -> bool:
    """Whether allocation is the highest offset written."""
    decision = case.decision
    return (
        decision is not None
        and decision.allocation == OFFSET
        and decision.allocation_bytes >= at_least
        and not (more_than_usage and decision.allocation_bytes <= decision.usage)
    )


def _virtual_size(case: DiskCase) -> Iterator[Evidence]:
    found = case.device.capacity if case.device else None
    if found is not None:
        yield quote(found, "size that the guest sees")


def _usage(case: DiskCase) -> Iterator[Evidence]:
    """Yield P, as QEMU reported it or, if the trace lacks that, from libvirt's struct."""
    device, stats = case.device, case.block.stats
    found = device.usage if device else stats.number(USAGE) if stats else None
    if found is not None:
        yield quote(found, "space used on the host")


def _offset(case: DiskCase) -> Iterator[Evidence]:
    device, stats = case.device, case.block.stats
    found = device.highest_offset if device else stats.number(OFFSET) if stats else None
    if found is not None:
        yield quote(found, "highest offset written since QEMU opened the image")


def _answers(case: DiskCase, *names: str) -> Iterator[Evidence]:
    for name in names:
        found = case.block.info.number(name) if case.block.info else None
        if found is not None:
            yield quote(found, name)


def _format(device: Device) -> Iterator[Evidence]:
    named = device.image.get("format") if device.image else None
    if named is not None:
        yield quote(named, f"format {named.value} on QEMU's driver {device.protocol}")


# File systems on which st_blocks is not the space that a file uses on the disk.
_ODD_BLOCKS = frozenset({"nfs", "btrfs", "zfs", "bcachefs"})


def _host(case: DiskCase) -> Iterator[Evidence]:
    """Yield the facts of the host, if they were recorded."""
    host = case.host
    if host is None:
        return
    if host.size is not None:
        yield Evidence(
            f"host: size of the {'device' if host.is_block_device else 'file'}", host.size
        )
    if host.thin_volume is not None:
        used = host.thin_volume.get("data_percent")
        yield Evidence(f"host: a thin logical volume, of which {used} % are used")
    if host.is_block_device:
        return
    if host.allocated is not None:
        yield Evidence("host: space used by the file", host.allocated)
    if host.file_system is not None:
        odd = host.file_system in _ODD_BLOCKS
        also = ", which delays, compresses or shares blocks" if odd else ""
        yield Evidence(f"host: file system {host.file_system}{also}")
