"""The host's facts about a disk, if the trace was recorded with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from virtrace import markup
from virtrace.trace.format import HostRecord, Json, Record, is_unavailable


@dataclass(frozen=True)
class HostDisk:
    """A `host` record of the trace; docs/trace-format.md describes it."""

    record: HostRecord

    @property
    def path(self) -> str | None:
        """Path of the file or device, as the daemon sees it."""
        found = self.record.get("path")
        return found if isinstance(found, str) else None

    @property
    def is_block_device(self) -> bool | None:
        kind = self._stat("type")
        return None if kind is None else bool(kind == "block device")

    @property
    def size(self) -> int | None:
        """Size in bytes: st_size of a file, the size of a block device."""
        return self._number("size_bytes")

    @property
    def allocated(self) -> int | None:
        """Space used, in bytes: st_blocks * 512; meaningless for a block device."""
        return self._number("allocated_bytes")

    @property
    def file_system(self) -> str | None:
        found = self.record.get("file_system")
        return found if isinstance(found, str) else None

    @property
    def thin_volume(self) -> Record | None:
        """LVM's facts about a thin logical volume; None if it is none."""
        found = self.record.get("lvm")
        return found if isinstance(found, dict) and found.get("segtype") == "thin" else None

    @property
    def alias(self) -> str | None:
        """Name of the guest's device in libvirt; only the XML of a running guest has it."""
        xml = self.record.get("xml")
        if not isinstance(xml, str):
            return None
        try:
            alias = markup.parse_xml(xml).find("alias")
        except ValueError:
            return None
        return None if alias is None else alias.get("name")

    def _stat(self, key: str) -> Json:
        stat = self.record.get("stat")
        return stat.get(key) if isinstance(stat, dict) and not is_unavailable(stat) else None

    def _number(self, key: str) -> int | None:
        found = self._stat(key)
        return found if type(found) is int else None


def find_disk(records: Iterable[HostRecord], domain: str, disk: str) -> HostDisk | None:
    """Return the last record about this disk."""
    found = [each for each in records if (each.get("domain"), each.get("disk")) == (domain, disk)]
    return HostDisk(found[-1]) if found else None
