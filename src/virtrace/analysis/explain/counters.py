"""What the counters of a disk count; texts in counters.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtrace.analysis.blockinfo import BlockInfo, read_block_info
from virtrace.analysis.explain.model import (
    Bytes,
    CallCase,
    Catalogue,
    EachCall,
    Explainer,
    Fact,
    Nanoseconds,
    Traced,
    failed,
)
from virtrace.analysis.quoted import Evidence, Quoted, state
from virtrace.analysis.spans import Call
from virtrace.trace.format import Json

_API = "virDomainBlockStatsFlags"


@dataclass(frozen=True)
class CountersCase(CallCase):
    """One answer about a disk. params: what it returned; None if it failed."""

    block: BlockInfo
    params: Quoted | None

    @property
    def subject(self) -> tuple[str, ...]:
        return self.block.domain, self.block.disk

    @property
    def names(self) -> Mapping[str, Json]:
        return {**super().names, "domain": self.block.domain, "disk": self.block.disk}

    @property
    def numbers(self) -> Mapping[str, int | None]:
        return {"reads": self._number("rd_operations"), "writes": self._number("wr_operations")}

    def _number(self, name: str) -> int | None:
        found = self.params.number(name) if self.params else None
        return found.value if found else None

    @property
    def facts(self) -> Sequence[Fact]:
        if self.params is None:
            return ()
        found = [self.params.number(name) for name in self.params.value]
        return [
            Fact(str(each.keys[-1]), _typed(each), "", each.seq, each.path)
            for each in found
            if each is not None
        ]

    def compared(self) -> Iterator[tuple[Quoted, Quoted]]:
        """Yield each counter with QEMU's."""
        device = self.block.device
        if self.params is None or device is None:
            return
        for name in self.params.value:
            ours = self.params.number(name)
            theirs = device.entry.number("stats", name.replace("_total_times", "_total_time_ns"))
            if ours is not None and theirs is not None:
                yield ours, theirs


def _typed(value: Quoted) -> int:
    number: int = value.value
    name = str(value.keys[-1])
    if name.endswith("_bytes"):
        return Bytes(number)
    return Nanoseconds(number) if name.endswith("_times") else number


def _reader(traced: Traced) -> EachCall[CountersCase]:
    def case(call: Call) -> CountersCase | None:
        root = call.root
        if root.name != _API:
            return None
        block = read_block_info(call, traced.seen)
        if call.failed:
            return CountersCase(call, block, None)
        if root.returned is None or root.exit_seq is None:
            return None
        params = Quoted(root.returned, root.name, root.exit_seq).get("params")
        # A caller asks twice: first for the number of counters.
        if params is None or not isinstance(params.value, dict) or "unavailable" in params.value:
            return None
        return CountersCase(call, block, params)

    return EachCall(case)


_CAUSES: Catalogue[CountersCase] = Catalogue(Path(__file__).with_name("counters.yaml"))
EXPLAINER = Explainer("counters", _CAUSES, _reader)


@_CAUSES.condition("contradiction")
def _contradiction(case: CountersCase) -> list[Evidence] | None:
    evidence = []
    for ours, theirs in case.compared():
        if ours.value != theirs.value:
            evidence += [state(ours, "libvirt returned another"), state(theirs, "than QEMU")]
    return evidence or None


_CAUSES.condition("error")(failed)


@_CAUSES.condition("counters")
def _counters(case: CountersCase) -> list[Evidence] | None:
    same = [state(theirs, f"QEMU's {theirs.keys[-1]}") for _, theirs in case.compared()]
    return same or None


@_CAUSES.condition("unknown")
def _unknown(case: CountersCase) -> list[Evidence]:
    return [Evidence(f"QEMU's device: {case.block.chosen_by}")]
