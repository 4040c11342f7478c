"""A second guest in a lab, for what may end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import TARGET, Stage


@contextmanager
def second_guest(lab: Lab) -> Iterator[Stage]:
    """Run vm2, with one disk."""
    stage = Stage(lab)
    try:
        file = stage.image("vda.raw", MIB)
        stage.start(disk_xml("file", file_source(file), TARGET))
        yield stage
    finally:
        stage.clear()
