"""The engines that record a job, one package each.

An engine is the object ``ENGINE`` in the module ``engine`` of its package; to add one, write the
package and name it here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from virtrace.record.engine import Engine

# The first is the default of `--engine`; with what `--help` says about each.
ENGINES = {
    "gdb": "breakpoints",
    "bpftrace": "uprobes; never stops the daemon, but leaves some values out",
}


def load(name: str) -> Engine:
    """Import an engine: what an engine needs can take longer to import than another to record."""
    return cast("Engine", importlib.import_module(f"virtrace.engines.{name}.engine").ENGINE)
