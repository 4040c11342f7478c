"""Which process a trace is of."""

from __future__ import annotations

import os
from collections.abc import Callable

from virtrace.trace.format import Record


def is_of_build(header: Record, build_id: Callable[[str], str | None]) -> bool:
    """Whether a process has loaded the very files that the trace was recorded of.

    build_id: of the file that the process has loaded under a name; None where it has none, or
    one without a build-id. Where the trace tells no build-id, it is of no process that is known.
    """
    traced = {
        os.path.basename(module["path"]): module["build_id"]
        for module in header["target"]["modules"]
        if module["build_id"]
    }
    return bool(traced) and all(build_id(name) == told for name, told in traced.items())
