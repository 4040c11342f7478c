"""Why two answers about one disk differ, as far as their traces tell."""

from __future__ import annotations

from virtrace.analysis.decision import OFFSET
from virtrace.analysis.explain.disks import DiskCase


def why(a: DiskCase, b: DiskCase) -> str | None:
    """Return the reason in words, with the sides called A and B; None if the traces do not tell.

    a, b: cases whose answers differ.
    """
    if a.block.number("capacity") != b.block.number("capacity"):
        return "the size of the disk differs"
    return _one_way(a, b, "A", "B") or _one_way(b, a, "B", "A") or _other_value(a, b)


def _one_way(one: DiskCase, other: DiskCase, first: str, second: str) -> str | None:
    """Return what the second side lacks and the first has."""
    if one.block.running is True and other.block.running is False:
        there_libvirt = f"in {second}, where libvirt reads the image itself"
        return f"the guest runs in {first} but not {there_libvirt}"
    here, there = one.decision, other.decision
    if here is None or there is None:
        return None
    if _image(one) != _image(other) and None not in (*_image(one), *_image(other)):
        return f"the disk is {_named(one)} in {first}, {_named(other)} in {second}"
    if here.allocation != OFFSET:
        return None
    if there.offset is None:
        device = other.device
        parent_is_missing = device is not None and device.entry.get("parent") is None
        what = "`parent` is missing" if parent_is_missing else "QEMU reported no highest offset"
        return f"{what} in {second}, so the high-water mark is not used there"
    if there.offset == 0:
        what = f"nothing was written in {second} since QEMU opened the image"
        return f"{what}, so the high-water mark is not used there"
    return None


def _other_value(a: DiskCase, b: DiskCase) -> str | None:
    """Return the value that differs, if both sides took the same way."""
    here, there = a.decision, b.decision
    if here is None or there is None or here.allocation != there.allocation:
        return None
    if here.allocation == OFFSET and here.offset != there.offset:
        return "the farthest write since QEMU opened the image differs"
    if here.usage != there.usage:
        return "the space used on the host differs"
    return None


def _image(case: DiskCase) -> tuple[str | None, str | None]:
    device = case.device
    return (device.format, device.protocol) if device else (None, None)


def _named(case: DiskCase) -> str:
    format_, protocol = _image(case)
    return f"{format_} on QEMU's driver {protocol}"
