"""Every way that a trace by the kernel's probes ends, on a daemon that clients call all the time.

    python -m tests.faults.uprobe_ends --times 50            # all of them
    python -m tests.faults.uprobe_ends --times 200 killed    # those whose names begin so

After each the daemon must live, with every byte of its code and every counter of its static probes
as before, and the trace must be readable up to its last whole line. Prints what came of each;
docs/safety.md has the figures of a full run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults.ends import run_ends
from tests.faults.killed import lives, wait_for_breakpoints
from tests.support.waiting import wait_until
from virtrace.errors import INCOMPLETE, INTERRUPTED
from virtrace.image.memory import ProcessMemory
from virtrace.image.process import inspect, read_status
from virtrace.lab.daemon import Lab
from virtrace.trace.reader import Trace, read_trace

_PATIENCE = 60
# Raises at the ninth call of a method; `virtrace record` with these arguments.
_RAISING = """
import sys
from virtrace.cli.main import main
from virtrace.engines.uprobes import {module}

calls = 0
real = {module}.{name}

def raising(*args):
    global calls
    calls += 1
    if calls == 9:
        raise RuntimeError("as the test wants it")
    return real(*args)

{module}.{name} = raising
sys.exit(main(sys.argv[1:]))
"""
RAISING = {
    "drain": ("run", "_Run._drain"),
    "decode": ("replay", "Replayer._hit"),
    "write": ("replay", "_Batches.flush"),
}


def record(lab: Lab, output: Path, code: str | None = None) -> subprocess.Popen[str]:
    python = ["-c", code] if code else ["-m", "virtrace.cli.main"]
    options = ["-p", str(lab.pid), "--engine", "uprobes", "-o", str(output)]
    return subprocess.Popen(
        [sys.executable, *python, "record", "blockinfo", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(tracing: subprocess.Popen[str], output: Path, status: int, reason: str | None) -> Trace:
    _, said = tracing.communicate(timeout=_PATIENCE)
    assert tracing.returncode == status, said
    trace = read_trace(output)
    assert (trace.footer["reason"] if trace.footer else None) == reason, said
    return trace


def _a_while() -> None:
    time.sleep(random.uniform(0, 0.5))


def by_signal(number: signal.Signals, lab: Lab, folder: Path) -> None:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    _a_while()
    tracing.send_signal(number)
    ended(tracing, folder / "t.jsonl", INTERRUPTED, "interrupt")


def killed(lab: Lab, folder: Path) -> None:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    _a_while()
    tracing.kill()
    tracing.communicate(timeout=_PATIENCE)
    assert tracing.returncode == -signal.SIGKILL
    # The probes are there a moment before the header is.
    if (folder / "t.jsonl").stat().st_size:
        assert read_trace(folder / "t.jsonl").footer is None


def disk_full(lab: Lab, folder: Path) -> None:
    small = folder / "small"
    small.mkdir()
    # The header and some calls.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=True)
    try:
        tracing = record(lab, small / "t.jsonl")
        _, said = tracing.communicate(timeout=_PATIENCE)
        assert tracing.returncode == INCOMPLETE, said
        assert "cannot write the trace" in said
        assert read_trace(small / "t.jsonl").events
    finally:
        subprocess.run(["umount", small], check=True)


def folder_gone(lab: Lab, folder: Path) -> None:
    output = folder / "gone" / "t.jsonl"
    output.parent.mkdir()
    tracing = record(lab, output)
    wait_for_breakpoints(lab.pid)
    shutil.rmtree(output.parent)
    tracing.send_signal(signal.SIGINT)
    _, said = tracing.communicate(timeout=_PATIENCE)
    assert tracing.returncode == INCOMPLETE, said
    assert "was removed while it was being written" in said


def daemon_killed(lab: Lab, folder: Path) -> None:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    _a_while()
    os.kill(lab.pid, signal.SIGKILL)
    ended(tracing, folder / "t.jsonl", INCOMPLETE, "target-exit")


def guest_restarted(lab: Lab, folder: Path) -> None:
    tracing = record(lab, folder / "t.jsonl")
    wait_for_breakpoints(lab.pid)
    lab.virsh_checked("destroy", "vm1")
    lab.virsh_checked("start", "vm1")
    tracing.send_signal(signal.SIGINT)
    ended(tracing, folder / "t.jsonl", INTERRUPTED, "interrupt")


def raises(what: str, lab: Lab, folder: Path) -> None:
    """Something that is wrong in virtrace itself."""
    module, name = RAISING[what]
    tracing = record(lab, folder / "t.jsonl", _RAISING.format(module=module, name=name))
    ended(tracing, folder / "t.jsonl", INCOMPLETE, "error")


ENDS: dict[str, Callable[[Lab, Path], None]] = {
    **{
        number.name: partial(by_signal, number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    },
    "killed": killed,
    "disk-full": disk_full,
    "folder-gone": folder_gone,
    "guest-restarted": guest_restarted,
    **{f"raises-{what}": partial(raises, what) for what in RAISING},
    "daemon-killed": daemon_killed,
}


def semaphores(pid: int) -> list[int]:
    """Return the counters of the daemon's static probes: above 0 while anything traces them."""
    found = []
    memory = ProcessMemory(pid)
    try:
        for module in inspect(pid).modules:
            if "libvirt" in module.name:
                for probe in module.elf.stap_probes():
                    if probe.semaphore:
                        at = module.base + probe.semaphore
                        found.append(int.from_bytes(memory.read(at, 2), "little"))
    finally:
        memory.close()
    return found


def unharmed(lab: Lab, pid: int) -> bool:
    """Whether the daemon lives, as it was before; the kernel lets a killed tracer's probes go."""

    def is_let_go() -> bool:
        try:
            return lives(lab, pid) and not any(semaphores(pid))
        except AssertionError:
            return False

    status = read_status(pid)
    if status is None or status["State"].startswith("Z"):
        return False
    wait_until(is_let_go, "the kernel to let the daemon go")
    return lives(lab, pid)


if __name__ == "__main__":
    run_ends(__doc__, ENDS, unharmed)
