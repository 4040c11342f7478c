"""Whether an answer follows from the values of QEMU and of libvirt's struct in the same call."""

from __future__ import annotations

from collections.abc import Iterator

from virtrace.analysis.blockinfo import (
    API,
    DRIVER,
    NUMBERS,
    BlockInfo,
    differences,
    target_index,
)
from virtrace.analysis.quoted import Evidence, Quoted, quote


def contradictions(block: BlockInfo) -> list[Evidence]:
    """Return the contradictions in a call that returned numbers."""
    assert block.info is not None
    return [
        *_driver_and_api(block, block.info),
        *_struct_and_qemu(block),
        *_capacity(block, block.info),
        *_decision(block, block.info),
        *_lines(block),
    ]


def _driver_and_api(block: BlockInfo, info: Quoted) -> Iterator[Evidence]:
    for number in NUMBERS:
        answer = info.number(number)
        driver = block.driver_info.number(number) if block.driver_info else None
        if driver and answer and driver.value != answer.value:
            yield quote(answer, f"{API} returned another {number}")
            yield quote(driver, f"than {DRIVER}")


def _struct_and_qemu(block: BlockInfo) -> Iterator[Evidence]:
    device = block.device
    if device is None:
        return
    for libvirt, qemu in () if block.stats is None else differences(block.stats, device):
        yield quote(libvirt, "libvirt's struct does not hold")
        yield quote(qemu, "what QEMU reported")
    target, named = target_index(block.disk), device.index
    if target is not None and named is not None and target != named:
        yield quote(device.entry, f"{block.disk} should not be {device.name}")


def _capacity(block: BlockInfo, info: Quoted) -> Iterator[Evidence]:
    answer = info.number("capacity")
    told = block.stats.number("capacity") if block.stats else None
    told = told or (block.device.capacity if block.device else None)
    if answer and told and answer.value != told.value:
        yield quote(answer, "capacity is not")
        yield quote(told, "the virtual size")


def _decision(block: BlockInfo, info: Quoted) -> Iterator[Evidence]:
    if not block.decisions or block.follows(block.decisions[0]):
        return
    decision = block.decisions[0]
    for number, expected, why in (
        ("allocation", decision.allocation_bytes, decision.why_allocation),
        ("physical", decision.physical_bytes, decision.why_physical),
    ):
        answer = info.number(number)
        if answer and expected not in (None, answer.value):
            yield quote(answer, f"{number} should be {expected}, as {why}")


def _lines(block: BlockInfo) -> Iterator[Evidence]:
    """A running guest's driver sets each number once, to what the decision leads to."""
    if not block.decisions:
        return
    decision = block.decisions[0]
    for number, why in (
        ("allocation", decision.why_allocation),
        ("physical", decision.why_physical),
    ):
        every = block.seen(number)
        for seen in every if len(every) > 1 else ():
            text = f"{number} changed {len(every)} times, not once ({why}): {seen.place}"
            yield Evidence(text, seen.now.value, seen.now.seq, seen.now.path)
