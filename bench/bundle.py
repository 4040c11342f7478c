"""The bundle of a 200-call trace: how large, how long to make, against reading the trace.

Made as by `virtrace bundle`, away from the traced host. Times are of the processor, and the
shortest of several rounds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.results import save
from tests.support import pages
from virtrace.bundle import archive
from virtrace.bundle.collect import make
from virtrace.host.facts import HostFacts
from virtrace.trace.format import unavailable
from virtrace.trace.reader import read_trace

CALLS, ROUNDS = 200, 3


def main() -> int:
    missing = unavailable("not asked")
    facts = HostFacts(missing, {}, missing)
    read_s, made_s = [], []
    with TemporaryDirectory() as folder:
        file = pages.many_calls_trace(Path(folder) / "trace.jsonl", CALLS)
        size = file.stat().st_size
        for _ in range(ROUNDS):
            began = time.process_time()
            trace = read_trace(file)
            read_s.append(time.process_time() - began)
            packed = archive.pack(make(trace, facts, (), lambda _: None).files)
            made_s.append(time.process_time() - began)
    figures = {
        "calls": CALLS,
        "trace_bytes": size,
        "bundle_bytes": len(packed),
        "made_cpu_s": round(min(made_s), 3),
        "ratio_to_reading_the_trace": round(min(made_s) / min(read_s), 1),
    }
    output = save("bundle", figures)
    print(f"the bundle of {CALLS} calls, a trace of {size / 1e6:.2f} MB")
    print(f"  size     {len(packed) / 1e6:.2f} MB")
    print(f"  made     in {min(made_s):.2f} s of processor time (shortest of {ROUNDS}),")
    print(f"           {figures['ratio_to_reading_the_trace']} times as long as to read the trace")
    print(f"  json     {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
