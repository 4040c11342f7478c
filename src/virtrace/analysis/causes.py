"""Why an answer of virDomainGetBlockInfo surprises: conditions here, texts in causes.yaml.

Each cause in causes.yaml has a function of its name here, which decides whether the cause holds
for a case, and on what evidence. A new cause needs an entry there and a function here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from virtrace.analysis.blockinfo import NUMBERS, BlockInfo
from virtrace.analysis.checks import Evidence, contradictions, quote
from virtrace.analysis.decision import OFFSET, USAGE, Decision
from virtrace.analysis.devices import Device
from virtrace.analysis.host import HostDisk
from virtrace.analysis.lineage import on_device


@dataclass(frozen=True)
class Cause:
    """An entry of causes.yaml; the head of that file describes the parts."""

    name: str
    says: str
    means: str
    do: tuple[tuple[str, str], ...] = ()
    versions: str | None = None
    either: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """A cause that holds. possible: another finding may be the true one instead."""

    cause: Cause
    evidence: tuple[Evidence, ...]
    possible: bool = False


@dataclass(frozen=True)
class Case:
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


Condition = Callable[[Case], "list[Evidence] | None"]
CONDITIONS: dict[str, Condition] = {}


def _cause(name: str, *, answered: bool = True) -> Callable[[Condition], Condition]:
    """Register a condition. answered: whether it is about calls that returned numbers."""

    def add(condition: Condition) -> Condition:
        @functools.wraps(condition)
        def guarded(case: Case) -> list[Evidence] | None:
            return condition(case) if case.block.answered is answered else None

        CONDITIONS[name] = guarded
        return guarded

    return add


@functools.cache
def catalogue() -> tuple[Cause, ...]:
    """Return all causes, best explanation first."""
    text = Path(__file__).with_name("causes.yaml").read_text(encoding="utf-8")
    return tuple(
        Cause(
            name=name,
            says=entry["says"],
            means=entry["means"],
            do=tuple(entry.get("do", {}).items()),
            versions=entry.get("versions"),
            either=tuple(_list(entry.get("either", []))),
            excludes=tuple(_list(entry.get("excludes", []))),
            links=tuple(entry.get("links", {}).items()),
        )
        for name, entry in yaml.safe_load(text).items()
    )


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def find_causes(case: Case) -> tuple[Finding, ...]:
    """Return the causes that hold, by rank; ``unknown`` if none does."""
    *causes, unknown = catalogue()
    evidence = {cause.name: CONDITIONS[cause.name](case) for cause in causes}
    held = [cause for cause in causes if evidence[cause.name] is not None]
    excluded = {name for cause in held for name in cause.excludes}
    held = [cause for cause in held if cause.name not in excluded]
    names = {cause.name for cause in held}
    return tuple(
        Finding(cause, tuple(evidence[cause.name] or ()), not names.isdisjoint(cause.either))
        for cause in held
    ) or (Finding(unknown, tuple(_what_is_known(case))),)


# Conditions. Each returns its evidence, or None if it does not hold.


@_cause("contradiction")
def _contradiction(case: Case) -> list[Evidence] | None:
    return contradictions(case.block) or None


@_cause("incomplete", answered=False)
def _incomplete(case: Case) -> list[Evidence] | None:
    if case.block.call.root.returned is not None:
        return None
    return [Evidence(problem) for problem in case.block.call.problems]


@_cause("empty-drive", answered=False)
def _empty_drive(case: Case) -> list[Evidence] | None:
    return _error_that_says(case, "does not currently have a source assigned")


@_cause("unknown-disk", answered=False)
def _unknown_disk(case: Case) -> list[Evidence] | None:
    return _error_that_says(case, "not assigned to domain")


@_cause("error", answered=False)
def _error(case: Case) -> list[Evidence] | None:
    return _error_that_says(case, "")


def _error_that_says(case: Case, words: str) -> list[Evidence] | None:
    """Find the error by its text: one code covers several errors. Needs untranslated messages."""
    if not case.block.call.failed:
        return None
    error = case.block.error
    if error is None:
        return None if words else [Evidence("the call failed, and the trace has no error of it")]
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
def _stopped_on_device(case: Case) -> list[Evidence] | None:
    allocation = case.block.number("allocation")
    equal = case.block.number("capacity") == allocation == case.block.number("physical")
    return _stopped(case) if equal and on_device(case.block, case.host) is not False else None


@_cause("stopped-on-file")
def _stopped_on_file(case: Case) -> list[Evidence] | None:
    return _stopped(case) if on_device(case.block, case.host) is not True else None


@_cause("stopped-image-on-device")
def _stopped_image_on_device(case: Case) -> list[Evidence] | None:
    none = case.block.number("allocation") == 0
    return _stopped(case) if none and on_device(case.block, case.host) is not False else None


def _stopped(case: Case) -> list[Evidence] | None:
    if case.block.running is not False:
        return None
    return [
        Evidence("the driver asked QEMU nothing, and returned: the guest does not run"),
        *_answers(case, "allocation", "physical"),
        *_host(case),
    ]


@_cause("no-actual-size")
def _no_actual_size(case: Case) -> list[Evidence] | None:
    device = case.device
    if device is None or device.image is None or device.actual_size is not None:
        return None
    return [
        quote(device.image, "QEMU reported no actual-size"),
        *_virtual_size(case),
        Evidence(f"QEMU's driver for the storage: {device.protocol}"),
    ]


@_cause("device-written-at-end")
def _device_written_at_end(case: Case) -> list[Evidence] | None:
    device, capacity = case.device, case.block.number("capacity")
    if not _on_device(device) or capacity is None or not _takes_offset(case, at_least=capacity):
        return None
    return [*_offset(case), *_virtual_size(case), *_host(case)]


@_cause("discarded")
def _discarded(case: Case) -> list[Evidence] | None:
    device = case.device
    discards = list(device.discards()) if device else []
    if not discards or not _takes_offset(case, more_than_usage=True):
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
def _internal_snapshot(case: Case) -> list[Evidence] | None:
    image = case.device.image if case.device else None
    snapshots = image.get("snapshots") if image else None
    count = len(list(snapshots.items())) if snapshots else 0
    if snapshots is None or not count:
        return None
    names = ", ".join(str(each.text("name")) for each in snapshots.items())
    return [quote(snapshots, f"snapshots inside the image: {names}"), *_usage(case)]


@_cause("qcow2-on-device")
def _qcow2_on_device(case: Case) -> list[Evidence] | None:
    device = case.device
    if device is None or device.format != "qcow2" or not _on_device(device):
        return None
    return [*_format(device), *_offset(case), *_host(case)]


@_cause("fully-allocated")
def _fully_allocated(case: Case) -> list[Evidence] | None:
    decision, capacity = case.decision, case.block.number("capacity")
    if decision is None or not capacity:
        return None
    if not capacity <= decision.usage == case.block.number("allocation"):
        return None
    return [*_usage(case), *_virtual_size(case), *_host(case)]


@_cause("nothing-written")
def _nothing_written(case: Case) -> list[Evidence] | None:
    decision = case.decision
    if decision is None or decision.offset or decision.usage:
        return None
    # For a device, QEMU never reports the space used, so only an offset of 0 tells something.
    if decision.offset is None and _on_device(case.device):
        return None
    return [*_usage(case), *_offset(case), *_host(case)]


@_cause("no-high-water-mark")
def _no_high_water_mark(case: Case) -> list[Evidence] | None:
    return None if _on_device(case.device) else _without_offset(case)


@_cause("no-high-water-mark-on-device")
def _no_high_water_mark_on_device(case: Case) -> list[Evidence] | None:
    return _without_offset(case) if _on_device(case.device) else None


def _without_offset(case: Case) -> list[Evidence] | None:
    decision, device = case.decision, case.device
    if decision is None or decision.offset is not None:
        return None
    if device is None or device.format != "raw" or device.actual_size is None:
        return None
    own = device.own_highest_offset
    if own is None:
        return None
    return [
        quote(device.node, "its entry has no parent, from which libvirt would read the offset"),
        quote(own, "offset of the node itself, which libvirt does not read"),
        *_usage(case),
        *_host(case),
    ]


@_cause("filter-node")
def _filter_node(case: Case) -> list[Evidence] | None:
    device = case.device
    if device is None or device.node.get("stats") is not None:
        return None
    return [quote(device.entry, "QEMU's statistics are those of a filter node above the image")]


@_cause("device-high-water-mark")
def _device_high_water_mark(case: Case) -> list[Evidence] | None:
    if not _on_device(case.device) or not _takes_offset(case):
        return None
    return [*_offset(case), *_host(case)]


@_cause("high-water-mark")
def _high_water_mark(case: Case) -> list[Evidence] | None:
    if _on_device(case.device) or not _takes_offset(case):
        return None
    return [*_offset(case), *_usage(case), *_host(case)]


@_cause("restarted")
def _restarted(case: Case) -> list[Evidence] | None:
    decision, device = case.decision, case.device
    if decision is None or decision.offset != 0 or not decision.usage:
        return None
    if device is not None and (device.is_qcow2_file or device.actual_size is None):
        return None
    return [*_offset(case), *_usage(case), *_host(case)]


@_cause("external-snapshot")
def _external_snapshot(case: Case) -> list[Evidence] | None:
    image = case.device.image if case.device else None
    below = image.get("full-backing-filename") or image.get("backing-filename") if image else None
    return [quote(below, f"the image below it: {below.value}"), *_usage(case)] if below else None


@_cause("qcow2")
def _qcow2(case: Case) -> list[Evidence] | None:
    device = case.device
    if device is None or not device.is_qcow2_file:
        return None
    return [*_format(device), *_usage(case), *_host(case)]


def _what_is_known(case: Case) -> Iterator[Evidence]:
    yield from _answers(case, *NUMBERS)
    yield from _offset(case)
    yield from _usage(case)


# Shared parts of conditions


def _on_device(device: Device | None) -> bool:
    return device is not None and device.is_block_device


def _takes_offset(case: Case, *, at_least: int = 0, more_than_usage: bool = False) -> bool:
    """Whether allocation is the highest offset written."""
    decision = case.decision
    return (
        decision is not None
        and decision.allocation == OFFSET
        and decision.allocation_bytes >= at_least
        and not (more_than_usage and decision.allocation_bytes <= decision.usage)
    )


def _virtual_size(case: Case) -> Iterator[Evidence]:
    found = case.device.capacity if case.device else None
    if found is not None:
        yield quote(found, "size that the guest sees")


def _usage(case: Case) -> Iterator[Evidence]:
    """Yield P, as QEMU reported it or, if the trace lacks that, from libvirt's struct."""
    device, stats = case.device, case.block.stats
    found = device.usage if device else stats.number(USAGE) if stats else None
    if found is not None:
        yield quote(found, "space used on the host")


def _offset(case: Case) -> Iterator[Evidence]:
    device, stats = case.device, case.block.stats
    found = device.highest_offset if device else stats.number(OFFSET) if stats else None
    if found is not None:
        yield quote(found, "highest offset written since QEMU started")


def _answers(case: Case, *names: str) -> Iterator[Evidence]:
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


def _host(case: Case) -> Iterator[Evidence]:
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
