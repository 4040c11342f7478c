"""Modular daemons, without and with libvirtd. Run by test_modular.py in a PID namespace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_debug_info import CHAIN, returned
from tests.lab.test_stripped import stats_of
from tests.lab.tracing import DISKS, all_disks, calls_of, printed_info, span, whole_trace
from tests.support.command import virtrace
from tests.support.intact import assert_untraced_and_intact
from virtrace.lab.daemon import Lab
from virtrace.lab.debug_build import STORAGE_DAEMON
from virtrace.lab.service import PrivateDaemon
from virtrace.trace.format import is_unavailable

VOLUMES = ("first", "second")


@pytest.fixture(scope="module")
def modular_lab() -> Iterator[Lab]:
    lab = bring_up(debug_info=True, daemon="virtqemud")
    yield lab
    lab.down()


def test_the_only_daemon_is_found(modular_lab: Lab) -> None:
    doctor = virtrace("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert doctor.stdout.startswith(f"Tracing works here. Daemon {modular_lab.pid}: full chain (")
    assert "/virtqemud, libvirt 9.0.0\n" in doctor.stdout


@pytest.fixture(scope="module")
def storage(modular_lab: Lab) -> PrivateDaemon:
    """Virtstoraged in the same lab, with a pool of two volumes."""
    lab = modular_lab
    daemon = PrivateDaemon(lab.folder, lab.system, STORAGE_DAEMON, True, print)
    daemon.launch()
    pool = lab.folder / "data" / "pool"
    pool.mkdir()
    for name in VOLUMES:
        (pool / name).touch()
    daemon.virsh_checked("pool-create-as", "pool", "dir", "--target", str(pool))
    return daemon


def test_each_recipe_finds_the_daemon_that_has_its_driver(
    modular_lab: Lab, storage: PrivateDaemon, tmp_path: Path
) -> None:
    """Neither -p nor --process, and a daemon for each driver."""
    refresh = storage.virsh_command("pool-refresh", "pool")
    done = virtrace("record", "pool-refresh", "-o", str(tmp_path / "pool.jsonl"), "--", *refresh)
    assert done.returncode == 0, done.stderr
    assert_untraced_and_intact(storage.pid)
    trace = whole_trace(tmp_path / "pool.jsonl")
    assert trace.header["target"]["pid"] == storage.pid
    assert trace.header["target"]["exe"].endswith("/virtstoraged")
    (call,) = calls_of(trace)
    for name in ("virStoragePoolRefresh", "storagePoolRefresh"):
        assert span(call, name).arguments == {"pool": "pool", "flags": 0}
        assert returned(call, name) == {"result": 0}
    volumes = [event.values["name"] for event in trace.events if event.name == "volume"]
    assert sorted(volumes) == sorted(VOLUMES)

    info = modular_lab.virsh_command("domblkinfo", "vm1", "vda")
    done = virtrace("record", "blockinfo", "-o", str(tmp_path / "block.jsonl"), "--", *info)
    assert done.returncode == 0, done.stderr
    assert_untraced_and_intact(modular_lab.pid)
    trace = whole_trace(tmp_path / "block.jsonl")
    assert trace.header["target"]["pid"] == modular_lab.pid
    assert trace.header["target"]["exe"].endswith("/virtqemud")


def test_a_snapshot_of_the_daemon_of_a_name(modular_lab: Lab, storage: PrivateDaemon) -> None:
    for name, pid in (("virtqemud", modular_lab.pid), ("virtstoraged", storage.pid)):
        done = virtrace("snapshot", "--json", "--process", name)
        assert json.loads(done.stdout)["daemon"]["pid"] == pid, done.stderr


def test_doctor_lists_what_each_daemon_can_be_traced_by(
    modular_lab: Lab, storage: PrivateDaemon
) -> None:
    doctor = virtrace("doctor")
    assert doctor.returncode == 0, doctor.stdout
    sections = doctor.stdout.split("\nDaemon ")
    by_pid = {section.partition(":")[0]: section for section in sections[1:]}
    assert by_pid.keys() == {str(modular_lab.pid), str(storage.pid)}
    assert "ok       recipes: errors, events, pool-refresh, rpc\n" in by_pid[str(storage.pid)]
    assert "libvirt_driver_qemu.so is not loaded\n" in by_pid[str(storage.pid)]
    assert (
        "note     not pool-refresh: libvirt_driver_storage.so is not loaded\n"
        in (by_pid[str(modular_lab.pid)])
    )


def test_where_no_daemon_has_the_driver_nothing_is_traced(
    modular_lab: Lab, storage: PrivateDaemon, tmp_path: Path
) -> None:
    output = tmp_path / "trace.jsonl"
    refused = virtrace("record", "blockinfo", "-p", str(storage.pid), "-o", str(output))
    assert refused.returncode == 3
    assert "has not loaded libvirt_driver_qemu.so, which this recipe traces\n" in refused.stderr
    assert "try: trace libvirtd or virtqemud; " in refused.stderr
    refused = virtrace("record", "pool-refresh", "--process", "virtqemud", "-o", str(output))
    assert refused.returncode == 3
    assert "no running daemon has loaded " in refused.stderr
    assert "try: start libvirtd or virtstoraged; these run\n" in refused.stderr
    assert not output.exists()


def test_the_daemon_of_this_name_is_traced(
    modular_lab: Lab, stock_lab: Lab, tmp_path: Path
) -> None:
    output = tmp_path / "trace.jsonl"
    options = ("--process", "virtqemud", "--host-facts", "-o", str(output))
    done = virtrace("record", "blockinfo", *options, "--", *all_disks(modular_lab))
    assert done.returncode == 0, done.stderr
    assert_untraced_and_intact(modular_lab.pid)
    trace = whole_trace(output)
    assert trace.header["target"]["pid"] == modular_lab.pid
    assert trace.header["target"]["exe"].endswith("/virtqemud")
    calls = calls_of(trace)
    devices = modular_lab.qmp({"execute": "query-blockstats"})["return"]
    nodes = modular_lab.qmp({"execute": "query-named-block-nodes", "arguments": {"flat": True}})
    images = {node["node-name"]: node["image"] for node in nodes["return"]}
    printed = printed_info(done.stdout)
    assert len(calls) == len(printed) == len(devices) == len(trace.host) == len(DISKS)
    for disk, call, numbers, device, host in zip(DISKS, calls, printed, devices, trace.host):
        for name in CHAIN[:2]:
            assert span(call, name).arguments == {"domain": "vm1", "disk": disk, "flags": 0}
            assert returned(call, name) == {"result": 0, "info": numbers}
        assert span(call, CHAIN[2]).arguments == {"disk": disk, "capacity": True}
        assert returned(call, CHAIN[2])["stats"] == stats_of(device, images[device["node-name"]])
        assert host["disk"] == disk
        assert not is_unavailable(host["xml"])


def test_of_several_daemons_one_is_to_be_chosen(
    modular_lab: Lab, stock_lab: Lab, tmp_path: Path
) -> None:
    doctor = virtrace("doctor")
    assert doctor.returncode == 0, doctor.stdout
    assert doctor.stdout.startswith("Tracing works here, on several daemons, so name one with -p.")
    refused = virtrace("record", "blockinfo", "-o", str(tmp_path / "trace.jsonl"))
    assert refused.returncode == 3
    assert "2 daemons are running" in refused.stderr
    for lab in (modular_lab, stock_lab):
        assert f"\nDaemon {lab.pid}:\n" in doctor.stdout
        assert f"\n     -p {lab.pid}  " in refused.stderr
    assert "/virtqemud of user nobody\n" in refused.stderr
    assert "/libvirtd of user nobody\n" in refused.stderr
