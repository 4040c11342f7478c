"""The same hangs, with the same verdicts, on libvirt and QEMU of other releases."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hanging import (
    PATIENCE,
    admin,
    calling,
    qemu_of,
    snapshot,
    thread_of,
    wait_for,
)
from tests.support.intact import assert_untraced_and_intact
from virtrace.lab.daemon import Lab

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter another root"),
]
ASK = ("domblkinfo", "vm1", "vda")


@pytest.fixture(scope="module", params=["bullseye", "trixie", "sid"])
def release_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Libvirt 7.0.0, 11.3.0 and 12.8.0."""
    lab = Lab(
        Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp")), release=request.param
    )
    try:
        lab.up()
        yield lab
        assert_untraced_and_intact(lab.pid)
    finally:
        lab.down()


def test_an_idle_daemon_is_healthy(release_lab: Lab) -> None:
    document, _ = wait_for(release_lab, "healthy")
    version = ".".join(map(str, release_lab.libvirt_version))
    assert document["daemon"]["program"]["version"] == version
    (domain,) = document["domains"]
    assert domain["uuid"] == release_lab.virsh_checked("domuuid", "vm1").strip()
    assert domain["id"] == int(release_lab.virsh_checked("domid", "vm1"))
    assert domain["qemu"] == qemu_of(release_lab)
    assert domain["jobs"] == []


def test_a_stopped_qemu_is_the_answer(release_lab: Lab) -> None:
    qemu = qemu_of(release_lab)
    began = time.time()
    with release_lab.stalled(), calling(release_lab, ASK) as (first,):
        wait_for(release_lab, "qemu-stopped")
        with calling(release_lab, ASK, ("dommemstat", "vm1")) as others:
            document, verdict = wait_for(release_lab, "qemu-stopped", others)
            os.kill(qemu, signal.SIGCONT)
    assert verdict["says"] == (
        f"vm1 hangs because its QEMU (process {qemu}) is stopped by a signal; "
        "2 other calls on vm1 wait for that."
    )
    root = thread_of(document, verdict["thread"])
    assert root["api"] == "virDomainGetBlockInfo"
    assert root["request"]["name"] == "vm1"
    assert root["request"]["arguments"] == {"disk": "vda"}
    assert root["client"]["pid"] == first.pid
    assert root["wait"]["command"]["name"] == "query-blockstats"
    assert root["wait"]["command"]["sent"]
    assert 0 < root["asleep_s"] < time.time() - began
    (job,) = document["domains"][0]["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("job", "query", root["own_tid"])
    assert began <= job["since"] <= time.time()
    waiting = [thread_of(document, tid) for tid in verdict["behind"]]
    assert {one["client"]["pid"] for one in waiting} == {other.pid for other in others}
    assert {one["api"] for one in waiting} == {"virDomainGetBlockInfo", "virDomainMemoryStats"}
    for one in waiting:
        assert one["wait"]["until"] - one["wait"]["since"] == 30
        assert began <= one["wait"]["since"] <= time.time()
    (server,) = (each for each in document["servers"] if each["name"] == "libvirtd")
    assert {each["pid"]: each["requests"] for each in server["connections"]} == {
        client.pid: 1 for client in (first, *others)
    }


def test_workers_that_are_all_taken_are_told(release_lab: Lab) -> None:
    qemu = qemu_of(release_lab)
    for_all = ("srv-threadpool-set", "libvirtd", "--min-workers", "1", "--max-workers")
    admin(release_lab, *for_all, "4")
    try:
        with release_lab.stalled(), calling(release_lab, *[ASK] * 5):
            end = time.monotonic() + PATIENCE
            while len((document := snapshot(release_lab))["verdicts"]) < 2:
                assert time.monotonic() < end, (document["verdicts"], document["servers"])
            os.kill(qemu, signal.SIGCONT)
    finally:
        admin(release_lab, *for_all, "20")
    names = [verdict["verdict"] for verdict in document["verdicts"]]
    assert names == ["qemu-stopped", "workers"]
    assert document["verdicts"][1]["says"] == (
        "Calls wait because no worker of libvirtd is free: 4 of 4 (max_workers) are busy, "
        "and 1 call waits."
    )
