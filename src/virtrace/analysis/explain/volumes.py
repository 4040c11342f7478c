"""What the sizes of storage pools and volumes are; texts in volumes.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis.explain.model import (
    Bytes,
    CallCase,
    Catalogue,
    EachCall,
    Explainer,
    Fact,
    failed,
)
from virtrace.analysis.explain.sources import returned_by
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call, Point
from virtrace.trace.format import Json

_POOL = "virStoragePoolGetInfo"
_VOLUMES = ("virStorageVolGetInfo", "virStorageVolGetInfoFlags")
# VIR_STORAGE_VOL_GET_PHYSICAL.
_PHYSICAL = 1
_FILE, _BLOCK = 0, 1
_INACTIVE = 0
# Of virStoragePoolType: those in a folder of a file system.
_FILE_SYSTEMS = frozenset({0, 1, 2})


@dataclass(frozen=True)
class VolumeCase(CallCase):
    """The sizes of a pool, or of a volume in it. info: the answer; None if it failed."""

    info: Quoted | None

    @property
    def of_pool(self) -> bool:
        return self.call.root.name == _POOL

    @property
    def is_physical(self) -> bool:
        """Whether the caller asked for the size in place of the allocation."""
        flags = self.call.root.arguments.get("flags")
        return type(flags) is int and bool(flags & _PHYSICAL)

    def number(self, name: str) -> Quoted | None:
        return self.info.number(name) if self.info else None

    def value(self, name: str) -> int | None:
        found = self.number(name)
        return found.value if found else None

    @property
    def kind(self) -> Quoted | None:
        """The pool's type, as libvirt has it."""
        for node in self.call.nodes():
            if isinstance(node, Point) and node.event.name == "pool":
                values = Quoted(node.event.values, "pool", node.event.seq)
                if values.text("name") == self.call.root.arguments.get("pool"):
                    return values.number("type")
        return None

    @property
    def subject(self) -> tuple[str, ...]:
        arguments = self.call.root.arguments
        names = ("pool",) if self.of_pool else ("pool", "volume")
        return tuple(str(arguments.get(name)) for name in names)

    @property
    def names(self) -> Mapping[str, Json]:
        arguments = self.call.root.arguments
        key = arguments.get("key")
        return {
            **super().names,
            "pool": self.subject[0],
            "volume": self.subject[-1],
            "file": key if isinstance(key, str) else None,
        }

    @property
    def numbers(self) -> Mapping[str, int | None]:
        found = {name: self.value(name) for name in ("capacity", "allocation", "available")}
        return {name: None if value is None else Bytes(value) for name, value in found.items()}

    @property
    def key(self) -> object:
        return super().key, self.is_physical

    @property
    def facts(self) -> Sequence[Fact]:
        shown = {
            "capacity": "of the file system or device" if self.of_pool else "what a guest sees",
            "allocation": "used" if self.of_pool else "space that it takes",
            "available": "free",
        }
        if self.is_physical:
            shown["allocation"] = "length of the file or device"
        return [
            Fact("physical" if self.is_physical and name == "allocation" else name,
                 Bytes(found.value), meaning, found.seq, found.path)
            for name, meaning in shown.items()
            if (found := self.number(name)) is not None
        ]  # fmt: skip


def _case(call: Call) -> VolumeCase | None:
    if call.root.name != _POOL and call.root.name not in _VOLUMES:
        return None
    return VolumeCase(call, None if call.failed else returned_by(call.root, "info"))


_CAUSES: Catalogue[VolumeCase] = Catalogue(Path(__file__).with_name("volumes.yaml"))
EXPLAINER = Explainer("volumes", _CAUSES, lambda _: EachCall(_case))


_CAUSES.condition("error")(failed)


@_CAUSES.condition("inactive")
def _inactive(case: VolumeCase) -> list[Evidence] | None:
    found = case.number("state")
    if not case.of_pool or found is None or found.value != _INACTIVE:
        return None
    return [state(found, "the pool's state")]


@_CAUSES.condition("file-system")
def _file_system(case: VolumeCase) -> list[Evidence] | None:
    kind = case.kind
    if not case.of_pool or kind is None or kind.value not in _FILE_SYSTEMS:
        return None
    return [state(kind, "the pool's type, 0 to 2 for a folder; libvirt asks statvfs")]


@_CAUSES.condition("of-backend")
def _of_backend(case: VolumeCase) -> list[Evidence] | None:
    kind = case.kind
    if not case.of_pool or kind is None or kind.value in _FILE_SYSTEMS:
        return None
    return [state(kind, "the pool's type")]


def _of_file(case: VolumeCase) -> bool:
    return not case.of_pool and case.value("type") == _FILE and case.value("allocation") is not None


def _sizes(case: VolumeCase) -> list[Evidence]:
    found = {"capacity": "capacity", "allocation": "st_blocks * 512"}
    if case.is_physical:
        found["allocation"] = "st_size"
    return [
        Evidence(f"{text} ({value.where})", value.value, value.seq, value.path)
        for name, text in found.items()
        if (value := case.number(name)) is not None
    ]


@_CAUSES.condition("physical")
def _physical(case: VolumeCase) -> list[Evidence] | None:
    return _sizes(case) if _of_file(case) and case.is_physical else None


@_CAUSES.condition("nothing-written")
def _nothing_written(case: VolumeCase) -> list[Evidence] | None:
    unused = _of_file(case) and not case.is_physical and case.value("allocation") == 0
    return _sizes(case) if unused else None


def _compared(case: VolumeCase) -> int | None:
    """Return how much more a file takes than a guest sees; None of anything else."""
    capacity, allocation = case.value("capacity"), case.value("allocation")
    if not _of_file(case) or case.is_physical or not capacity or not allocation:
        return None
    return allocation - capacity


@_CAUSES.condition("sparse")
def _sparse(case: VolumeCase) -> list[Evidence] | None:
    more = _compared(case)
    return _sizes(case) if more is not None and more < 0 else None


@_CAUSES.condition("full")
def _full(case: VolumeCase) -> list[Evidence] | None:
    return _sizes(case) if _compared(case) == 0 else None


@_CAUSES.condition("more")
def _more(case: VolumeCase) -> list[Evidence] | None:
    more = _compared(case)
    return _sizes(case) if more is not None and more > 0 else None


@_CAUSES.condition("device")
def _device(case: VolumeCase) -> list[Evidence] | None:
    found = case.number("type")
    if case.of_pool or found is None or found.value != _BLOCK:
        return None
    return [state(found, "the volume's type")]


@_CAUSES.condition("unknown")
def _unknown(_: VolumeCase) -> list[Evidence]:
    return []
