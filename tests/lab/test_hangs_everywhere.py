"""Hangs that can be made everywhere: the same verdicts on all releases and builds of libvirt."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.hanging import (
    PATIENCE,
    admin,
    assert_asleep_since,
    calling,
    qemu_of,
    root_of,
    snapshot,
    stopped,
    thread_of,
    time_when_asleep,
    wait_for,
)
from tests.support.intact import assert_untraced_and_intact
from tests.support.silent_agent import silent_agent
from tests.support.stages import second_guest
from virtrace.lab.daemon import Lab
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("stock_lab", id="9.0.0"),
        *(
            pytest.param(name, id=version, marks=pytest.mark.matrix)
            for name, version in (
                ("debug_lab", "9.0.0 with debug info"),
                ("bullseye", "7.0.0"),
                ("trixie", "11.3.0"),
                ("sid", "12.8.0"),
            )
        ),
    ],
)
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param.endswith("_lab"):
        lab: Lab = request.getfixturevalue(request.param)
        yield lab
        assert_untraced_and_intact(lab.pid)
        return
    lab = Lab(
        Path(tempfile.mkdtemp(prefix="virtrace-test-", dir="/var/tmp")), release=request.param
    )
    try:
        lab.up()
        yield lab
        assert_untraced_and_intact(lab.pid)
    finally:
        lab.down()


@pytest.fixture
def any_stage(any_lab: Lab) -> Iterator[Stage]:
    """A second guest, vm2, for what may end it."""
    with second_guest(any_lab) as stage:
        yield stage


def test_an_idle_daemon_is_healthy(any_lab: Lab) -> None:
    document, _ = wait_for(any_lab, "healthy")
    version = ".".join(map(str, any_lab.libvirt_version))
    assert document["daemon"]["program"]["version"] == version
    assert [domain["name"] for domain in document["domains"]] == ["vm1"]
    (domain,) = document["domains"]
    assert domain["uuid"] == any_lab.virsh_checked("domuuid", "vm1").strip()
    assert domain["id"] == int(any_lab.virsh_checked("domid", "vm1"))
    assert domain["qemu"] == qemu_of(any_lab)
    assert domain["jobs"] == []
    # GObject's own data of a type have the address of its class, too.
    assert {name: document["objects"][name] for name in ("virDomainObj", "qemuMonitor")} == {
        "virDomainObj": 1,
        "qemuMonitor": 1,
    }


def test_a_stopped_qemu_is_the_answer(any_lab: Lab) -> None:
    qemu = qemu_of(any_lab)
    began = time.time()
    with any_lab.stalled(), calling(any_lab, ASK) as (first,):
        _, verdict = wait_for(any_lab, "qemu-stopped")
        with calling(any_lab, ASK, ("domstats", "vm1"), ("dommemstat", "vm1")) as others:
            document, verdict = wait_for(any_lab, "qemu-stopped", others)
            os.kill(qemu, signal.SIGCONT)
    assert len(verdict["behind"]) == 3
    assert verdict["says"] == (
        f"vm1 hangs because its QEMU (process {qemu}) is stopped by a signal; "
        "3 other calls on vm1 wait for that."
    )
    assert verdict["do"][0]["command"] == f"kill -CONT {qemu}"
    root = thread_of(document, verdict["thread"])
    assert root["api"] == "virDomainGetBlockInfo"
    assert root["request"]["name"] == "vm1"
    assert root["request"]["arguments"] == {"disk": "vda"}
    assert root["client"]["pid"] == first.pid
    assert root["client"]["command"] == " ".join(any_lab.virsh_command(*ASK))
    assert root["wait"]["command"]["name"] == "query-blockstats"
    assert root["wait"]["command"]["sent"]
    assert 0 < root["asleep_s"] < time.time() - began
    (job,) = document["domains"][0]["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("job", "query", root["own_tid"])
    assert job["api"] == "remoteDispatchDomainGetBlockInfo"
    assert began <= job["since"] <= time.time()
    waiting = [thread_of(document, tid) for tid in verdict["behind"]]
    assert {one["client"]["pid"] for one in waiting} == {other.pid for other in others}
    assert {one["api"] for one in waiting} == {
        "virDomainGetBlockInfo",
        "virConnectGetAllDomainStats",
        "virDomainMemoryStats",
    }
    for one in waiting:
        assert one["wait"]["kind"] == "job"
        # libvirt waits for 30 s.
        assert one["wait"]["until"] - one["wait"]["since"] == 30
        assert began <= one["wait"]["since"] <= time.time()
    (server,) = (each for each in document["servers"] if each["name"] == "libvirtd")
    assert {each["pid"]: each["requests"] for each in server["connections"]} == {
        client.pid: 1 for client in (first, *others)
    }


def test_a_save_into_a_fifo_names_the_fifo(any_stage: Stage) -> None:
    lab = any_stage.lab
    fifo = any_stage.images / "save.fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    with saving(lab, fifo) as let_go:
        wait_for_call(lab, "virDomainSave")
        with calling(lab, ("domblkinfo", GUEST_NAME, TARGET)) as (other,):
            document, verdict = wait_for(lab, "fifo", [other])
            let_go()
    assert str(fifo) in verdict["says"]
    root = thread_of(document, verdict["thread"])
    assert root["wait"]["system_call"] == "openat"
    assert root["request"]["arguments"] == {"to": str(fifo)}
    (domain,) = (one for one in document["domains"] if one["name"] == GUEST_NAME)
    (job,) = domain["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("async job", "save", root["own_tid"])
    for behind in (thread_of(document, tid) for tid in verdict["behind"]):
        assert behind["wait"]["what"] == f"the lock of domain {GUEST_NAME}"
        assert behind["wait"]["owner"] == root["own_tid"]


@contextmanager
def saving(lab: Lab, fifo: Path) -> Iterator[Callable[[], None]]:
    """Save the guest into a FIFO meanwhile; yield what lets the save go on.

    libvirt opens the file a second time to mark it as complete. So the reader has it open for
    writing too, and stays until the call has ended.
    """
    readers = []

    def let_go() -> None:
        with open(os.open(fifo, os.O_RDWR), "rb", buffering=0) as file:
            readers.append(subprocess.Popen(["cat"], stdin=file, stdout=subprocess.DEVNULL))

    try:
        with calling(lab, ("save", GUEST_NAME, str(fifo))):
            try:
                yield let_go
            finally:
                let_go()
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def wait_for_call(lab: Lab, api: str) -> None:
    """Until a worker serves the call and waits."""
    end = time.monotonic() + PATIENCE
    while api not in {thread["api"] for thread in snapshot(lab)["threads"]}:
        assert time.monotonic() < end


def test_a_guest_agent_that_is_silent_is_told(any_lab: Lab) -> None:
    lab = any_lab
    ask = ("domfsinfo", "vm4")
    with silent_agent(lab, "vm4") as agent:
        began = time.time()
        with calling(lab, ask) as (client,):
            asked = agent.asked()
            at_last = time_when_asleep(lab)
            with calling(lab, ask) as (other,):
                document, verdict = wait_for(lab, "agent-silent", [other])
                agent.hang_up()
    root = root_of(document, verdict, client, "virDomainGetFSInfo")
    assert root["request"]["name"] == root["wait"]["domain"] == "vm4"
    command = root["wait"]["command"]
    assert command["text"].strip() == asked
    assert (command["name"], command["sent"]) == ("guest-get-fsinfo", True)
    assert_asleep_since(document, root, began, at_last)
    assert verdict["says"] == (
        "vm4 waits for the agent in the guest, which has not answered guest-get-fsinfo for "
        f"{root['asleep_s']:.1f} s; 1 other call on vm4 waits for that."
    )
    (domain,) = (each for each in document["domains"] if each["name"] == "vm4")
    (job,) = domain["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("agent job", "query", root["own_tid"])
    assert began <= job["since"] <= at_last
    (behind,) = (thread_of(document, tid) for tid in verdict["behind"])
    assert behind["client"]["pid"] == other.pid
    assert behind["wait"]["until"] - behind["wait"]["since"] == 30


def test_a_daemon_that_is_stopped_is_the_answer(any_lab: Lab) -> None:
    with stopped(any_lab.pid):
        _, verdict = wait_for(any_lab, "stopped")
    assert verdict["do"][0]["command"] == f"kill -CONT {any_lab.pid}"


@pytest.fixture
def few_workers(any_lab: Lab) -> Iterator[Lab]:
    """Four workers in all."""
    set_workers(any_lab, 4)
    yield any_lab
    set_workers(any_lab, 20)


def set_workers(lab: Lab, number: int) -> None:
    admin(lab, "srv-threadpool-set", "libvirtd", "--min-workers", "1", "--max-workers", str(number))


def test_workers_that_are_all_taken_are_told(few_workers: Lab) -> None:
    qemu = qemu_of(few_workers)
    with few_workers.stalled(), calling(few_workers, *[ASK] * 5):
        end = time.monotonic() + PATIENCE
        while len((document := snapshot(few_workers))["verdicts"]) < 2:
            assert time.monotonic() < end, document["verdicts"]
        os.kill(qemu, signal.SIGCONT)
    names = [verdict["verdict"] for verdict in document["verdicts"]]
    assert names == ["qemu-stopped", "workers"]
    assert document["verdicts"][1]["says"] == (
        "Calls wait because no worker of libvirtd is free: 4 of 4 (max_workers) are busy, "
        "and 1 call waits."
    )
    server = next(one for one in document["servers"] if one["name"] == "libvirtd")
    assert server["clients"] == 5
    (queued,) = server["pool"]["queued"]
    # REMOTE_PROGRAM: the client's call, or one of those with which virsh begins.
    assert (queued["request"]["program"], queued["priority"]) == (0x20008086, False)
