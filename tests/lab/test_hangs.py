"""`virtrace snapshot` of a real libvirtd, in further ways to hang."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from tests.lab.conftest import bring_up
from tests.support.hanging import (
    PATIENCE,
    admin,
    assert_asleep_since,
    calling,
    held_by_gdb,
    let_go,
    qemu_of,
    relaunch,
    root_of,
    snapshot,
    stopped,
    thread_of,
    time_when_asleep,
    wait_for,
)
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tests.support.silent_files import silent_files
from tests.support.silent_names import silent_name_service
from tests.support.waiting import wait_until
from virtrace.image.process import inspect, read_status
from virtrace.image.stopping import LONGEST_STOP
from virtrace.lab import processes
from virtrace.lab.daemon import Lab
from virtrace.lab.guest import MIB, disk_xml
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage
from virtrace.snapshot.host import tracer_of
from virtrace.snapshot.take import take

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")
SUPPORT = REPOSITORY / "tests" / "support"
GDB_REGISTERS = Path(__file__).with_name("gdb_registers_of_all.py")
F_SETPIPE_SZ = 1031


def test_a_debugger_that_holds_qemu_is_named(stage: Stage) -> None:
    lab = stage.lab
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


def test_a_limit_of_clients_that_is_reached_is_told(stock_lab: Lab) -> None:
    admin(
        stock_lab, "srv-clients-set", "libvirtd", "--max-clients", "4", "--max-unauth-clients", "4"
    )
    try:
        with ExitStack() as connections:
            for _ in range(4):
                connected(stock_lab, connections)
            with calling(stock_lab, ("list",)) as (late,):
                _, verdict = wait_for(stock_lab, "clients")
                info = admin(stock_lab, "srv-clients-info", "libvirtd")
                assert late.poll() is None
                connections.close()
    finally:
        admin(stock_lab, "srv-clients-set", "libvirtd", "--max-clients", "5000")
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


def test_an_event_loop_that_its_log_blocks_is_told(stage: Stage) -> None:
    lab = stage.lab
    fifo = stage.images / "log.fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    outputs, filters = (
        admin(lab, f"daemon-log-{what}").partition(":")[2].strip()
        for what in ("outputs", "filters")
    )
    admin(lab, "daemon-log-filters", "--filters", "1:util 1:rpc")
    with open(os.open(fifo, os.O_RDWR), "rb") as reader, ThreadPoolExecutor() as beside:
        fcntl.fcntl(reader, F_SETPIPE_SZ, mmap.PAGESIZE)
        # Its own answer may be what fills the FIFO.
        setting = beside.submit(admin, lab, "daemon-log-outputs", "--outputs", f"1:file:{fifo}")
        with drained_by_cat(fifo) as drain, calling(lab, ("list",)):
            wait_for(lab, "event-loop")
            late = subprocess.Popen(lab.virsh_command("list"), stdout=subprocess.DEVNULL)
            document, verdict = wait_for(lab, "event-loop")
            assert late.poll() is None
            drain()
            setting.result(PATIENCE)
            assert late.wait(PATIENCE) == 0
            admin(lab, "daemon-log-outputs", "--outputs", outputs)
            admin(lab, "daemon-log-filters", "--filters", filters)
    root = thread_of(document, verdict["thread"])
    assert root["wait"]["system_call"] == "write"
    assert root["wait"]["file"] == str(fifo)
    (main,) = (thread for thread in document["threads"] if thread["role"] == "main thread")
    assert main["tid"] in {verdict["thread"], *verdict["behind"]}
    if main is not root:
        assert main["wait"]["owner"] == root["own_tid"]
    assert verdict["says"].startswith(
        "No client is served, because the daemon's event loop is blocked; "
        f"waits for {root['asleep_s']:.1f} s for the kernel, in write({fifo})"
    )


@contextmanager
def drained_by_cat(fifo: Path) -> Iterator[Callable[[], None]]:
    """Read from a FIFO once that is asked for, or at the end, and throw it away."""
    with ExitStack() as end:

        def drain() -> None:
            cat = subprocess.Popen(["cat", fifo], stdout=subprocess.DEVNULL)
            end.callback(cat.wait)
            end.callback(cat.terminate)

        try:
            yield drain
        except BaseException:
            drain()
            raise


def test_a_pool_on_a_file_system_that_does_not_answer(stage: Stage) -> None:
    lab, point = stage.lab, stage.images / "pool"
    point.mkdir()
    define_pool(lab, point)
    began = time.time()
    try:
        with (
            silent_files(lab.pid, point) as files,
            calling(lab, ("pool-start", "pool")) as (client,),
        ):
            thread = files.asked()
            asked = time_when_asleep(lab)
            with calling(lab, ("pool-info", "pool")) as (other,):
                document, verdict = wait_for(lab, "file-system", [other])
                files.abort()
    finally:
        lab.virsh_checked("pool-undefine", "pool")
    root = root_of(document, verdict, client, "virStoragePoolCreate")
    # As the kernel told the file system.
    assert root["tid"] == thread
    assert (root["request"]["subject"], root["request"]["name"]) == ("storage pool", "pool")
    assert_asleep_since(document, root, began, asked)
    assert verdict["says"] == (
        f"virStoragePoolCreate on pool (thread {thread}) waits for {root['asleep_s']:.1f} s for "
        f"the file system {point} (fuse), which does not answer; 1 other call waits for that."
    )
    (behind,) = verdict["behind"]
    waiting = thread_of(document, behind)
    assert waiting["wait"]["what"] == "the lock of a virStoragePoolObj"
    assert waiting["wait"]["owner"] == root["own_tid"]


def define_pool(lab: Lab, point: Path) -> None:
    lab.virsh_checked("pool-define-as", "pool", "dir", "--target", str(point))


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A daemon that a test may start anew."""
    lab = bring_up()
    yield lab
    lab.down()


def test_a_start_up_that_blocks_is_told(own_lab: Lab) -> None:
    point = own_lab.folder / "pool"
    point.mkdir(mode=0o755)
    define_pool(own_lab, point)
    own_lab.virsh_checked("pool-autostart", "pool")
    with silent_files(own_lab.pid, point) as files:
        relaunch(own_lab)
        thread = files.asked()
        with calling(own_lab, ("list",)) as (client,):
            document, verdict = wait_for(own_lab, "file-system")
            assert client.poll() is None
            files.abort()
    assert verdict["thread"] == thread
    assert thread_of(document, thread)["role"] == "start-up"
    assert [each["verdict"] for each in document["verdicts"]] == ["file-system", "starting"]


def test_a_deadlock_is_the_answer(own_lab: Lab, tmp_path: Path) -> None:
    library = own_lab.folder / "deadlock.so"
    source = SUPPORT / "deadlock.c"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    relaunch(own_lab, LD_PRELOAD=str(library))
    with calling(own_lab, ("domtime", "vm1"), ("domhostname", "vm1")) as callers:
        wait_for(own_lab, "deadlock")
        with calling(own_lab, ("domtime", "vm1")) as (other,):
            document, verdict = wait_for(own_lab, "deadlock", [other])
            os.kill(own_lab.pid, signal.SIGKILL)
    by_client = {
        thread["client"]["pid"]: thread for thread in document["threads"] if thread["client"]
    }
    time_, hostname, late = (by_client[each.pid] for each in (*callers, other))
    assert [each["api"] for each in (time_, hostname, late)] == [
        "virDomainGetTime",
        "virDomainGetHostname",
        "virDomainGetTime",
    ]
    assert time_["wait"]["owner"] == hostname["own_tid"]
    assert hostname["wait"]["owner"] == late["wait"]["owner"] == time_["own_tid"]
    assert verdict["behind"] == [late["tid"]]
    parts = (
        f"{each['api']} on vm1 (thread {each['tid']}) waits for {each['wait']['what']}"
        for each in sorted((time_, hostname), key=lambda each: int(each["tid"]))
    )
    assert verdict["says"] == (
        f"The daemon is deadlocked; {', '.join(parts)}; 1 other call on vm1 waits for that."
    )


def test_a_client_with_too_many_calls_is_told(stock_lab: Lab) -> None:
    command = [sys.executable, str(SUPPORT / "many_calls.py"), stock_lab.uri, "7"]
    with stock_lab.stalled(), subprocess.Popen(command) as client:
        try:
            _, verdict, document = wait_for_verdicts(stock_lab, "qemu-stopped", "client-requests")
        finally:
            os.kill(qemu_of(stock_lab), signal.SIGCONT)
        assert client.wait(PATIENCE) == 0
    assert verdict["says"] == (
        f"The daemon reads no more calls of process {client.pid} ({' '.join(command)}): "
        "5 of 5 (max_client_requests) are not answered yet."
    )
    # As many workers serve it.
    clients = [thread["client"] for thread in document["threads"]]
    assert sum(each is not None and each["pid"] == client.pid for each in clients) == 5
    assert_connection(document, client.pid, requests=5, full=True)


def test_a_client_that_is_not_read_answers_no_keepalive(own_lab: Lab) -> None:
    settings = own_lab.folder / "config" / "libvirt" / "libvirtd.conf"
    settings.write_text("keepalive_interval = 1\nkeepalive_count = 100\n")
    relaunch(own_lab)
    own_lab.virsh_checked("uri")
    began = time.time()
    command = [sys.executable, str(SUPPORT / "many_calls.py"), own_lab.uri, "7"]
    with own_lab.stalled(), subprocess.Popen(command) as client:
        try:
            end = time.monotonic() + PATIENCE
            unanswered = 0
            while unanswered < 2:
                _, verdict, document = wait_for_verdicts(own_lab, "qemu-stopped", "client-requests")
                (connection,) = connections_of(document, client.pid)
                keepalive = connection["keepalive"]
                unanswered = keepalive["unanswered"]
                assert time.monotonic() < end
        finally:
            os.kill(qemu_of(own_lab), signal.SIGCONT)
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


def test_calls_in_flight_are_counted(stock_lab: Lab) -> None:
    with stock_lab.stalled(), calling(stock_lab, ASK) as (client,):
        document, _ = wait_for(stock_lab, "qemu-stopped")
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
    assert_connection(document, client.pid, requests=1, full=False)


def assert_connection(document: dict[str, Any], pid: int, *, requests: int, full: bool) -> None:
    """The client has one connection, with what libvirt sets where nobody else does."""
    (connection,) = connections_of(document, pid)
    keepalive = connection.pop("keepalive")
    assert connection == {"pid": pid, "requests": requests, "most_requests": 5, "full": full}
    assert (keepalive["interval_s"], keepalive["most"]) == (5, 5)
    taken = datetime.fromisoformat(document["taken"]).timestamp()
    assert keepalive["heard"] <= taken + document["seconds"]


def wait_for_verdicts(
    lab: Lab, first: str, second: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Take snapshots until these are the verdicts; return both, and the snapshot."""
    end = time.monotonic() + PATIENCE
    while True:
        document = snapshot(lab)
        if [each["verdict"] for each in document["verdicts"]] == [first, second]:
            return document["verdicts"][0], document["verdicts"][1], document
        assert time.monotonic() < end, document["verdicts"]


def connections_of(document: dict[str, Any], pid: int) -> list[dict[str, Any]]:
    """What a snapshot says of a client's connections."""
    found = (each for server in document["servers"] for each in server["connections"])
    return [each for each in found if each["pid"] == pid]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("echo $$ >{pid}; exec sleep 100", id="sleeps"),
        pytest.param("sleep 100 & echo $! >{pid}", id="leaves a program behind"),
    ],
)
def test_a_hook_that_does_not_end_is_named(own_lab: Lab, body: str) -> None:
    own_lab.define("vm2", own_lab.folder / "vm2.xml", "")
    pid_file = own_lab.folder / "run" / "hook.pid"
    script = f'#!/bin/sh\n[ "$2" = prepare ] || exit 0\n{body.format(pid=pid_file)}\n'
    with hook("qemu", script):
        relaunch(own_lab)
        with calling(own_lab, ("start", "vm2")) as (client,):
            document, verdict = wait_for(own_lab, "hook")
            pid = int(pid_file.read_text())
            assert verdict["do"][0]["command"] == f"kill {pid}"
            os.kill(pid, signal.SIGTERM)
    root = root_of(document, verdict, client, "virDomainCreate")
    assert root["request"]["name"] == "vm2"
    assert root["wait"]["children"] == [{"pid": pid, "command": "sleep 100", "state": "S"}]
    assert verdict["says"] == (
        f"virDomainCreate on vm2 (thread {root['tid']}) waits for {root['asleep_s']:.1f} s for a "
        f"hook script of the host, process {pid} (sleep 100)."
    )


@contextmanager
def hook(driver: str, script: str) -> Iterator[None]:
    """Give the daemons of this mount namespace a hook script meanwhile."""
    place = Path("/etc/libvirt")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], check=True)
    try:
        (place / "hooks").mkdir()
        file = place / "hooks" / driver
        file.write_text(script)
        file.chmod(0o755)
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_block_job_that_does_not_end_is_told(stage: Stage) -> None:
    lab = stage.lab
    socket_of_copy = stage.serve(stage.image("copy.raw", MIB))
    (server,) = processes.of_lab(stage.folder, lab.system.uid)
    host = f"<host transport='unix' socket={quoteattr(str(socket_of_copy))}/>"
    copy = stage.folder / "copy.xml"
    copy.write_text(disk_xml("network", f"<source protocol='nbd'>{host}</source>", TARGET))
    words = (GUEST_NAME, TARGET, "--xml", str(copy), "--transient-job", "--reuse-external")
    lab.virsh_checked("blockcopy", *words)
    jobs = {"execute": "query-block-jobs"}
    wait_until(lambda: lab.qmp(jobs, GUEST_NAME)["return"][0]["ready"], "the copy is complete")
    began = time.time()
    with (
        stopped(server),
        calling(lab, ("blockjob", GUEST_NAME, TARGET, "--abort")) as (client,),
    ):
        document, verdict = wait_for(lab, "qemu-event")
        os.kill(server, signal.SIGCONT)
    root = root_of(document, verdict, client, "virDomainBlockJobAbort")
    assert root["request"]["name"] == root["wait"]["domain"] == GUEST_NAME
    assert root["request"]["arguments"] == {"disk": TARGET}
    assert 0 < root["asleep_s"] < time.time() - began
    assert verdict["says"] == (
        f"virDomainBlockJobAbort on {GUEST_NAME} (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s until the QEMU of {GUEST_NAME} "
        f"(process {qemu_of(lab, GUEST_NAME)}) tells that work is done."
    )


def test_a_virtlogd_that_does_not_answer_is_told(own_lab: Lab) -> None:
    (own_lab.folder / "config" / "libvirt" / "qemu.conf").write_text('stdio_handler = "logd"\n')
    relaunch(own_lab)
    own_lab.define("vm2", own_lab.folder / "vm2.xml", "")
    # The daemon starts its virtlogd when it needs it.
    own_lab.virsh_checked("start", "vm2")
    own_lab.virsh_checked("destroy", "vm2")
    virtlogd = int((own_lab.folder / "run" / "libvirt" / "virtlogd.pid").read_text())
    try:
        began = time.time()
        with stopped(virtlogd), calling(own_lab, ("start", "vm2")) as (client,):
            document, verdict = wait_for(own_lab, "other-daemon")
            os.kill(virtlogd, signal.SIGCONT)
        assert client.returncode == 0
    finally:
        os.kill(virtlogd, signal.SIGKILL)
    wait_until(lambda: read_status(virtlogd) is None, "virtlogd has ended")
    gone = snapshot(own_lab)
    root = root_of(document, verdict, client, "virDomainCreate")
    assert root["request"]["name"] == "vm2"
    (peer,) = root["wait"]["children"]
    assert (peer["pid"], peer["state"]) == (virtlogd, "T")
    assert 0 < root["asleep_s"] < time.time() - began
    assert verdict["says"] == (
        f"virDomainCreate on vm2 (thread {root['tid']}) waits for {root['asleep_s']:.1f} s for the "
        f"answer of process {virtlogd} ({peer['command']}, stopped by a signal)."
    )
    socket_of_it = str(own_lab.folder / "run" / "libvirt" / "virtlogd-sock")
    assert neighbours(document, "virtlogd") == [
        {
            "name": "virtlogd",
            "socket": socket_of_it,
            "pid": virtlogd,
            "state": "T",
            "has_socket": True,
            "waiting": [root["tid"]],
        }
    ]
    (it,) = neighbours(gone, "virtlogd")
    assert (it["pid"], it["has_socket"], it["waiting"]) == (None, False, [])
    assert gone["notes"] == [
        "no process reads what the QEMU of vm2 writes to its log, as virtlogd does"
    ]


def neighbours(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [each for each in document["neighbours"] if each["name"] == name]


def test_a_name_service_that_does_not_answer_is_told(stage: Stage) -> None:
    lab = stage.lab
    asked = ("migrate", GUEST_NAME, "qemu+tcp://there.example/session", "--p2p", "--unsafe")
    with (
        silent_name_service(lab.pid, stage.images / "resolv.conf") as names,
        calling(lab, asked) as (client,),
    ):
        began = time.time()
        assert b"\5there\7example\0" in names.asked()
        at_last = time_when_asleep(lab)
        document, verdict = wait_for(lab, "name-lookup")
        names.answer()
    root = root_of(document, verdict, client, "virDomainMigratePerform3Params")
    assert root["request"]["name"] == GUEST_NAME
    assert_asleep_since(document, root, began, at_last)
    assert verdict["says"] == (
        f"virDomainMigratePerform3Params on {GUEST_NAME} (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s for a name lookup (DNS)."
    )


def test_a_migration_that_stalls_is_told_on_both_hosts(
    stage: Stage, other_host: Lab, tmp_path: Path
) -> None:
    """Nobody reads the memory that QEMU sends: here a thread waits, there only a job is held."""
    lab = stage.lab
    lab.define("vm3", tmp_path / "vm3.xml", "")
    lab.virsh_checked("start", "vm3")
    began = time.time()
    try:
        with socket.create_server(("127.0.0.1", 0)) as sink:
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            to = f"tcp://127.0.0.1:{sink.getsockname()[1]}"
            asked = f"migrate vm3 {other_host.uri} --live --migrateuri {to}"
            words = (*asked.split(), "--listen-address", "127.0.0.2")
            with calling(lab, words) as (migration,):
                connection, _ = sink.accept()
                with connection, calling(other_host, ("suspend", "vm3")) as (client,):
                    here, waiting = wait_for(lab, "qemu-event")
                    document, verdict = wait_for(other_host, "ownerless-job")
                    assert migration.poll() is None
                    connection.shutdown(socket.SHUT_RDWR)
                    sink.close()
    finally:
        lab.virsh("destroy", "vm3")
        lab.virsh_checked("undefine", "vm3")
    root = root_of(here, waiting, migration, "virDomainMigratePerform3Params")
    assert root["wait"]["domain"] == root["request"]["name"] == "vm3"
    (domain,) = (each for each in here["domains"] if each["name"] == "vm3")
    (job,) = (each for each in domain["jobs"] if each["kind"] == "async job")
    assert (job["work"], job["owner"]) == ("migration out", root["own_tid"])
    assert began < job["since"]
    assert waiting["says"] == (
        f"virDomainMigratePerform3Params on vm3 (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s until the QEMU of vm3 (process {domain['qemu']}) tells that "
        "work is done."
    )
    root = root_of(document, verdict, client, "virDomainSuspend")
    (domain,) = (each for each in document["domains"] if each["name"] == "vm3")
    (job,) = domain["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("async job", "migration in", None)
    assert began < job["since"] < root["wait"]["since"]
    assert job["api"] == "remoteDispatchDomainMigratePrepare3Params"
    taken = datetime.fromisoformat(document["taken"]).timestamp()
    assert verdict["says"] == (
        "vm3 is blocked by a job that no thread holds: migration in, taken by "
        f"remoteDispatchDomainMigratePrepare3Params for {taken - job['since']:.1f} s."
    )


@pytest.fixture
def contained(own_lab: Lab) -> Iterator[tuple[Lab, list[str]]]:
    """A daemon and its guest in a mount and PID namespace of their own, and what enters that."""
    lab = own_lab
    lab.virsh_checked("destroy", "vm1")
    os.kill(lab.pid, signal.SIGTERM)
    wait_until(lambda: not lab.is_up, "the daemon ends")
    namespaces = ("--mount", "--pid")
    command = ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    with subprocess.Popen(
        [*command, "echo; exec sleep infinity"], stdout=subprocess.PIPE
    ) as container:
        try:
            assert container.stdout is not None
            container.stdout.readline()
            first = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text()
            enter = ["nsenter", "--target", first.strip(), *namespaces]
            user = (f"--reuid={lab.system.uid}", f"--regid={lab.system.gid}", "--clear-groups")
            pid_file = lab.folder / "run" / f"{lab.daemon}.pid"
            daemon = (lab.program(), "-d", "-p", str(pid_file))
            lab.system.run(*enter, "setpriv", *user, *daemon)
            # The lab looks for it by its pid here.
            (pid,) = (
                pid for pid in lab.processes if processes.executable(pid).endswith(f"/{lab.daemon}")
            )
            pid_file.write_text(str(pid))
            lab.virsh_checked("start", "vm1")
            yield lab, enter
        finally:
            container.kill()


def test_a_daemon_in_a_container_is_read_from_the_host(
    contained: tuple[Lab, list[str]],
) -> None:
    lab, enter = contained
    (qemu,) = (pid for pid in lab.processes if b"guest=vm1," in processes.command_line(pid))
    virsh = lab.virsh_command(*ASK)
    with lab.stalled(), subprocess.Popen([*enter, *virsh], stdout=subprocess.DEVNULL) as entered:
        try:
            document, verdict = wait_for(lab, "qemu-stopped")
            client = int(Path(f"/proc/{entered.pid}/task/{entered.pid}/children").read_text())
        finally:
            os.kill(qemu, signal.SIGCONT)
        assert entered.wait(PATIENCE) == 0
    assert verdict["says"] == f"vm1 hangs because its QEMU (process {qemu}) is stopped by a signal."
    assert verdict["do"][0]["command"] == f"kill -CONT {qemu}"
    root = thread_of(document, verdict["thread"])
    assert root["api"] == "virDomainGetBlockInfo"
    assert (root["client"]["pid"], root["client"]["command"]) == (client, " ".join(virsh))
    status = read_status(root["tid"])
    assert status is not None
    assert status["NSpid"].split() == [str(root["tid"]), str(root["own_tid"])]
    assert root["own_tid"] != root["tid"]
    (domain,) = document["domains"]
    (job,) = domain["jobs"]
    assert (domain["qemu"], job["owner"]) == (qemu, root["own_tid"])
    assert [each["pid"] for each in connections_of(document, client)] == [client]


@pytest.fixture
def spinning(own_lab: Lab) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    """A daemon with a worker that computes and never ends, and its client."""
    library = own_lab.folder / "spinning.so"
    source = SUPPORT / "spinning.c"
    subprocess.run(["gcc", "-O0", "-shared", "-fPIC", source, "-o", library], check=True)
    relaunch(own_lab, LD_PRELOAD=str(library))
    with calling(own_lab, ("domtime", "vm1")) as (client,):
        yield own_lab, client
        os.kill(own_lab.pid, signal.SIGKILL)


def serving(document: dict[str, Any], client: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    threads = document["threads"]
    return [one for one in threads if one["client"] and one["client"]["pid"] == client.pid]


def test_a_thread_that_runs_has_its_stack_from_a_moment_of_stop(
    spinning: tuple[Lab, subprocess.Popen[bytes]],
) -> None:
    lab, client = spinning
    end = time.monotonic() + PATIENCE
    while not (found := serving(snapshot(lab, "--registers"), client)):
        assert time.monotonic() < end
    (thread,) = found
    assert (thread["api"], thread["state"], thread["role"]) == ("virDomainGetTime", "R", "worker")
    assert thread["request"]["name"] == "vm1"
    assert thread["wait"]["kind"] == "computes"
    assert 0 < thread["stopped_ms"] < LONGEST_STOP * 1000
    names = [frame.partition("+")[0] for frame in thread["frames"]]
    assert names[:3] == ["spin", "spin_for_call", "virDomainGetTime"]
    assert "virNetServerProgramDispatch" in names
    assert thread["frames_end"] is None
    # Without a stop, only that it runs.
    without = snapshot(lab)
    (same,) = (one for one in without["threads"] if one["tid"] == thread["tid"])
    assert (same["frames"], same["stopped_ms"], same["wait"]["kind"]) == ([], None, "computes")
    assert_untraced_and_intact(lab.pid)
    status = read_status(thread["tid"])
    assert status is not None
    assert status["State"].startswith("R")


def test_no_thread_is_stopped_where_one_waits_for_silent_files(
    spinning: tuple[Lab, subprocess.Popen[bytes]],
) -> None:
    lab, client = spinning
    point = lab.folder / "pool"
    point.mkdir(mode=0o755)
    define_pool(lab, point)
    with silent_files(lab.pid, point) as files, calling(lab, ("pool-start", "pool")):
        waiting = files.asked()
        document = snapshot(lab, "--registers")
        files.abort()
    assert document["notes"] == [
        f"no thread was stopped for its registers: thread {waiting} waits for the file system "
        f"{point} (fuse), which may not answer"
    ]
    assert {thread["stopped_ms"] for thread in document["threads"]} == {None}
    assert serving(document, client) == []


def test_frames_and_registers_are_those_of_gdb(stock_lab: Lab) -> None:
    """Of a daemon that hangs, without a stop, and then by GDB, which stops it."""
    with stock_lab.stalled(), calling(stock_lab, ASK, ASK, ("dommemstat", "vm1")) as callers:
        wait_for(stock_lab, "qemu-stopped")
        look = take(inspect(stock_lab.pid))
        command = ["gdb", "-nx", "-q", "-batch", "-p", str(stock_lab.pid), "-x", str(GDB_REGISTERS)]
        printed = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=PATIENCE)
        assert all(caller.poll() is None for caller in callers)
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
    (line,) = (line for line in printed.splitlines() if line.startswith(b"{"))
    by_gdb = json.loads(line)
    still = [thread for thread in look.threads if not thread.moved]
    served = {thread.client.pid for thread in still if thread.client is not None}
    assert served == {caller.pid for caller in callers}
    values = 0
    for thread in still:
        frames = by_gdb[str(thread.tid)]
        assert thread.ended is None
        assert len(thread.frames) == len(frames), (thread, frames)
        for ours, theirs in zip(thread.frames, frames):
            known = ours.frame.registers.known
            assert {name: known[name] for name in theirs if name in known} == {
                name: value for name, value in theirs.items() if name in known
            }
            values += len(known.keys() & theirs.keys())
    assert values > 500
