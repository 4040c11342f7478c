"""The engines that record a job, one package each.

An engine is the object ``ENGINE`` in the module ``engine`` of its package; to add one, write the
package and name it here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from virtrace.record.engine import Engine

# In the order of preference; with what `--help` says about each.
ENGINES = {
    "uprobes": "probes of the kernel, which never stop the daemon",
    "gdb": "breakpoints",
}


# Of `--engine`: the first engine that works.
AUTO = "auto"


def chosen(name: str) -> list[Engine]:
    """Return the engines that may record, best first. name: of an engine, or AUTO."""
    return [load(each) for each in (ENGINES if name == AUTO else [name])]


def load(name: str) -> Engine:
    """Import an engine: what an engine needs can take longer to import than another to record."""
    return cast("Engine", importlib.import_module(f"virtrace.engines.{name}.engine").ENGINE)
