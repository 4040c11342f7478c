"""What the numbers of a domain's jobs mean, in traces and in the daemon's memory.

virDomainJob, virDomainAgentJob and virDomainAsyncJob (libvirt: src/hypervisor/domain_job.h); of
7.0.0, those of qemuDomainJob.
"""

from __future__ import annotations

JOBS = (
    "none",
    "query",
    "destroy",
    "suspend",
    "modify",
    "abort",
    "migration operation",
    "async",
    "async nested",
)
AGENT_JOBS = ("none", "query", "modify")
ASYNC_JOBS = (
    "none",
    "migration out",
    "migration in",
    "save",
    "dump",
    "snapshot",
    "start",
    "backup",
)
