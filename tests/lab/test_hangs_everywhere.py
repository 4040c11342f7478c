"""The same verdicts on all releases and builds of libvirt, and of a daemon in a container."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from tests.faults.healthy_snapshots import snapshots, storm
from tests.support.hanging import (
    PATIENCE,
    admin,
    assert_asleep_since,
    calling,
    client_of,
    connections_of,
    domain_of,
    held_by_gdb,
    let_go,
    qemu_of,
    relaunch,
    root_of,
    set_workers,
    snapshot,
    stalled_migration,
    stopped,
    thread_of,
    wait_for,
    wait_for_verdicts,
    when_asleep,
)
from tests.support.namespaces import own_number
from tests.support.paths import REPOSITORY
from tests.support.silent_agent import silent_agent
from tests.support.waiting import wait_until
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.snapshot.host import tracer_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")
MANY_CALLS = REPOSITORY / "tests" / "support" / "many_calls.py"


def test_an_idle_daemon_is_healthy(any_lab: Lab) -> None:
    document = idle(any_lab)
    version = ".".join(map(str, any_lab.libvirt_version))
    assert document["daemon"]["program"]["version"] == version
    assert [domain["name"] for domain in document["domains"]] == ["vm1"]
    (domain,) = document["domains"]
    assert domain["uuid"] == any_lab.virsh_checked("domuuid", "vm1").strip()
    assert domain["id"] == int(any_lab.virsh_checked("domid", "vm1"))
    assert domain["qemu"] == qemu_of(any_lab)
    assert domain["jobs"] == []


def idle(lab: Lab) -> dict[str, Any]:
    """Take snapshots until nothing is left of what the daemon did before."""

    def look() -> dict[str, Any] | None:
        document, _ = wait_for(lab, "healthy")
        # GObject's own data of a type have the address of its class, too.
        domains, monitors = (document["objects"][name] for name in ("virDomainObj", "qemuMonitor"))
        # The one by which libvirt asked a QEMU for its abilities can outlive that QEMU.
        return document if domains == 1 and monitors in (1, 2) else None

    found = wait_until(look, "the daemon has one domain and one monitor")
    assert found is not None
    return found


def test_a_daemon_with_many_calls_is_busy(any_lab: Lab, tmp_path: Path) -> None:
    with storm(any_lab, tmp_path):
        seen = snapshots(any_lab, 3)
    # The last calls of clients that were killed end, too.
    wait_for(any_lab, "healthy")
    assert seen.wrong == []
    assert seen.first["busy"] > 0


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
    assert root["own_tid"] == own_number(root["tid"])
    assert 0 < root["asleep_s"] < time.time() - began
    (job,) = domain_of(document, "vm1")["jobs"]
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


def test_a_stopped_qemu_of_a_daemon_that_was_started_anew_is_the_answer(restartable: Lab) -> None:
    """The daemon connects to its QEMU anew: a thread of its own has the job."""
    lab = restartable
    qemu = qemu_of(lab)
    began = time.time()
    with lab.stalled():
        relaunch(lab)
        with calling(lab, ASK) as (other,):
            document, verdict = wait_for(lab, "qemu-stopped", [other])
            os.kill(qemu, signal.SIGCONT)
    assert verdict["says"] == (
        f"vm1 hangs because its QEMU (process {qemu}) is stopped by a signal; "
        "1 other call on vm1 waits for that."
    )
    root = thread_of(document, verdict["thread"])
    assert (root["name"], root["api"], root["client"]) == ("init-vm1", None, None)
    assert root["wait"]["command"]["name"] == "qmp_capabilities"
    assert 0 < root["asleep_s"] < time.time() - began
    (job,) = domain_of(document, "vm1")["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("job", "modify", root["own_tid"])
    assert job["api"] == "init-vm1"
    assert began < job["since"] < time.time()


def test_a_guest_agent_that_is_silent_is_told(any_lab: Lab) -> None:
    lab = any_lab
    ask = ("domfsinfo", "vm4")
    with silent_agent(lab, "vm4") as agent:
        began = time.time()
        with calling(lab, ask) as (client,):
            asked = agent.asked()
            at_last = when_asleep(lab)
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
    (job,) = domain_of(document, "vm4")["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("agent job", "query", root["own_tid"])
    assert began <= job["since"] <= at_last.time
    (behind,) = (thread_of(document, tid) for tid in verdict["behind"])
    assert behind["client"]["pid"] == other.pid
    assert behind["wait"]["until"] - behind["wait"]["since"] == 30


def test_a_daemon_that_is_stopped_is_the_answer(any_lab: Lab) -> None:
    with stopped(any_lab.pid):
        _, verdict = wait_for(any_lab, "stopped")
    assert verdict["do"][0]["command"] == f"kill -CONT {any_lab.pid}"


def test_a_debugger_that_holds_the_daemon_is_named(any_lab: Lab) -> None:
    with held_by_gdb(any_lab.pid) as gdb:
        _, verdict = wait_for(any_lab, "traced")
    assert verdict["says"] == (f"The daemon itself is stopped by a debugger, process {gdb.pid}.")


@pytest.fixture
def few_workers(any_lab: Lab) -> Iterator[Lab]:
    """Four workers in all."""
    set_workers(any_lab, 4)
    yield any_lab
    set_workers(any_lab, 20)


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


def test_a_debugger_that_holds_qemu_is_named(any_stage: Stage) -> None:
    lab = any_stage.lab
    qemu = qemu_of(lab, GUEST_NAME)
    with held_by_gdb(qemu) as gdb:
        wait_until(lambda: tracer_of(qemu) == gdb.pid, "GDB holds QEMU")
        with calling(lab, ("domblkinfo", GUEST_NAME, TARGET)) as (client,):
            document, verdict = wait_for(lab, "qemu-traced")
            let_go(gdb)
    assert verdict["says"] == (
        f"{GUEST_NAME} hangs because its QEMU (process {qemu}) is held by a debugger, "
        f"process {gdb.pid}."
    )
    root = thread_of(document, verdict["thread"])
    assert root["api"] == "virDomainGetBlockInfo"
    assert root["request"]["name"] == GUEST_NAME
    assert root["client"]["pid"] == client.pid
    assert root["asleep_s"] > 0


def test_a_limit_of_clients_that_is_reached_is_told(any_lab: Lab) -> None:
    admin(any_lab, "srv-clients-set", "libvirtd", "--max-clients", "4", "--max-unauth-clients", "4")
    try:
        with ExitStack() as connections:
            for _ in range(4):
                connected(any_lab, connections)
            with calling(any_lab, ("list",)) as (late,):
                _, verdict = wait_for(any_lab, "clients")
                info = admin(any_lab, "srv-clients-info", "libvirtd")
                assert late.poll() is None
                connections.close()
    finally:
        admin(any_lab, "srv-clients-set", "libvirtd", "--max-clients", "5000")
    assert verdict["says"] == (
        "libvirtd takes no more clients: 4 of 4 (max_clients) are connected."
    )
    told = dict(line.split(":") for line in info.split("\n") if ":" in line)
    assert {name.strip(): int(value) for name, value in told.items()}["nclients"] == 4
    command = verdict["do"][1]["command"]
    assert command == "virt-admin srv-clients-set libvirtd --max-clients 8"


def connected(lab: Lab, connections: ExitStack) -> None:
    """Connect a client that asks for nothing."""
    connection = connections.enter_context(socket.socket(socket.AF_UNIX))
    connection.connect(str(lab.folder / "run" / "libvirt" / "libvirt-sock"))


def test_a_client_that_is_not_read_answers_no_keepalive(restartable: Lab) -> None:
    lab = restartable
    settings = lab.folder / "config" / "libvirt" / "libvirtd.conf"
    settings.write_text("keepalive_interval = 1\nkeepalive_count = 100\n")
    relaunch(lab)
    settings.unlink()
    # It has connected to its QEMU anew, too.
    lab.virsh_checked(*ASK)
    began = time.time()
    command = [sys.executable, str(MANY_CALLS), lab.uri, "7"]
    with lab.stalled(), client_of(lab, command) as client:
        try:
            end = time.monotonic() + PATIENCE
            unanswered = 0
            while unanswered < 2:
                _, verdict, document = wait_for_verdicts(lab, "qemu-stopped", "client-requests")
                (connection,) = connections_of(document, client.pid)
                keepalive = connection["keepalive"]
                unanswered = keepalive["unanswered"]
                assert time.monotonic() < end
        finally:
            os.kill(qemu_of(lab), signal.SIGCONT)
        assert client.wait(PATIENCE) == 0
    taken = datetime.fromisoformat(document["taken"]).timestamp()
    assert (keepalive["interval_s"], keepalive["most"]) == (1, 100)
    # It asks once a second, by a clock of whole seconds.
    assert began - 1 <= keepalive["heard"] < taken
    # It is read some time after the look has begun.
    assert unanswered <= taken + document["seconds"] - keepalive["heard"]
    left = keepalive["closes"] - taken
    assert 100 - unanswered - 1 <= left <= 100 - unanswered + 2 + document["seconds"]
    assert verdict["says"] == (
        f"The daemon reads no more calls of process {client.pid} ({' '.join(command)}): "
        f"5 of 5 (max_client_requests) are not answered yet; {unanswered} of 100 keepalive "
        f"messages have no answer, and it will close the connection in {left:.1f} s."
    )


def test_a_block_job_that_does_not_end_is_told(any_stage: Stage) -> None:
    stage, lab = any_stage, any_stage.lab
    socket_of_copy = stage.serve(stage.image("copy.raw", MIB))
    (server,) = processes.of_lab(stage.folder, lab.system.uid)
    host = f"<host transport='unix' socket={quoteattr(str(socket_of_copy))}/>"
    copy = stage.folder / "copy.xml"
    copy.write_text(disk_xml("network", f"<source protocol='nbd'>{host}</source>", TARGET))
    words = (GUEST_NAME, TARGET, "--xml", str(copy), "--transient-job", "--reuse-external")
    lab.virsh_checked("blockcopy", *words)
    jobs = {"execute": "query-block-jobs"}
    wait_until(lambda: lab.qmp(jobs, GUEST_NAME)["return"][0]["ready"], "the copy is complete")
    # QEMU 5.2 ends the job at once, and waits for the target when libvirt lets it close that.
    is_silent = lab.libvirt_version < (8,)
    began = time.time()
    with (
        stopped(server),
        calling(lab, ("blockjob", GUEST_NAME, TARGET, "--abort")) as (client,),
    ):
        document, verdict = wait_for(lab, "qemu-silent" if is_silent else "qemu-event")
        os.kill(server, signal.SIGCONT)
    root = root_of(document, verdict, client, "virDomainBlockJobAbort")
    assert root["request"]["name"] == root["wait"]["domain"] == GUEST_NAME
    assert root["request"]["arguments"] == {"disk": TARGET}
    assert 0 < root["asleep_s"] < time.time() - began
    qemu, asleep = qemu_of(lab, GUEST_NAME), f"{root['asleep_s']:.1f} s"
    assert verdict["says"] == (
        f"{GUEST_NAME} waits for its QEMU (process {qemu}), which has not answered blockdev-del "
        f"for {asleep}."
        if is_silent
        else f"virDomainBlockJobAbort on {GUEST_NAME} (thread {root['tid']}) waits for {asleep} "
        f"until the QEMU of {GUEST_NAME} (process {qemu}) tells that work is done."
    )


def test_a_migration_that_stalls_is_told_on_both_hosts(any_lab: Lab, elsewhere: Lab) -> None:
    """Nobody reads the memory that QEMU sends: there a thread waits, here only a job is held."""
    began = time.time()
    with (
        stalled_migration(elsewhere, any_lab, "vm3") as (migration, let_fail),
        calling(any_lab, ("suspend", "vm3")) as (client,),
    ):
        there, waiting = wait_for(elsewhere, "qemu-event")
        document, verdict = wait_for(any_lab, "ownerless-job")
        assert migration.poll() is None
        let_fail()
    root = root_of(there, waiting, migration, "virDomainMigratePerform3Params")
    domain = domain_of(there, "vm3")
    assert root["wait"]["domain"] == root["request"]["name"] == "vm3"
    (job,) = (each for each in domain["jobs"] if each["kind"] == "async job")
    assert (job["work"], job["owner"]) == ("migration out", root["own_tid"])
    assert began < job["since"]
    assert waiting["says"] == (
        f"virDomainMigratePerform3Params on vm3 (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s until the QEMU of vm3 (process {domain['qemu']}) tells that "
        "work is done."
    )
    root = root_of(document, verdict, client, "virDomainSuspend")
    (job,) = domain_of(document, "vm3")["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("async job", "migration in", None)
    assert began < job["since"] < root["wait"]["since"]
    assert job["api"] == "remoteDispatchDomainMigratePrepare3Params"
    taken = datetime.fromisoformat(document["taken"]).timestamp()
    assert verdict["says"] == (
        "vm3 is blocked by a job that no thread holds: migration in, taken by "
        f"remoteDispatchDomainMigratePrepare3Params for {taken - job['since']:.1f} s."
    )
