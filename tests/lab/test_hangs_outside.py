"""Hangs for a reason outside of QEMU: the same verdicts on all releases, and in a container."""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.hanging import (
    PATIENCE,
    admin,
    assert_asleep_since,
    calling,
    define_pool,
    domain_of,
    relaunch,
    relaunch_with,
    root_of,
    snapshot,
    stopped,
    thread_of,
    wait_for,
    when_asleep,
)
from tests.support.mounts import mounted
from tests.support.namespaces import here, pid_namespace
from tests.support.silent_files import silent_files
from tests.support.silent_names import silent_name_service
from tests.support.waiting import wait_until
from virtrace.image.process import read_status
from virtrace.lab.daemon import Lab
from virtrace.lab.stage import GUEST_NAME, TARGET, Stage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
F_SETPIPE_SZ = 1031


def test_a_save_into_a_fifo_names_the_fifo(any_stage: Stage) -> None:
    lab = any_stage.lab
    fifo = any_stage.images / "save.fifo"
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    began = time.time()
    with saving(lab, fifo) as (client, let_go):
        wait_for_call(lab, "virDomainSave")
        at_last = when_asleep(lab)
        with calling(lab, ("domblkinfo", GUEST_NAME, TARGET)) as (other,):
            # virsh asks how far it is.
            document, verdict = wait_for(lab, "fifo", [client, other])
            let_go()
    lab.virsh_checked("start", GUEST_NAME)
    root = root_of(document, verdict, client, "virDomainSave")
    assert verdict["says"] == (
        f"virDomainSave on {GUEST_NAME} (thread {root['tid']}) waits for {root['asleep_s']:.1f} s "
        f"for the other end of the FIFO {fifo}; 2 other calls on {GUEST_NAME} wait for that."
    )
    assert_asleep_since(document, root, began, at_last)
    assert root["wait"]["system_call"] == "openat"
    assert root["request"]["arguments"] == {"to": str(fifo)}
    (job,) = domain_of(document, GUEST_NAME)["jobs"]
    assert (job["kind"], job["work"], job["owner"]) == ("async job", "save", root["own_tid"])
    for behind in (thread_of(document, tid) for tid in verdict["behind"]):
        assert behind["wait"]["what"] == f"the lock of domain {GUEST_NAME}"
        assert behind["wait"]["owner"] == root["own_tid"]


@contextmanager
def saving(lab: Lab, fifo: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Save the guest into a FIFO meanwhile; yield the client, and what lets the save go on.

    libvirt opens the file a second time to mark it as complete. So the reader has it open for
    writing too, and stays until the call has ended.
    """
    readers = []

    def let_go() -> None:
        with open(os.open(fifo, os.O_RDWR), "rb", buffering=0) as file:
            readers.append(subprocess.Popen(["cat"], stdin=file, stdout=subprocess.DEVNULL))

    try:
        with calling(lab, ("save", GUEST_NAME, str(fifo))) as (client,):
            try:
                yield client, let_go
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


def test_a_pool_on_a_file_system_that_does_not_answer(any_stage: Stage) -> None:
    lab, point = any_stage.lab, any_stage.images / "pool"
    point.mkdir()
    define_pool(lab, point)
    began = time.time()
    try:
        with (
            silent_files(lab.pid, point) as files,
            calling(lab, ("pool-start", "pool")) as (client,),
        ):
            thread = files.asked()
            asked = when_asleep(lab)
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


def test_a_start_up_that_blocks_is_told(restartable: Lab) -> None:
    lab, point = restartable, restartable.folder / "pool"
    point.mkdir(mode=0o755)
    define_pool(lab, point)
    lab.virsh_checked("pool-autostart", "pool")
    began = time.time()
    with silent_files(lab.pid, point) as files:
        relaunch(lab)
        thread = files.asked()
        with calling(lab, ("list",)) as (client,):
            asked = when_asleep(lab)
            document, verdict = wait_for(lab, "file-system")
            assert client.poll() is None
            files.abort()
    lab.virsh_checked("pool-undefine", "pool")
    point.rmdir()
    assert verdict["thread"] == thread
    root = thread_of(document, thread)
    assert (root["role"], root["request"], root["client"]) == ("start-up", None, None)
    assert_asleep_since(document, root, began, asked)
    assert verdict["says"] == (
        f"The start-up (thread {thread}) waits for {root['asleep_s']:.1f} s for the file system "
        f"{point} (fuse), which does not answer."
    )
    assert [each["verdict"] for each in document["verdicts"]] == ["file-system", "starting"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("echo $$ >{pid}; exec sleep 100", id="sleeps"),
        pytest.param("sleep 100 & echo $! >{pid}", id="leaves a program behind"),
    ],
)
def test_a_hook_that_does_not_end_is_named(restartable: Lab, any_guest: str, body: str) -> None:
    lab, pid_file = restartable, restartable.folder / "run" / "hook.pid"
    script = f'#!/bin/sh\n[ "$2" = prepare ] || exit 0\n{body.format(pid=pid_file)}\n'
    with hook(lab, "qemu", script):
        began = time.time()
        with calling(lab, ("start", any_guest)) as (client,):
            wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the hook runs")
            asked = when_asleep(lab)
            document, verdict = wait_for(lab, "hook")
            pid = here(pid_namespace(lab.pid), int(pid_file.read_text()))
            assert verdict["do"][0]["command"] == f"kill {pid}"
            os.kill(pid, signal.SIGTERM)
    pid_file.unlink()
    root = root_of(document, verdict, client, "virDomainCreate")
    assert root["request"]["name"] == any_guest
    assert root["wait"]["children"] == [{"pid": pid, "command": "sleep 100", "state": "S"}]
    assert_asleep_since(document, root, began, asked)
    assert verdict["says"] == (
        f"virDomainCreate on {any_guest} (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s for a hook script of the host, process {pid} (sleep 100)."
    )


@contextmanager
def hook(lab: Lab, driver: str, script: str) -> Iterator[None]:
    """Give a lab's daemon a hook script meanwhile, for which it is started anew."""
    place = Path("/etc/libvirt")
    with mounted(lab.pid, place, "-t", "tmpfs", "-o", "mode=755", "tmpfs"):
        folder = Path(f"/proc/{lab.pid}/root") / place.relative_to("/") / "hooks"
        folder.mkdir()
        (folder / driver).write_text(script)
        (folder / driver).chmod(0o755)
        relaunch(lab)
        yield


def test_a_name_service_that_does_not_answer_is_told(any_stage: Stage) -> None:
    lab = any_stage.lab
    asked = ("migrate", GUEST_NAME, "qemu+tcp://there.example/session", "--p2p", "--unsafe")
    with (
        silent_name_service(lab.pid, any_stage.images / "resolv.conf") as names,
        calling(lab, asked) as (client,),
    ):
        began = time.time()
        assert b"\5there\7example\0" in names.asked()
        at_last = when_asleep(lab)
        document, verdict = wait_for(lab, "name-lookup")
        names.answer()
    root = root_of(document, verdict, client, "virDomainMigratePerform3Params")
    assert root["request"]["name"] == GUEST_NAME
    assert_asleep_since(document, root, began, at_last)
    assert verdict["says"] == (
        f"virDomainMigratePerform3Params on {GUEST_NAME} (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s for a name lookup (DNS)."
    )


def test_a_virtlogd_that_does_not_answer_is_told(restartable: Lab, any_guest: str) -> None:
    lab = restartable
    with virtlogd_of(lab):
        relaunch(lab)
        # The daemon starts its virtlogd when it needs it.
        lab.virsh_checked("start", any_guest)
        lab.virsh_checked("destroy", any_guest)
        number = int((lab.folder / "run" / "libvirt" / "virtlogd.pid").read_text())
        virtlogd = here(pid_namespace(lab.pid), number)
        try:
            began = time.time()
            with stopped(virtlogd), calling(lab, ("start", any_guest)) as (client,):
                document, verdict = wait_for(lab, "other-daemon")
                os.kill(virtlogd, signal.SIGCONT)
            assert client.returncode == 0
        finally:
            os.kill(virtlogd, signal.SIGKILL)
        wait_until(lambda: read_status(virtlogd) is None, "virtlogd has ended")
        gone = snapshot(lab)
    root = root_of(document, verdict, client, "virDomainCreate")
    assert root["request"]["name"] == any_guest
    (peer,) = root["wait"]["children"]
    assert (peer["pid"], peer["state"]) == (virtlogd, "T")
    assert 0 < root["asleep_s"] < time.time() - began
    assert verdict["says"] == (
        f"virDomainCreate on {any_guest} (thread {root['tid']}) waits for "
        f"{root['asleep_s']:.1f} s for the answer of process {virtlogd} "
        f"({peer['command']}, stopped by a signal)."
    )
    socket_of_it = str(lab.folder / "run" / "libvirt" / "virtlogd-sock")
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
        f"no process reads what the QEMU of {any_guest} writes to its log, as virtlogd does"
    ]


@contextmanager
def virtlogd_of(lab: Lab) -> Iterator[None]:
    """Let a lab's daemon use virtlogd, once it is started anew."""
    settings = lab.folder / "config" / "libvirt" / "qemu.conf"
    before = settings.read_text()
    settings.write_text('stdio_handler = "logd"\n')
    yield
    settings.write_text(before)


def neighbours(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [each for each in document["neighbours"] if each["name"] == name]


def test_an_event_loop_that_its_log_blocks_is_told(any_stage: Stage) -> None:
    lab = any_stage.lab
    fifo = any_stage.images / "log.fifo"
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


def test_a_deadlock_is_the_answer(restartable: Lab) -> None:
    lab = restartable
    relaunch_with(lab, "deadlock")
    with calling(lab, ("domtime", "vm1"), ("domhostname", "vm1")) as callers:
        wait_for(lab, "deadlock")
        with calling(lab, ("domtime", "vm1")) as (other,):
            document, verdict = wait_for(lab, "deadlock", [other])
            relaunch(lab)
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
