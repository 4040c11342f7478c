"""Take a snapshot: two looks at a live daemon, which tell what does not move."""

from __future__ import annotations

import time
from dataclasses import replace

from virtrace.image.process import Process
from virtrace.snapshot.look import look_at, switches
from virtrace.snapshot.model import Look

# Between the two looks, at least.
SECONDS = 1.0


def take(process: Process, seconds: float = SECONDS) -> Look:
    """Look at a daemon, and again after some time at which of its threads have run meanwhile.

    Raises: TargetError if it cannot be read, or ends.
    """
    before, began = switches(process.pid), time.monotonic()
    look = look_at(process)
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    after = switches(process.pid)
    threads = tuple(
        replace(thread, moved=before.get(thread.tid) != after.get(thread.tid))
        for thread in look.threads
    )
    return replace(look, threads=threads, seconds=time.monotonic() - began)
