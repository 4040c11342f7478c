"""virtqemud beside libvirtd. Run by test_modular.py where no other daemon is to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import bring_up
from tests.lab.test_debug_info import CHAIN, returned
from tests.lab.test_stripped import stats_of
from tests.lab.tracing import DISKS, all_disks, calls_of, printed_info, span, virtrace, whole_trace
from tests.support.intact import assert_untraced_and_intact
from virtrace.lab.daemon import Lab
from virtrace.trace.format import is_unavailable


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
