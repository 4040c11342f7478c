"""What is said of a daemon in danger before GDB attaches to it, and kept in the trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import SCRIPTS, Daemon, Tracing, start

from virtrace.errors import DONE
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
