"""A GDB that is killed while it traces, and what takes its breakpoints out of the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.killed import killed_while_tracing, lives, wait_for_breakpoints
from tests.lab.conftest import bring_up
from tests.support.command import VIRTRACE, virtrace
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import wait_until
from virtrace.cli.main import main
from virtrace.image.process import inspect, read_status
from virtrace.lab.daemon import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = bring_up()
    yield lab
    lab.down()


def semaphores(lab: Lab) -> list[int]:
    module = inspect(lab.pid).module("libvirt_driver_qemu.so")
    assert module is not None
    places = {module.base + probe.semaphore for probe in module.elf.stap_probes()} - {module.base}
    with open(f"/proc/{lab.pid}/mem", "rb", buffering=0) as memory:
        return [int.from_bytes(os.pread(memory.fileno(), 2, at), "little") for at in places]


@pytest.mark.parametrize("wait", [0.0, 0.05])
def test_the_guard_takes_back_what_gdb_left(lab: Lab, tmp_path: Path, wait: float) -> None:
    said = killed_while_tracing(lab, tmp_path, wait=wait).said
    assert "GDB was killed: restored " in said
    assert "GDB was ended by SIGKILL while it traced" in said
    assert lives(lab, lab.pid)
    assert not any(semaphores(lab))
    # Nothing is left to be rescued, and no journal to be believed.
    assert main(["rescue", str(lab.pid)]) == 0


@contextmanager
def tracing(lab: Lab, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A trace whose breakpoints are set; ended, where that was not done inside."""
    command = [*VIRTRACE, "record", "blockinfo", "--engine", "gdb", "-p", str(lab.pid)]
    with subprocess.Popen(
        [*command, "-o", str(folder / "t.jsonl")], stdout=subprocess.PIPE, text=True
    ) as record:
        assert record.stdout is not None
        assert any("Ctrl-C" in line for line in record.stdout)
        wait_for_breakpoints(lab.pid)
        try:
            yield record
        finally:
            record.send_signal(signal.SIGINT)
            record.stdout.read()


def guard_of(lab: Lab) -> int:
    """It has the memory of the daemon open."""
    [guard] = [pid for pid in guards() if f"/proc/{lab.pid}/mem" in open_files(pid)]
    return guard


def guards() -> list[int]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if (read_status(pid) or {}).get("Name") == "virtrace-guard"]


def open_files(pid: int) -> list[str]:
    found = []
    with suppress(FileNotFoundError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def oom_score(pid: int) -> str:
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


def may_prefer() -> bool:
    cap_sys_resource = 24
    status = read_status(os.getpid())
    assert status is not None
    return bool(int(status["CapEff"], 16) >> cap_sys_resource & 1)


def test_the_guard_ends_with_the_trace(lab: Lab, tmp_path: Path) -> None:
    with tracing(lab, tmp_path):
        guard = guard_of(lab)
        status = read_status(lab.pid)
        assert status is not None
        # When memory runs out, the kernel ends others first, where we may say so.
        wanted = ("-1000", "-900") if may_prefer() else (oom_score(os.getpid()),) * 2
        assert (oom_score(guard), oom_score(int(status["TracerPid"]))) == wanted
    wait_until(lambda: not os.path.exists(f"/proc/{guard}"), "the guard ends with its trace", 10)


def killed_with_its_guard(lab: Lab, folder: Path) -> None:
    with tracing(lab, folder):
        status = read_status(lab.pid)
        assert status is not None
        os.kill(guard_of(lab), signal.SIGKILL)
        os.kill(int(status["TracerPid"]), signal.SIGKILL)


def rescue(lab: Lab, *options: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"XDG_CACHE_HOME": str(home)} if home else {})}
    return virtrace("rescue", lab.pid, *options, stdin=subprocess.DEVNULL, env=environment)


@pytest.mark.parametrize("journal", [True, False], ids=["by the journal", "by the files alone"])
def test_rescue(lab: Lab, tmp_path: Path, journal: bool) -> None:
    killed_with_its_guard(lab, tmp_path)
    with pytest.raises(AssertionError, match="was changed"):
        assert_untraced_and_intact(lab.pid)
    home = None if journal else tmp_path

    told = rescue(lab, home=home)
    assert told.returncode == 1, told.stderr
    assert "libvirt_driver_qemu.so+0x" in told.stdout
    assert " cc -> " in told.stdout
    assert f"virtrace rescue {lab.pid} --yes" in told.stdout
    with pytest.raises(AssertionError, match="was changed"):
        assert_untraced_and_intact(lab.pid)

    # Nobody traces a daemon that the next call would end.
    again = virtrace("record", "blockinfo", "--engine", "gdb", "-p", lab.pid, cwd=tmp_path)
    assert again.returncode == 3, again.stdout
    assert "without a debugger" in again.stderr
    assert f"virtrace rescue {lab.pid}" in again.stderr

    done = rescue(lab, "--yes", home=home)
    assert done.returncode == 0, done.stderr
    assert "restored; the process runs" in done.stdout
    assert lives(lab, lab.pid)
    # Only the journal tells what a static probe's semaphore was.
    assert not (journal and any(semaphores(lab)))
    assert rescue(lab, home=home).stdout.startswith("nothing is left in process")


def test_rescue_lets_a_stopped_daemon_run(lab: Lab) -> None:
    os.kill(lab.pid, signal.SIGSTOP)
    told = rescue(lab)
    assert told.returncode == 1
    assert "is stopped (state T)" in told.stdout
    assert rescue(lab, "--yes").returncode == 0
    assert lives(lab, lab.pid)


def test_rescue_leaves_a_traced_process_alone(lab: Lab, tmp_path: Path) -> None:
    with tracing(lab, tmp_path):
        told = rescue(lab, "--yes")
    assert told.returncode == 3
    assert "is traced by gdb" in told.stderr
    assert lives(lab, lab.pid)
