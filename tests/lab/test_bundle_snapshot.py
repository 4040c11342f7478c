"""A snapshot of a real daemon that hangs, as a bundle: no name of the host is in it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.support.bundle_secrets import Scan
from tests.support.command import virtrace
from tests.support.hanging import calling, qemu_of, wait_for
from tests.support.pages import read_bundle
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")


def test_a_daemon_that_hangs(stock_lab: Lab, tmp_path: Path) -> None:
    file, packed = tmp_path / "hang.snapshot", tmp_path / "b.tar.gz"
    with stock_lab.stalled(), calling(stock_lab, ASK):
        wait_for(stock_lab, "qemu-stopped")
        with calling(stock_lab, ("domstats", "vm1")) as others:
            wait_for(stock_lab, "qemu-stopped", others)
            taken = virtrace("snapshot", "-p", stock_lab.pid, "-o", file)
            made = virtrace("bundle", file, "-o", packed)
            os.kill(qemu_of(stock_lab), signal.SIGCONT)
    assert taken.returncode == 1, taken.stderr
    assert made.returncode == 0, made.stderr
    assert virtrace("bundle", "verify", packed).returncode == 0
    files = read_bundle(packed)
    document = json.loads(file.read_text())
    private = [
        *(one["uuid"] for one in document["domains"]),
        *("domblkinfo vm1", "domain vm1", "vm1 hangs", str(stock_lab.folder)),
    ]
    for name, content in files.items():
        scan = Scan(content)
        assert {secret: scan.form_of(secret) for secret in private if scan.form_of(secret)} == {}, (
            name
        )
    # The daemon still runs, so its settings and its guest's log are there.
    assert {"REPORT.md", "snapshot.txt", "host/settings.txt", "versions.json"} <= set(files)
    shown = virtrace("show", packed).stdout
    assert shown.startswith("domain-1 hangs because its QEMU (process")
    # What is no name is the same.
    hidden = json.loads(files["snapshot.json"])
    assert [one["frames"] for one in hidden["threads"]] == [
        one["frames"] for one in document["threads"]
    ]
    assert hidden["objects"] == document["objects"]
    assert hidden["qemus"] == document["qemus"]


def test_a_snapshot_goes_with_a_trace(stock_lab: Lab, tmp_path: Path) -> None:
    trace, packed = tmp_path / "t.jsonl", tmp_path / "b.tar.gz"
    recorded = virtrace(
        *("record", "blockinfo", "-p", stock_lab.pid, "--calls", "1", "-o", trace, "--"),
        *stock_lab.virsh_command(*ASK),
    )
    assert recorded.returncode == 0, recorded.stderr
    made = virtrace("bundle", trace, "-o", packed, "--snapshot")
    assert made.returncode == 0, made.stderr
    assert virtrace("bundle", "verify", packed).returncode == 0
    files = read_bundle(packed)
    # Taken before the host was asked: nobody waits.
    assert json.loads(files["snapshot.json"])["verdicts"][0]["verdict"] in ("healthy", "busy")
    assert b"When the bundle was made: The daemon is healthy" in files["REPORT.md"]
    assert virtrace("show", packed).stdout.count("domain-1") > 0


def test_a_daemon_that_is_gone_has_no_snapshot(stock_lab: Lab, tmp_path: Path) -> None:
    trace, packed = tmp_path / "t.jsonl", tmp_path / "b.tar.gz"
    recorded = virtrace(
        *("record", "blockinfo", "-p", stock_lab.pid, "--calls", "1", "-o", trace, "--"),
        *stock_lab.virsh_command(*ASK),
    )
    assert recorded.returncode == 0, recorded.stderr
    made = virtrace("bundle", trace, "-o", packed, "--snapshot", "-p", os.getpid())
    assert made.returncode == 0, made.stderr
    assert "snapshot.json" not in read_bundle(packed)
    assert "snapshot.json" in made.stdout
    assert virtrace("bundle", "verify", packed).returncode == 0
