"""Calls of virDomainGetBlockInfo built event by event, for what the lab cannot make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support import samples
from virtrace.analysis.explain.disks import EXPLAINER, DiskCase
from virtrace.analysis.explain.model import Case, Explainer, Explanation, Traced
from virtrace.analysis.explain.trace import Explained, explain_calls
from virtrace.analysis.spans import Call, CallBuilder
from virtrace.report.explanation import fill_text
from virtrace.trace.format import HostRecord, ProbeRecord, unavailable
from virtrace.trace.reader import HostSaid

API = "virDomainGetBlockInfo"
DRIVER = "qemuDomainGetBlockInfo"
GATHER = "qemuDomainBlocksStatsGather"
GIB = 1 << 30
FOUND: list[ProbeRecord] = [
    {
        "name": name,
        "kind": "point" if name == "qmp.send" else "span",
        "role": None,
        "module": None,
        "offset": None,
        "level": "symbol",
        "why": None,
    }
    for name in (API, DRIVER, GATHER, "qmp.send")
]


@dataclass
class Disk:
    """A disk as QEMU describes it; offset None: without a node below, as of libvirt 9.10."""

    capacity: int = GIB
    usage: int | None = 4096
    offset: int | None = 0
    format: str = "raw"
    protocol: str = "file"
    file: str = "/images/vda.img"
    alias: str = "virtio-disk0"
    stats: dict[str, int] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)

    def entry(self) -> dict[str, Any]:
        qdev = f"/machine/peripheral/{self.alias}/virtio-backend"
        entry = {"device": "", "qdev": qdev, **self.node_entry()}
        return entry

    def node_entry(self) -> dict[str, Any]:
        counters = {"rd_operations": 1, "wr_operations": 2, "wr_highest_offset": 7, **self.stats}
        entry: dict[str, Any] = {"node-name": self.alias, "stats": counters}
        if self.offset is not None:
            below = {"wr_highest_offset": self.offset}
            entry["parent"] = {"node-name": f"{self.alias}-storage", "stats": below}
        return entry

    def nodes(self) -> list[dict[str, Any]]:
        sizes: dict[str, Any] = {"virtual-size": self.capacity, "filename": self.file}
        if self.usage is not None:
            sizes["actual-size"] = self.usage
        image = {**sizes, "format": self.format, **self.image}
        if self.offset is None:
            return [{"node-name": self.alias, "drv": self.protocol, "image": image}]
        below = {"node-name": f"{self.alias}-storage", "drv": self.protocol, "image": sizes}
        return [{"node-name": self.alias, "drv": self.format, "image": image}, below]

    def libvirts(self) -> dict[str, Any]:
        """The qemuBlockStats that libvirt makes of it."""
        return {
            "rd_req": 1,
            "wr_req": 2,
            "capacity": self.capacity,
            "physical": self.capacity if self.usage is None else self.usage,
            "wr_highest_offset": self.offset or 0,
            "wr_highest_offset_valid": self.offset is not None,
        }


def numbers(capacity: int, allocation: int, physical: int) -> dict[str, int]:
    return {"capacity": capacity, "allocation": allocation, "physical": physical}


def call(
    info: Any,
    disks: list[Disk] | None,
    *,
    stats: dict[str, Any] | None = None,
    driver_info: Any = None,
    disk: str = "vda",
    result: int = 0,
) -> Call:
    """One that returned. disks: what QEMU told; None where it was not asked."""
    recorder = samples.Recorder()
    names = {"domain": "vm1", "disk": disk, "flags": 0}
    place: dict[str, Any] = {"call": 1}
    recorder.add("enter", API, span=1, values=names, **place)
    recorder.add("enter", DRIVER, span=2, parent=1, values=names, **place)
    if disks is not None:
        recorder.add("enter", GATHER, span=3, parent=2, values={"disk": disk}, **place)
        entries = [each.entry() for each in disks]
        nodes = [node for each in disks for node in each.nodes()]
        exchanges = [
            samples.qmp("query-blockstats", 1, entries),
            samples.qmp("query-blockstats", 2, [], **{"query-nodes": True}),
            samples.qmp("query-named-block-nodes", 3, nodes, flat=True),
        ]
        for sent, received in exchanges:
            recorder.add("point", "qmp.send", parent=3, values=sent, **place)
            recorder.add("point", "qmp.reply", parent=3, values=received, **place)
        told = unavailable("not proven") if stats is None else stats
        returned = {"result": 8, "stats": told}
        recorder.add("exit", GATHER, span=3, parent=2, values=returned, **place)
    driver = {"result": result, "info": info if driver_info is None else driver_info}
    recorder.add("exit", DRIVER, span=2, parent=1, values=driver, **place)
    recorder.add("exit", API, span=1, values={"result": result, "info": info}, **place)
    return built(recorder)


def built(recorder: samples.Recorder) -> Call:
    builder = CallBuilder()
    calls = [done for event in recorder.events if (done := builder.feed(event))]
    [only] = calls + builder.finish()
    return only


def explain(
    calls: Iterable[Call], probes: Sequence[ProbeRecord], host: Sequence[HostRecord] = ()
) -> Explained[DiskCase]:
    return explain_calls(EXPLAINER, calls, Traced(probes, HostSaid([*host], [])))


def explained(one: Call, host: Any = None) -> Explanation[DiskCase]:
    [explanation] = explain([one], FOUND, [host] if host else [])
    return explanation


def causes(one: Call, host: dict[str, Any] | None = None) -> list[str]:
    return [finding.cause.name for finding in explained(one, host).findings]


def host_facts(**facts: Any) -> dict[str, Any]:
    """A `host` record of vm1 vda in which only the facts given are available."""
    missing = unavailable("not asked")
    return {
        "type": "host",
        "collected": "2026-11-22T10:30:00+00:00",
        "domain": "vm1",
        "disk": "vda",
        "path": "/images/vda.img",
        **dict.fromkeys(("xml", "stat", "file_system", "image_info", "lvm"), missing),
        **facts,
    }


def causes_and_answer(explainer: Explainer[Any], case: Case) -> tuple[list[str], str]:
    """The names of the causes that hold, and what the first one says; its other texts are whole."""
    findings = explainer.causes.find(case)
    for text, _ in findings[0].cause.do:
        assert fill_text(text, case, command=True)
    assert fill_text(findings[0].cause.means, case)
    return [finding.cause.name for finding in findings], fill_text(findings[0].cause.says, case)
