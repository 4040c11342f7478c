"""A lab of each release and build of libvirt, for what has to be the same on all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.intact import assert_untraced_and_intact
from virtrace.lab.daemon import Lab

RELEASES = [
    pytest.param("stock_lab", id="9.0.0"),
    *(
        pytest.param(name, id=version, marks=pytest.mark.matrix)
        for name, version in (("bullseye", "7.0.0"), ("trixie", "11.3.0"), ("sid", "12.8.0"))
    ),
]
# For `any_lab` and `engine`: both engines on one release with the other tests, and on each of the
# others in a run of their own, `make scenarios`.
on_each_release = pytest.mark.parametrize(
    ("any_lab", "engine"),
    [
        pytest.param(
            *(*release.values, engine),
            id=f"{release.id}-{engine}",
            marks=[pytest.mark.scenarios] if release.marks else [],
        )
        for release in RELEASES
        for engine in ("gdb", "uprobes")
    ],
    indirect=True,
    # So that tests of one release follow each other, with one lab.
    scope="module",
)


@contextmanager
def lab_of(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab of a parameter of RELEASES."""
    if request.param.endswith("_lab"):
        lab: Lab = request.getfixturevalue(request.param)
        yield lab
        assert_untraced_and_intact(lab.pid)
        return
    with lab_of_release(request.param) as lab:
        yield lab


@contextmanager
def lab_of_release(release: str) -> Iterator[Lab]:
    """A lab of a Debian release, by its code name."""
    folder = Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp"))
    lab = Lab(folder, release=release)
    try:
        lab.up()
        yield lab
        assert_untraced_and_intact(lab.pid)
    finally:
        lab.down()
