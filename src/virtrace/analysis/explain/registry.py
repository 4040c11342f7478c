"""All explainers. A new one needs its line here; docs/architecture.md says what else."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO

from virtrace.analysis.explain.model import Explainer
from virtrace.trace import roles

_OF_DOMAINS = frozenset({"virConnectGetAllDomainStats", "virDomainListGetStats"})
# The module of each, in the order in which their answers are given, and the roles and functions
# whose traces it reads: a probe of one of them was found. Most traces need few of the modules.
TRACES: Mapping[str, frozenset[str]] = {
    "disks": frozenset({roles.DISK_SIZES}),
    "daemons": frozenset({"virStateInitialize", "virDriverLoadModule"}),
    "starts": frozenset({"virDomainCreate", "virDomainCreateWithFlags", "virDomainCreateXML"}),
    "blockjobs": frozenset(
        {
            *("virDomainBlockCommit", "virDomainBlockCopy", "virDomainBlockPull"),
            *("virDomainBlockRebase", "virDomainBlockJobAbort"),
        }
    ),
    "migrations": frozenset(
        {
            *("virDomainMigrateBegin3Params", "virDomainMigratePrepare3Params"),
            *("virDomainMigratePrepareTunnel3Params", "virDomainMigratePerform3Params"),
            *("virDomainMigrateFinish3Params", "virDomainMigrateConfirm3Params"),
        }
    ),
    "passes": frozenset({roles.MIGRATION_PASS}),
    "progress": frozenset({roles.JOB_STANDING}),
    "hotplugs": frozenset(
        {
            *("virDomainAttachDevice", "virDomainAttachDeviceFlags", "virDomainDetachDevice"),
            *("virDomainDetachDeviceFlags", "virDomainDetachDeviceAlias"),
            "virDomainUpdateDeviceFlags",
        }
    ),
    "snapshots": frozenset(
        {
            *("virDomainSnapshotCreateXML", "virDomainSnapshotDelete"),
            "virDomainRevertToSnapshot",
        }
    ),
    "backups": frozenset({"virDomainBackupBegin", "virDomainCheckpointCreateXML"}),
    "pools": frozenset({"virStoragePoolRefresh"}),
    "agents": frozenset({roles.AGENT_COMMAND}),
    "jobs": frozenset({roles.LOCK}),
    "events": frozenset({"virConnectDomainEventRegisterAny"}),
    "clients": frozenset({roles.RPC_CALL}),
    "mainloops": frozenset({*roles.OF_LOOP}),
    "monitors": frozenset({roles.QMP_COMMAND}),
    "statistics": _OF_DOMAINS,
    "counters": frozenset({"virDomainBlockStatsFlags"}),
    "memory": frozenset({"virDomainMemoryStats", "virDomainGetInfo", *_OF_DOMAINS}),
    "cpu": frozenset(
        {"virDomainGetInfo", "virDomainGetVcpus", "virDomainGetCPUStats", *_OF_DOMAINS}
    ),
    "network": frozenset({"virDomainInterfaceStats", *_OF_DOMAINS}),
    "hosts": frozenset({"virNodeGetInfo", "virNodeGetMemoryStats", "virNodeGetCPUStats"}),
    "volumes": frozenset(
        {"virStoragePoolGetInfo", "virStorageVolGetInfo", "virStorageVolGetInfoFlags"}
    ),
    "ends": frozenset({roles.GUEST_LIFECYCLE}),
    "ioerrors": frozenset({*roles.FAILED_REQUESTS, roles.DEVICE_ERROR, roles.JOB_ERROR}),
    "marks": frozenset({roles.MARK_RAISED}),
    "errors": frozenset({roles.API_FAILED}),
}
# The longest header that is looked at.
_HEADER_ROOM = 1 << 18


def explainers(seen: Collection[str]) -> list[Explainer[Any]]:
    """Return those that read a trace. seen: names and roles of the probes that were found in it."""
    return [_explainer(name) for name, traces in TRACES.items() if not traces.isdisjoint(seen)]


def all_explainers() -> list[Explainer[Any]]:
    return list(map(_explainer, TRACES))


def load_explainers(files: Sequence[BinaryIO]) -> None:
    """Import what files need that may be traces, before no file can be opened any more."""
    headers = [_header(file) for file in files]
    for name, traces in TRACES.items():
        if any(header is None or _may_read(traces, header) for header in headers):
            _explainer(name).causes.load()


def load_all_explainers() -> None:
    """Import whatever any trace needs."""
    for explainer in all_explainers():
        explainer.causes.load()


def _explainer(module: str) -> Explainer[Any]:
    found: Explainer[Any] = importlib.import_module(f"{__package__}.{module}").EXPLAINER
    return found


def _may_read(traces: Collection[str], header: bytes) -> bool:
    signs = {sign for each in traces for sign in roles.signs_of(each)}
    return any(f'"{sign}"'.encode() in header for sign in signs)


def _header(file: BinaryIO) -> bytes | None:
    """Return the header of a trace, whose strings are as they are; None if it is not at hand.

    It is a stranger's, and is not parsed: we still have our rights.
    """
    line, end, _ = os.pread(file.fileno(), _HEADER_ROOM, 0).partition(b"\n")
    is_plain = line.startswith(b"{") and end and b"\\u" not in line
    return line if is_plain else None
