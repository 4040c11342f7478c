"""`virtrace snapshot` of a real libvirtd with networks, and of what their dnsmasq does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import virtrace
from tests.support.mounts import mounted
from tests.support.networking import NetworkDaemon, network_daemon
from tests.support.toolchain import need
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a network")
ADDRESS = "<ip address='192.0.2.{}' netmask='255.255.255.252'>{}</ip>"
DHCP = "<dhcp><range start='192.0.2.2' end='192.0.2.2'/></dhcp>"


@pytest.fixture(scope="module")
def daemon() -> Iterator[NetworkDaemon]:
    need("dnsmasq", "ip")
    with network_daemon() as daemon:
        daemon.define("served", ADDRESS.format(1, DHCP))
        daemon.define("named", ADDRESS.format(5, ""))
        daemon.define("silent", "<dns enable='no'/>" + ADDRESS.format(9, ""))
        daemon.define("plain", "", "bridge")
        yield daemon


@pytest.fixture
def started(daemon: NetworkDaemon) -> Iterator[NetworkDaemon]:
    """With the network `served`."""
    daemon.virsh("net-start", "served")
    yield daemon
    if daemon.virsh("net-list", "--name").split():
        daemon.virsh("net-destroy", "served")


def snapshot(daemon: NetworkDaemon) -> dict[str, Any]:
    done = virtrace("snapshot", "--json", "-p", daemon.pid)
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_only_networks_that_need_dnsmasq_are_listed(daemon: NetworkDaemon) -> None:
    names = ["named", "plain", "served", "silent"]
    for name in names:
        daemon.virsh("net-start", name)
    assert sorted(daemon.virsh("net-list", "--name").split()) == names
    listed = snapshot(daemon)["networks"]
    assert [(one["name"], one["dnsmasq"]) for one in listed] == [
        (name, daemon.dnsmasq(name)) for name in ("named", "served")
    ]
    assert {one["state"] for one in listed} <= {"R", "S"}
    # libvirt itself has none for the others.
    folder = daemon.file("/run/libvirt/network")
    assert sorted(file.stem for file in folder.glob("*d.pid")) == ["named", "served"]
    shown = virtrace("snapshot", "-p", daemon.pid)
    assert f"  network  served: dnsmasq: process {daemon.dnsmasq('served')}, running" in (
        shown.stdout
    )
    for name in names:
        daemon.virsh("net-destroy", name)
    assert snapshot(daemon)["networks"] == []


def test_a_dnsmasq_that_is_stopped_is_told(started: NetworkDaemon) -> None:
    pid = started.dnsmasq("served")
    os.kill(pid, signal.SIGSTOP)
    document = snapshot(started)
    assert document["networks"] == [{"name": "served", "dnsmasq": pid, "state": "T"}]
    first = document["verdicts"][0]
    assert first["verdict"] == "dnsmasq-stopped"
    assert first["says"] == (
        "Guests on network served get no addresses and names; its dnsmasq "
        f"(process {pid}) is stopped by a signal."
    )
    assert first["do"][0]["command"] == f"kill -CONT {pid}"
    os.kill(pid, signal.SIGCONT)
    assert snapshot(started)["verdicts"][0]["verdict"] == "healthy"
    # The daemon does not wait for one that is stopped, and ends it.
    os.kill(pid, signal.SIGSTOP)
    started.virsh("net-destroy", "served")
    assert snapshot(started)["verdicts"][0]["verdict"] == "healthy"
    assert not is_alive(pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_dnsmasq_that_is_gone_is_told(started: NetworkDaemon, how: signal.Signals) -> None:
    """Its pid file is left, or not."""
    pid = started.dnsmasq("served")
    os.kill(pid, how)
    wait_until(lambda: not is_alive(pid), "dnsmasq ends")
    document = snapshot(started)
    assert document["networks"] == [{"name": "served", "dnsmasq": None, "state": None}]
    (first,) = document["verdicts"]
    assert first["verdict"] == "dnsmasq-gone"
    assert first["do"][0]["command"] == "systemctl reload libvirtd"
    assert "served: dnsmasq does not run" in virtrace("snapshot", "-p", started.pid).stdout
    # What that command sends.
    os.kill(started.pid, signal.SIGHUP)
    wait_until(lambda: snapshot(started)["networks"][0]["dnsmasq"] is not None, "it starts again")
    again = snapshot(started)
    assert again["networks"][0]["dnsmasq"] == started.dnsmasq("served") != pid
    assert again["verdicts"][0]["verdict"] == "healthy"


def test_a_dnsmasq_that_does_not_start_is_told(daemon: NetworkDaemon, tmp_path: Path) -> None:
    """It reads random numbers before it lets the daemon go on."""
    fifo = tmp_path / "urandom"
    os.mkfifo(fifo)
    start = daemon.virsh_command("net-start", "served")
    with (
        mounted(daemon.pid, Path("/dev/urandom"), "--bind", str(fifo)),
        subprocess.Popen(start, stdout=subprocess.DEVNULL) as client,
    ):
        document = wait_until(partial(hanging, daemon), "it hangs")
        assert document is not None
        first = document["verdicts"][0]
        (root,) = (one for one in document["threads"] if one["tid"] == first["thread"])
        (child,) = root["wait"]["children"]
        os.kill(child["pid"], signal.SIGKILL)
        assert client.wait() != 0
    assert root["api"] == "virNetworkCreate"
    assert (root["request"]["subject"], root["request"]["name"]) == ("network", "served")
    assert root["client"]["command"] == " ".join(start[start.index("virsh") :])
    assert first["says"].startswith(
        f"virNetworkCreate on served (thread {root['tid']}) waits for {root['asleep_s']:.1f} s for "
        f"process {child['pid']} (/usr/sbin/dnsmasq --version)"
    )


def hanging(daemon: NetworkDaemon) -> dict[str, Any] | None:
    document = snapshot(daemon)
    return document if document["verdicts"][0]["verdict"] == "child" else None


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
