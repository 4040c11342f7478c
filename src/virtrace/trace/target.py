"""Whether a trace is of a process."""

from __future__ import annotations

import os
from collections.abc import Callable

from virtrace.trace.format import Header


def is_of_build(header: Header, build_id: Callable[[str], str | None]) -> bool:
    """Return whether a process has loaded the very files that the trace was recorded of.

    build_id: returns the build-id of the file that the process has loaded under a name, or None.
    A trace without any build-id is of no known process.
    """
    traced = {
        os.path.basename(module["path"]): module["build_id"]
        for module in header["target"]["modules"]
        if module["build_id"]
    }
    return bool(traced) and all(build_id(name) == id_ for name, id_ in traced.items())
