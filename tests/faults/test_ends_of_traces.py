"""A few of the ways that a trace ends, and a few cycles of traces, on a daemon that is in use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cycles import TRACED, UNTRACED, Client, cycle, size
from tests.faults.ends import ENDS
from tests.faults.killed import calling, lives
from tests.lab.conftest import bring_up
from virtrace.lab.daemon import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = bring_up()
    yield lab
    lab.down()


@pytest.mark.parametrize(
    "name",
    [
        "folder-gone",
        "guest-restarted",
        *(
            f"raises-{hook}"
            for hook in ("stopping", "view-banner", "view-event", "ask-end", "footer")
        ),
    ],
)
def test_it_leaves_the_daemon_unharmed(lab: Lab, tmp_path: Path, name: str) -> None:
    pid = lab.pid
    with calling(lab, 2):
        ENDS[name](lab, tmp_path)
    assert lives(lab, pid)


def test_clients_and_daemon_do_not_suffer_from_traces(lab: Lab, tmp_path: Path) -> None:
    traced, other = Client(lab, TRACED), Client(lab, UNTRACED)
    with traced.calling(), other.calling():
        cycle(lab, tmp_path)
        before = size(lab)
        for _ in range(2):
            cycle(lab, tmp_path)
        assert size(lab).descriptors == before.descriptors
    assert (traced.failed, other.failed) == ([], [])
    # Twenty calls of each trace, at the least.
    assert len(traced.waits) >= 60
    assert other.waits
