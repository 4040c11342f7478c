"""A second guest in a lab, for what may end it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml, file_source
from virtrace.lab.stage import TARGET, Stage


@contextmanager
def staged(lab: Lab) -> Iterator[Stage]:
    """A place for vm2, cleared afterwards."""
    stage = Stage(lab)
    try:
        yield stage
    finally:
        stage.clear()


@contextmanager
def second_guest(lab: Lab) -> Iterator[Stage]:
    """Run vm2, with one disk."""
    with staged(lab) as stage:
        file = stage.image("vda.raw", MIB)
        stage.start(disk_xml("file", file_source(file), TARGET))
        yield stage
