"""The fields of struct _qemuBlockStats, in the order of libvirt 9.0.0."""

from __future__ import annotations

# QMP's name of each counter, in the `stats` of query-blockstats. Stated here once more than in
# the package: what it says is checked against this.
COUNTERS = {
    "rd_req": "rd_operations",
    "rd_bytes": "rd_bytes",
    "wr_req": "wr_operations",
    "wr_bytes": "wr_bytes",
    "rd_total_times": "rd_total_time_ns",
    "wr_total_times": "wr_total_time_ns",
    "flush_req": "flush_operations",
    "flush_total_times": "flush_total_time_ns",
}
FIELDS = [
    *COUNTERS,
    *("capacity", "physical", "wr_highest_offset", "wr_highest_offset_valid", "write_threshold"),
]
