"""That `make bench` measures what it says: one short round on a real libvirtd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import cost
from bench.contestants import ATTACH_FLOOR, CONTESTANTS
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.matrix

TEXTS = 6
REPLIES = 3


@pytest.fixture(scope="module")
def result(stock_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "SETTLE_SECONDS", 0.05)
        return cost.run(stock_lab, tmp_path_factory.mktemp("bench"), rounds=1, calls=3)


@pytest.mark.timeout(60)
def test_a_client_that_is_late_sees_that_it_is_to_end(stock_lab: Lab) -> None:
    """Else the bench on a busy machine waits for ever."""
    client = [sys.executable, str(Path(cost.__file__).with_name("client.py")), "untraced"]
    with subprocess.Popen(
        [*client, stock_lab.uri, cost.GUEST, cost.DISK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"until\nnow\n")
        process.stdin.flush()
        process.stdout.readline()
        calls = json.loads(process.stdout.readline())
        process.kill()
    assert len(calls) == 2


def test_each_has_every_figure_or_a_reason(result: dict[str, Any]) -> None:
    assert [*result["contestants"]] == [one.name for one in CONTESTANTS]
    for one in CONTESTANTS:
        row = result["contestants"][one.name]
        if "cannot_run" in row:
            assert one.missing() == row["cannot_run"] != ""
        elif one.attach_only:
            assert row.keys() == {"attach"}
        else:
            nowhere = set() if one.facts else {"captured"}
            assert row.keys() == cost.FIGURES.keys() - nowhere
    assert result["contestants"][ATTACH_FLOOR]["attach"]["median"] == 1


def test_who_captures_values_has_the_right_ones(result: dict[str, Any]) -> None:
    """Compared with what the client got, and with what QEMU says when it is asked directly."""
    asked = result["values_asked"]
    assert asked == 2 * 7 + 2 + 4 + 13 + TEXTS
    expected = {one.name: asked for one in CONTESTANTS if one.facts}
    expected["commands ... end, no QMP text"] = asked - TEXTS
    # A string has 200 bytes there at most.
    expected["bpftrace, by hand"] = asked - REPLIES
    expected["libvirt's log of its monitor"] = TEXTS
    for name, values in expected.items():
        row = result["contestants"][name]
        if "cannot_run" not in row:
            assert row["captured"] == {"median": values, "min": values, "max": values}, name


def test_the_table_names_all(result: dict[str, Any]) -> None:
    table = cost.markdown(result)
    for one in CONTESTANTS:
        assert f"\n| {one.name} |" in table
