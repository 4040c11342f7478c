"""A small trace of the blockinfo recipe, as the engine writes it, for the unit tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virtrace.trace import roles
from virtrace.trace.format import Event
from virtrace.trace.upgrade import UpgradedEvents

MON = "0x7f2c5800b6a0"
GIB2 = 2147483648
INFO = {"capacity": GIB2, "allocation": 32870912, "physical": 1507328}
STATS = {
    "rd_req": 712,
    "rd_bytes": 17435136,
    "wr_req": 130,
    "wr_bytes": 418816,
    "rd_total_times": 527027278,
    "wr_total_times": 86798718,
    "flush_req": 20,
    "flush_total_times": 94396427,
    "capacity": GIB2,
    "physical": 1507328,
    "wr_highest_offset": 32870912,
    "wr_highest_offset_valid": True,
    "write_threshold": 0,
}
NO_DEBUG_INFO = "static function, and there is no debug info for libvirt_driver_qemu.so"

ROLES = {"virDomainGetBlockInfo": roles.DISK_SIZES}

# Any: tests make records that no type allows.
HEADER: Any = {
    "type": "header",
    "format": "virtrace-trace",
    "version": 2,
    "started": "2026-11-22T10:30:00.123456+00:00",
    "clock": {"source": "CLOCK_MONOTONIC", "start_ns": 123456789},
    "tool": {
        "virtrace": "0.1.0",
        "engine": {"name": "gdb", "version": "13.1"},
        "python": "3.11.2",
    },
    "target": {
        "pid": 1234,
        "exe": "/usr/sbin/libvirtd",
        "program": {"name": "libvirt", "version": "9.0.0"},
        "modules": [
            {
                "path": "/usr/lib/x86_64-linux-gnu/libvirt.so.0.9000.0",
                "build_id": "ab03f1c2e4d5a6b7c8d90123456789abcdef0123",
                "base": "0x7f2c60000000",
            },
            {
                "path": "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/"
                "libvirt_driver_qemu.so",
                "build_id": None,
                "base": "0x7f2c5f000000",
            },
        ],
    },
    "host": {
        "machine": "x86_64",
        "kernel": "6.1.0-18-amd64",
        "system": "Debian GNU/Linux 12 (bookworm)",
    },
    "recipe": {
        "virtrace": 1,
        "name": "blockinfo",
        "try": "virsh domblkinfo DOMAIN DISK",
        "points": [{"name": name, "json": "text"} for name in ("qmp.send", "qmp.reply")],
    },
    "probes": [
        {
            "name": name,
            "kind": "point" if name in ("qmp.send", "qmp.reply", "error") else "span",
            "role": ROLES.get(name) or roles.of_point(name),
            "module": module,
            "offset": offset,
            "level": level,
            "why": why,
        }
        for name, module, offset, level, why in [
            ("virDomainGetBlockInfo", "libvirt.so.0", "0x2f1a60", "symbol", None),
            ("qemuDomainGetBlockInfo", "libvirt_driver_qemu.so", None, "missing", NO_DEBUG_INFO),
            (
                "qemuDomainBlocksStatsGather",
                "libvirt_driver_qemu.so",
                None,
                "missing",
                NO_DEBUG_INFO,
            ),
            (
                "qemuMonitorBlockStatsUpdateCapacityBlockdev",
                "libvirt_driver_qemu.so",
                "0x11f0c0",
                "dwarf",
                "also inlined into qemuMonitorFoo, not seen there",
            ),
            (
                "qemuMonitorBlockStatsUpdateCapacity",
                "libvirt_driver_qemu.so",
                None,
                "missing",
                "this build of libvirt_driver_qemu.so does not export it",
            ),
            ("qmp.send", "libvirt_driver_qemu.so", "0x10c2b1", "usdt", None),
            ("qmp.reply", "libvirt_driver_qemu.so", "0x10c0d4", "usdt", None),
            ("error", "libvirt.so.0", "0x18f1a0", "symbol", None),
        ]
    ],
}


class Recorder:
    """Makes events one by one, numbered and timed as in a file."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._spans = 0
        # Finds what answers what.
        self._upgraded = UpgradedEvents().upgraded

    def add(self, kind: str, name: str, **rest: Any) -> Event:
        place = {"span": None, "parent": None, "call": None, "values": {}, "tid": 77, **rest}
        seq = len(self.events)
        event = Event(type=kind, seq=seq, t_ns=1_000_000 + seq * 213_000, name=name, **place)
        span_role = ROLES.get(name) or roles.of_span(event.values, ())
        role = roles.of_point(name) if kind == "point" else span_role
        event = self._upgraded(event._replace(role=role))
        self.events.append(event)
        return event

    def new_span(self) -> int:
        self._spans += 1
        return self._spans


def qmp(command: str, number: int, reply: Any, **arguments: Any) -> tuple[dict[str, Any], Any]:
    """Values of a qmp.send and of its qmp.reply."""
    id_ = f"libvirt-{number}"
    sent: dict[str, Any] = {"execute": command, "id": id_}
    if arguments:
        sent["arguments"] = arguments
    received = {"return": reply, "id": id_}
    return (
        {"mon": MON, "text": json.dumps(sent) + "\r\n", "json": sent},
        {"mon": MON, "text": json.dumps(received), "json": received},
    )


BLOCKSTATS = [
    {
        "device": "",
        "node-name": "libvirt-1-format",
        "qdev": "/machine/peripheral/virtio-disk0/virtio-backend",
        "parent": {"stats": {"wr_highest_offset": 32870912}, "node-name": "libvirt-1-storage"},
        "stats": {"rd_operations": 712, "wr_highest_offset": 0, "timed_stats": []},
    }
]


def blockinfo(
    recorder: Recorder,
    disk: str = "vda",
    domain: str = "vm1",
    tid: int = 77,
    number: int = 12,
    error: str | None = None,
) -> list[Event]:
    """The events of one call, in the order the engine records them on a daemon with debug info."""
    first = len(recorder.events)
    call = recorder.new_span()
    spans = [call]

    def enter(name: str, values: dict[str, Any]) -> None:
        parent = spans[-1] if len(recorder.events) > first else None
        if parent is not None:
            spans.append(recorder.new_span())
        recorder.add(
            "enter", name, span=spans[-1], parent=parent, call=call, tid=tid, values=values
        )

    def leave(name: str, values: dict[str, Any]) -> None:
        span = spans.pop()
        parent = spans[-1] if spans else None
        recorder.add("exit", name, span=span, parent=parent, call=call, tid=tid, values=values)

    enter("virDomainGetBlockInfo", {"domain": domain, "disk": disk, "flags": 0})
    enter("qemuDomainGetBlockInfo", {"domain": domain, "disk": disk, "flags": 0})
    if error is not None:
        values = {
            "code": 8,
            "message": error,
            "domain": 10,
            "level": 2,
            "file": "../../src/qemu/qemu_driver.c",
            "function": "qemuDomainGetBlockInfo",
            "line": 9500,
        }
        recorder.add("point", "error", parent=spans[-1], call=call, tid=tid, values=values)
        zero = {"capacity": 0, "allocation": 0, "physical": 0}
        leave("qemuDomainGetBlockInfo", {"result": -1, "info": zero})
        leave("virDomainGetBlockInfo", {"result": -1, "info": zero})
        return recorder.events[first:]
    enter("qemuDomainBlocksStatsGather", {"disk": disk, "capacity": True})
    enter("qemuMonitorGetAllBlockStatsInfo", {"mon": MON})
    enter("qemuMonitorJSONQueryBlockstats", {"mon": MON})
    sent, received = qmp("query-blockstats", number, BLOCKSTATS, **{"query-nodes": True})
    place = {"parent": spans[-1], "call": call}
    recorder.add("point", "qmp.send", tid=tid, values=sent, **place)
    recorder.add("point", "qmp.reply", tid=99, values=received, **place)
    leave("qemuMonitorJSONQueryBlockstats", {"result": "0x7f2c48004b20"})
    leave("qemuMonitorGetAllBlockStatsInfo", {"result": 3})
    leave("qemuDomainBlocksStatsGather", {"result": 0, "stats": STATS})
    leave("qemuDomainGetBlockInfo", {"result": 0, "info": INFO})
    leave("virDomainGetBlockInfo", {"result": 0, "info": INFO})
    return recorder.events[first:]


def footer(events: list[Event], **changes: Any) -> Any:
    hits: dict[str, int] = {probe["name"]: 0 for probe in HEADER["probes"]}
    for event in events:
        if event.type in ("enter", "point"):
            hits[event.name] = hits.get(event.name, 0) + 1
    return {
        "type": "footer",
        "reason": "interrupt",
        "events": len(events),
        "dropped": 0,
        "hits": hits,
        "detached": True,
        "stopped_ns": {"total": 12_345_678, "max": 1_234_567},
        **changes,
    }


def records(*, error: str | None = None) -> list[dict[str, Any]]:
    """Header, one call, footer."""
    recorder = Recorder()
    blockinfo(recorder, error=error)
    events = [event.to_record() for event in recorder.events]
    return copy.deepcopy([HEADER, *events, footer(recorder.events)])


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    text = "".join(
        json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines
    )
    path.write_text(text, encoding="utf-8")
    return path
