"""What is said of numbers on all releases: beside virsh, QMP, /proc, /sys and the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.explained_numbers import POOL, changing_guest, rounds, tap_device
from tests.lab.test_explainers import Case, explained, first
from tests.support.documented import answers, documented
from tests.support.releases import RELEASES, lab_of
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a tap device")


@pytest.fixture(scope="module", params=RELEASES)
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with a /dev of its own, where the tap device can be opened."""
    with lab_of(request) as lab:
        yield lab


def test_explained_numbers_are_those_of_their_sources(any_lab: Lab, tmp_path: Path) -> None:
    wrong, compared = rounds(any_lab, 2, tmp_path)
    assert wrong == []
    # Each of the sources that the head of the module names.
    assert compared["numbers"] > 130
    assert all(
        compared[source] > 5
        for source in ("virsh", "QMP", "/proc", "/proc/net/dev", "/sys", "file system", "qemu-img")
    )


def test_why_numbers_are_what_they_are(any_lab: Lab, tmp_path: Path) -> None:
    version = any_lab.libvirt_version
    # Of other releases, the faster one.
    for engine in ("uprobes",) if any_lab.release else ("uprobes", "gdb"):
        with tap_device(any_lab) as tap, changing_guest(any_lab, tap) as pool:
            folder = tmp_path / engine
            folder.mkdir()
            cases, statistics = asked_of(any_lab, engine, tap, pool, folder)
        assert_explained(cases, statistics, version, tap)


def asked_of(
    lab: Lab, engine: str, tap: str, pool: Path, folder: Path
) -> tuple[list[Case], list[Case]]:
    """What is said of numbers, and of those in statistics."""
    (pool / "full.raw").write_bytes(b"\1" * 65536)
    with (pool / "sparse.raw").open("wb") as file:
        file.write(b"\1" * 4096)
        file.truncate(1 << 20)
    lab.virsh_checked("pool-refresh", POOL)
    asked = (
        *("dominfo vm2", "vcpuinfo vm2", "cpu-stats vm2 --total"),
        *(f"domifstat vm2 {tap}", "domifstat vm2 none"),
        *("nodeinfo", "nodememstats", "nodecpustats", "nodememstats --cell 0"),
        *(f"pool-info {POOL}", "pool-info none", f"vol-info full.raw {POOL}"),
        *(f"vol-info sparse.raw {POOL}", f"vol-info --physical sparse.raw {POOL}"),
        *("destroy vm2", "dominfo vm2"),
    )
    cases, _, _ = explained(lab, engine, "numbers", folder / "n.jsonl", *asked)
    lab.virsh_checked("start", "vm2")
    statistics, _, _ = explained(lab, engine, "domstats", folder / "s.jsonl", "domstats vm2")
    return cases, statistics


def assert_explained(
    cases: list[Case], statistics: list[Case], version: tuple[int, ...], tap: str
) -> None:
    found = [(case["explainer"], case["subject"], first(case)) for case in cases]
    view = "guest-view" if version >= (9, 0) else "host-view"
    assert [each for each in found if each[0] != "memory"] == [
        ("cpu", ["vm2"], "of-process"),
        ("cpu", ["vm2"], "of-vcpus"),
        ("cpu", ["vm2"], "of-process" if version >= (11, 3) else "no-cgroup"),
        ("network", ["vm2", tap], view),
        ("network", ["vm2", "none"], "no-such-interface"),
        ("hosts", ["host"], "host"),
        ("hosts", ["host's memory"], "memory"),
        ("hosts", ["host's CPU times"], "cpu-times"),
        ("hosts", ["host's memory", "node 0"], "memory"),
        ("volumes", [POOL], "file-system"),
        ("volumes", [POOL, "full.raw"], "full"),
        ("volumes", [POOL, "sparse.raw"], "sparse"),
        ("volumes", [POOL, "sparse.raw"], "physical"),
        ("cpu", ["vm2"], "shut-off"),
    ]
    missing = documented("numbers.md") - answers(cases)
    if version < (9, 0):
        # What this version alone says.
        assert not [each for each in missing if "as the host counts" in each]
    elif version < (11, 3):
        assert ["as the host counts" in each for each in missing] == [True]
    of_cpu = named(statistics, "cpu")
    assert first(of_cpu) == ("of-process" if version >= (9, 0) else "no-total"), of_cpu["answer"]
    assert {fact["name"] for fact in of_cpu["facts"]} >= {"vCPU 0"}
    for fact in of_cpu["facts"]:
        # Each is back at the file that it was read from, where libvirt reads files as a whole.
        assert "from /proc/" in fact["meaning"] or version < (9, 0), fact
    assert first(named(statistics, "network")) == view


def named(cases: list[Case], explainer: str) -> Case:
    [case] = [case for case in cases if case["explainer"] == explainer]
    return case
