"""virtrace in one file, on releases of which nothing is there but Python."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.tracing import printed_info
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE
from tools import pyz
from virtrace.lab.daemon import Lab
from virtrace.lab.roots import ensure_root, inside

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a root file system"),
]
SUITES = ("bullseye", "bookworm", "trixie", "sid")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the file is, and what it writes."""
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as made:
        pyz.build(Path(made, "virtrace.pyz"))
        yield Path(made)


def command(root: Path, folder: Path, *words: str) -> list[str]:
    """The line that runs the file in a root. It finds no package but its own."""
    run = ("env", "-i", "--chdir=/mnt", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "python3", "-B")
    return inside(root, {"/mnt": folder}, [*run, "virtrace.pyz", *words])


def run(root: Path, folder: Path, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        command(root, folder, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def test_the_same_sources_give_the_same_file(folder: Path) -> None:
    again = folder / "again.pyz"
    pyz.build(again)
    assert again.read_bytes() == (folder / "virtrace.pyz").read_bytes()
    again.unlink()


@pytest.mark.parametrize("suite", SUITES)
def test_it_needs_python_alone(stock_lab: Lab, folder: Path, suite: str) -> None:
    root = ensure_root(suite, print, ("python3",))
    for absent in ("gdb", "pip3", "virsh", "gcc"):
        assert not (root / "usr/bin" / absent).exists()
    trace, pid = f"{suite}.jsonl", str(stock_lab.pid)
    line = command(root, folder, "record", "blockinfo", "-p", pid, "--calls", "1", "-o", trace)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as recording:
        assert recording.stdout is not None
        printed = b""
        while b"to end" not in printed:
            assert select.select([recording.stdout], [], [], PATIENCE)[0], printed
            more = os.read(recording.stdout.fileno(), 1 << 16)
            assert more, printed
            printed += more
        answer = stock_lab.virsh_checked("domblkinfo", "vm1", "vda")
        printed += recording.stdout.read()
        assert recording.wait(PATIENCE) == 0, printed
    assert_untraced_and_intact(stock_lab.pid)

    shown = json.loads(run(root, folder, "show", "--json", trace))
    (call,) = shown["calls"]
    assert [call["root"]["returned"]["info"]] == printed_info(answer)
    assert "vm1" in run(root, folder, "explain", trace).split("\n")[0]

    snapshot = f"{suite}.snapshot"
    run(root, folder, "snapshot", "-p", pid, "-o", snapshot)
    taken = json.loads((folder / snapshot).read_text())
    assert [verdict["verdict"] for verdict in taken["verdicts"]] == ["healthy"]

    bundle = f"{suite}.tar.gz"
    run(root, folder, "bundle", trace, "-o", bundle)
    run(root, folder, "bundle", "verify", bundle)
    run(root, folder, "show", "--html", f"{suite}.html", trace)
    assert "blockinfo" in run(root, folder, "recipe", "list")
    assert "works here" in run(root, folder, "doctor", "-p", pid).split("\n")[0]
    left = {file.name for file in folder.iterdir()} - {"virtrace.pyz"}
    assert {name for name in left if name.startswith(suite)} == {
        *(trace, snapshot, bundle, f"{suite}.html", f"{bundle.removesuffix('.tar.gz')}.map.json"),
    }
    assert left == {name for name in left if name.split(".")[0] in SUITES}
