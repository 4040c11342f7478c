"""How libvirt decides the numbers of a running guest; the same from 5.6 to 12.8.

V is `virtual-size`; P `actual-size`, or V where QEMU does not tell it; W the
`wr_highest_offset` of the node below the disk's, valid only where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a number is taken from: fields of qemuBlockStats, or the kernel.
CAPACITY = "capacity"
USAGE = "physical"
OFFSET = "wr_highest_offset"
STAT = "stat"


@dataclass(frozen=True)
class Decision:
    """allocation: one of OFFSET and USAGE. physical: one of USAGE and STAT.

    usage: P. offset: W, None where it is not valid. why_*: in words.
    """

    usage: int
    offset: int | None
    allocation: str
    physical: str
    why_allocation: str
    why_physical: str

    @property
    def allocation_bytes(self) -> int:
        return self.usage if self.allocation == USAGE else self.offset or 0

    @property
    def physical_bytes(self) -> int | None:
        """None where the kernel was asked, which only the host knows the answer of."""
        return self.usage if self.physical == USAGE else None


def decide(usage: int, offset: int | None, is_qcow2_file: bool) -> Decision:
    if offset is None:
        allocation, why = USAGE, "QEMU reported no highest offset, so libvirt took the space used"
    elif is_qcow2_file:
        allocation, why = USAGE, "the source is a qcow2 file, so libvirt took the space used"
    elif offset == 0:
        allocation, why = USAGE, "the highest offset was 0, so libvirt took the space used"
    else:
        allocation, why = OFFSET, "QEMU reported a highest offset, and the source is no qcow2 file"
    if usage == 0:
        physical, then = STAT, "the space used was 0, so libvirt read the size itself"
    elif allocation == USAGE or offset == usage:
        physical, then = STAT, "allocation was the space used, so libvirt read the size itself"
    else:
        physical, then = USAGE, "allocation was not the space used, so libvirt took the space used"
    return Decision(usage, offset, allocation, physical, why, then)
