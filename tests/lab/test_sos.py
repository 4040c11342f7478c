"""The plugin for sos, in a copy of the sos that is installed here."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.command import SECONDS, VIRTRACE, virtrace
from tests.support.paths import REPOSITORY
from virtrace.lab.daemon import Lab
from virtrace.targets import known_targets

PLUGIN = REPOSITORY / "share" / "sos" / "virtrace.py"
# Debian's own, which no virtual environment has.
SYSTEM = Path("/usr/lib/python3/dist-packages")


def test_it_knows_all_daemons() -> None:
    (value,) = (
        node.value
        for node in ast.parse(PLUGIN.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DAEMONS"
    )
    named = eval(compile(ast.Expression(value), str(PLUGIN), "eval"))
    (libvirt,) = (target for target in known_targets() if target.name == "libvirt")
    assert named == tuple(libvirt.daemons)


@pytest.mark.host
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run sos")
def test_a_report_has_the_doctor_and_a_snapshot_of_the_daemon(
    stock_lab: Lab, tmp_path: Path
) -> None:
    sos = shutil.which("sos")
    if sos is None:
        pytest.skip("sos is not installed")
    copy = tmp_path / "packages" / "sos"
    shutil.copytree(SYSTEM / "sos", copy)
    shutil.copy(PLUGIN, copy / "report" / "plugins")
    # sos looks for commands where the system has them.
    commands = tmp_path / "commands"
    commands.mkdir()
    command = commands / "virtrace"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(VIRTRACE)} "$@"\n')
    command.chmod(0o755)
    options = ("--batch", "--only-plugins=virtrace", "--compression-type=gzip")
    script = 'mount --bind "$1" /usr/local/sbin; shift; exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-ec", script, "sh", str(commands)),
            *("/usr/bin/python3", sos, "report", *options, f"--tmp-dir={tmp_path}"),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(copy.parent), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = tmp_path.glob("sosreport-*.tar.gz")
    subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={tmp_path}"], check=True)
    (folder,) = tmp_path.glob("sosreport-*/sos_commands/virtrace")
    report = folder / "virtrace_doctor_--json"
    sections = json.loads(report.read_text())["sections"]
    assert f"Daemon {stock_lab.pid}" in [section["title"] for section in sections]
    taken = folder / f"virtrace_snapshot_--json_-p_{stock_lab.pid}"
    shown = virtrace("show", "--json", str(taken))
    assert json.loads(shown.stdout)["domains"][0]["name"] == "vm1"
    read = json.loads(virtrace("fleet", "--json", str(report), str(taken)).stdout)
    assert read["left_out"] == []
