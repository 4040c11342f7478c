"""What is said of a daemon in danger before GDB attaches to it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gdb.harness import SCRIPTS, Daemon, Tracing, gdb_command, start
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.errors import DONE, NOT_TRACED
from virtrace.image.process import inspect
from virtrace.trace.reader import read_trace

WARNING = "systemd ends this daemon when it is silent for 3 s (a watchdog)"


@pytest.mark.parametrize("attached", [False, True], ids=["virtrace record", "gdb -x -p"])
def test_a_daemon_with_a_watchdog(
    build: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    daemon = Daemon(build("optimized"))
    try:
        output = tmp_path / "t.jsonl"
        if attached:
            script = str(SCRIPTS / "trace_blockinfo.py")
            command = ["gdb", "-nx", "-batch", "-x", script, "-p", str(daemon.pid)]
            tracing = Tracing(command, {"OUTPUT": str(output)})
        else:
            tracing = start(daemon, output)
        daemon.do("call vm1 vda")
        status, printed = tracing.finish()
        assert status == DONE, printed
        assert f"virtrace: {WARNING}\ntry: " in printed
        assert printed.index(WARNING) < printed.index("to end")
        assert WARNING in read_trace(output).header["host"]["warnings"]
    finally:
        daemon.end()


# Not in the roots of other releases, which have no bpftrace.
@pytest.mark.matrix
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to set a uprobe")
def test_where_another_has_a_uprobe(daemon: Daemon, tmp_path: Path) -> None:
    """Its byte is in the memory, and would be taken for the code that is to be put back."""
    if shutil.which("bpftrace") is None:
        pytest.skip("bpftrace is not installed")
    driver = inspect(daemon.pid).module("libvirt_driver_qemu.so")
    assert driver is not None
    function = "qemuMonitorGetAllBlockStatsInfo"
    probe = f"uprobe:{driver.path}:{function} {{ @calls = count() }}"
    entry = driver.elf.exported_function(function)
    assert entry is not None
    settings = {"PID": str(daemon.pid), "OUTPUT": str(tmp_path / "t.jsonl")}
    with (
        subprocess.Popen(["bpftrace", "-e", probe], stdout=subprocess.PIPE) as bpftrace,
        open(f"/proc/{daemon.pid}/mem", "rb", buffering=0) as memory,
    ):
        at = driver.base + entry
        wait_until(lambda: os.pread(memory.fileno(), 1, at) == b"\xcc", "the uprobe")
        status, printed = Tracing(gdb_command("blockinfo"), settings).ended()
        bpftrace.send_signal(signal.SIGINT)
    assert status == NOT_TRACED, printed
    assert "or bpftrace, perf or SystemTap is tracing there" in printed
    assert_untraced_and_intact(daemon.pid)
    assert len(daemon.do("call vm1 vda")) == 1
