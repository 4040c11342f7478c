"""`virtrace snapshot` of a real libvirtd, in further ways to hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import bring_up
from tests.support.hanging import (
    PATIENCE,
    calling,
    connections_of,
    define_pool,
    qemu_of,
    relaunch_with,
    snapshot,
    wait_for,
    wait_for_verdicts,
    waiting,
)
from tests.support.intact import assert_untraced_and_intact
from tests.support.paths import REPOSITORY
from tests.support.silent_files import silent_files
from virtrace.image.process import inspect, read_status
from virtrace.image.stopping import LONGEST_STOP
from virtrace.lab.daemon import Lab
from virtrace.snapshot.take import take

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")
SUPPORT = REPOSITORY / "tests" / "support"
GDB_REGISTERS = Path(__file__).with_name("gdb_registers_of_all.py")


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A daemon that a test may start anew."""
    lab = bring_up()
    yield lab
    lab.down()


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


@pytest.fixture
def spinning(own_lab: Lab) -> Iterator[tuple[Lab, subprocess.Popen[bytes]]]:
    """A daemon with a worker that computes and never ends, and its client."""
    relaunch_with(own_lab, "spinning")
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
    with stock_lab.stalled(), waiting(stock_lab, ASK, ASK, ("dommemstat", "vm1")) as callers:
        # Not before: GDB's stop could end the call of a client that still connects.
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
