"""Debug info from a debuginfod server, a real one, asked before the attach."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gdb.harness import SOURCES, Daemon
from tests.support.command import VIRTRACE
from tests.support.waiting import PATIENCE, wait_until
from virtrace.binary.reader import read_by_child
from virtrace.trace.reader import read_trace

pytestmark = pytest.mark.matrix

MODULES = ("libvirt.so.0.9000.0", "libvirt_driver_qemu.so")


@pytest.fixture
def stripped(build: Callable[[str], Path], tmp_path: Path) -> Path:
    """The optimized program with its debug info in files of their own, elsewhere."""
    folder = tmp_path / "program"
    shutil.copytree(build("optimized"), folder, symlinks=True)
    (tmp_path / "debug").mkdir()
    for name in MODULES:
        debug = tmp_path / "debug" / f"{name}.debug"
        subprocess.run(["objcopy", "--only-keep-debug", folder / name, debug], check=True)
        subprocess.run(["strip", folder / name], check=True)
    return folder


@pytest.fixture
def server(stripped: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a user's environment says of it."""
    if not shutil.which("debuginfod") or not shutil.which("debuginfod-find"):
        pytest.skip("debuginfod is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["debuginfod", "-F", "-p", str(port), "-d", ":memory:", str(tmp_path / "debug")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        urls = {"DEBUGINFOD_URLS": f"http://127.0.0.1:{port}"}
        try:
            # It has scanned the folder when it answers; a cache of its own, so that its earlier
            # answers do not count.
            asking = {**os.environ, **urls, "DEBUGINFOD_CACHE_PATH": str(tmp_path / "asked")}
            build_id = read_by_child(stripped / MODULES[1]).build_id
            assert build_id is not None
            find = ["debuginfod-find", "debuginfo", build_id]

            def has_found() -> bool:
                shutil.rmtree(tmp_path / "asked", ignore_errors=True)
                return not subprocess.run(find, env=asking, capture_output=True).returncode

            wait_until(has_found, "debuginfod answers")
            yield {**urls, "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache")}
        finally:
            process.terminate()


def levels(daemon: Daemon, output: Path, environment: dict[str, str]) -> dict[str, str]:
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb"]
    done = subprocess.run(
        [*command, "-p", str(daemon.pid), "-o", str(output), "--seconds", "0.2"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return {probe["name"]: probe["level"] for probe in read_trace(output).header["probes"]}


def test_what_this_host_lacks_is_fetched(
    stripped: Path, server: dict[str, str], tmp_path: Path
) -> None:
    daemon = Daemon(stripped)
    try:
        without = levels(daemon, tmp_path / "without.jsonl", {})
        assert without["qemuDomainGetBlockInfo"] == "missing"
        fetched = levels(daemon, tmp_path / "with.jsonl", server)
        assert fetched["qemuDomainGetBlockInfo"] == "dwarf"
        assert fetched["virDomainGetBlockInfo"] == "dwarf"
        nobody = {**server, "DEBUGINFOD_URLS": "http://127.0.0.1:1"}
        nobody["DEBUGINFOD_CACHE_PATH"] = str(tmp_path / "empty")
        assert levels(daemon, tmp_path / "nobody.jsonl", nobody) == without
    finally:
        daemon.end()


def lines_traced(daemon: Daemon, output: Path, environment: dict[str, str]) -> list[str | None]:
    """The text of each line of a traced call, recorded where the source is out of sight."""
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb"]
    options = ["-p", str(daemon.pid), "-o", str(output), "--calls", "1"]
    with subprocess.Popen(
        [*hidden, str(SOURCES), *command, *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as recording:
        assert recording.stdout is not None
        assert any("Ctrl-C" in line for line in recording.stdout)
        daemon.do("call vm1 vda")
        recording.communicate(timeout=PATIENCE)
    assert recording.returncode == 0
    return [e.values.get("text") for e in read_trace(output).events if e.type == "line"]


def test_the_source_is_fetched_for_the_text_of_lines(
    stripped: Path, server: dict[str, str], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can hide the source")
    daemon = Daemon(stripped)
    try:
        texts = lines_traced(daemon, tmp_path / "with.jsonl", server)
        assert "info->capacity = stats->capacity;" in texts
        assert None not in texts
    finally:
        daemon.end()
