"""What is said of numbers on all releases: beside virsh, QMP, /proc, /sys and the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.explained_numbers import POOL, changing_guest, rounds, tap_device
from tests.lab.test_explainers import Case, explained
from tests.support.documented import answers, documented
from tests.support.releases import RELEASES, lab_of, on_each_release
from tests.support.scenarios import assert_answers
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


@on_each_release
def test_why_numbers_are_what_they_are(any_lab: Lab, engine: str, tmp_path: Path) -> None:
    with tap_device(any_lab) as tap, changing_guest(any_lab, tap) as pool:
        cases, statistics = asked_of(any_lab, engine, tap, pool, tmp_path)
    version = any_lab.libvirt_version
    view = "guest-view" if version >= (9, 0) else "host-view"
    assert_numbers_explained(tmp_path, cases, version, tap, view)
    assert_statistics_explained(tmp_path, statistics, version, tap, view)


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


def assert_numbers_explained(
    folder: Path, cases: list[Case], version: tuple[int, ...], tap: str, view: str
) -> None:
    in_cgroup = "of-process" if version >= (11, 3) else "no-cgroup"
    scenarios = {
        "the CPU time of a guest (dominfo)": ("vm2", "of-process"),
        "the CPU times of its vCPUs (vcpuinfo)": ("vm2", "of-vcpus"),
        "its CPU times in all, without a cgroup (cpu-stats --total)": ("vm2", in_cgroup),
        "the counters of a tap device": (f"vm2 {tap}", view),
        "the counters of an interface that it does not have": ("vm2 none", "no-such-interface"),
        "the host's CPUs": ("host", "host"),
        "the host's memory": ("host's memory", "memory"),
        "the host's CPU times": ("host's CPU times", "cpu-times"),
        "the memory of a NUMA node": ("host's memory node 0", "memory"),
        "the sizes of a pool in a folder": (POOL, "file-system"),
        "a volume that is fully allocated": (f"{POOL} full.raw", "full"),
        "a sparse volume": (f"{POOL} sparse.raw", "sparse"),
        "the physical size of a volume": (f"{POOL} sparse.raw", "physical"),
        "the CPU time of a guest that is shut off": ("vm2", "shut-off"),
    }
    of_others = [case for case in cases if case["explainer"] != "memory"]
    assert_answers(folder / "n.jsonl", of_others, scenarios)
    missing = documented("numbers.md") - answers(cases)
    if version < (9, 0):
        # What this version alone says.
        assert not [each for each in missing if "as the host counts" in each]
    elif version < (11, 3):
        assert ["as the host counts" in each for each in missing] == [True]


def assert_statistics_explained(
    folder: Path, statistics: list[Case], version: tuple[int, ...], tap: str, view: str
) -> None:
    [of_cpu] = [case for case in statistics if case["explainer"] == "cpu"]
    [of_network] = [case for case in statistics if case["explainer"] == "network"]
    scenarios = {
        "the CPU times of a guest": ("vm2", "of-process" if version >= (9, 0) else "no-total"),
        "the counters of a tap device": (f"vm2 {tap}", view),
    }
    assert_answers(folder / "s.jsonl", [of_cpu, of_network], scenarios)
    assert {fact["name"] for fact in of_cpu["facts"]} >= {"vCPU 0"}
    for fact in of_cpu["facts"]:
        # Each is back at the file that it was read from, where libvirt reads files as a whole.
        assert "from /proc/" in fact["meaning"] or version < (9, 0), fact
