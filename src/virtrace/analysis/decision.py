"""How libvirt decides the numbers of a running guest; the same in versions 5.6 to 12.8.

V is `virtual-size`. P is `actual-size`, or V if QEMU does not report that. W is the
`wr_highest_offset` of the node below the disk's node, valid only if there is such a node.
"""

from __future__ import annotations

from typing import NamedTuple

# The sources of numbers: fields of qemuBlockStats, or the kernel.
CAPACITY = "capacity"
USAGE = "physical"
OFFSET = "wr_highest_offset"
STAT = "stat"


class Decision(NamedTuple):
    """The sources that libvirt chose, and their values in bytes.

    allocation: OFFSET or USAGE.
    physical: USAGE or STAT.
    usage: P.
    offset: W; None if it is not valid.
    why_*: the reasons, in words.
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
        """None if libvirt asked the kernel, whose answer only the host knows."""
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
