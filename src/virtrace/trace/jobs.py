"""What the numbers of a domain's jobs mean, in traces and in the daemon's memory.

virDomainJob and virDomainAsyncJob (libvirt: src/hypervisor/domain_job.h); up to libvirt 8, the same
numbers of qemuDomainJob and qemuDomainAsyncJob.
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
