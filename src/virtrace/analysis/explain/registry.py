"""All explainers. A new one needs its line here; docs/architecture.md says what else."""

from __future__ import annotations

from typing import Any

from virtrace.analysis.explain import (
    agents,
    backups,
    blockjobs,
    clients,
    counters,
    cpu,
    daemons,
    disks,
    ends,
    errors,
    events,
    hosts,
    hotplugs,
    ioerrors,
    jobs,
    marks,
    memory,
    migrations,
    monitors,
    network,
    pools,
    snapshots,
    starts,
    statistics,
    volumes,
)
from virtrace.analysis.explain.model import Explainer

# In the order in which their answers are given.
EXPLAINERS: tuple[Explainer[Any], ...] = (
    disks.EXPLAINER,
    daemons.EXPLAINER,
    starts.EXPLAINER,
    blockjobs.EXPLAINER,
    migrations.EXPLAINER,
    hotplugs.EXPLAINER,
    snapshots.EXPLAINER,
    backups.EXPLAINER,
    pools.EXPLAINER,
    agents.EXPLAINER,
    jobs.EXPLAINER,
    events.EXPLAINER,
    clients.EXPLAINER,
    monitors.EXPLAINER,
    statistics.EXPLAINER,
    counters.EXPLAINER,
    memory.EXPLAINER,
    cpu.EXPLAINER,
    network.EXPLAINER,
    hosts.EXPLAINER,
    volumes.EXPLAINER,
    ends.EXPLAINER,
    ioerrors.EXPLAINER,
    marks.EXPLAINER,
    errors.EXPLAINER,
)


def load_causes() -> None:
    """Read all texts, before no file can be opened any more."""
    for explainer in EXPLAINERS:
        explainer.causes.load()
