"""What a real daemon and the real kernel write into their logs, and what a snapshot makes of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import bring_up
from tests.support.command import virtrace
from tests.support.faulting import FAULTS, LIBRARY, PROGRAM, assert_known, build_faulting
from tests.support.hanging import PATIENCE, calling, qemu_of, wait_for
from tests.support.waiting import wait_for_end
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the kernel's log")
ASK = ("domblkinfo", "vm1", "vda")
# Lets a thread go on at a function that reads its argument, with something that is no pointer.
CRASH = """\
python
import gdb
threads = {{one.ptid[1]: one for one in gdb.selected_inferior().threads()}}
threads[{tid}].switch()
gdb.execute("set $orig_rax = -1")
gdb.execute("set $rip = virBitmapSize")
gdb.execute("set $rdi = 0x18")
end
detach
"""


def told(text: str, folder: Path) -> dict[str, Any]:
    file = folder / "log.txt"
    file.write_text(text)
    done = virtrace("snapshot", "--json", "--stacks", file)
    assert done.returncode == 1, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_a_crash_in_the_log_of_the_kernel(tmp_path: Path) -> None:
    lab = bring_up()
    try:
        pid = lab.pid
        tasks = Path(f"/proc/{pid}/task").iterdir()
        names = {int(task.name): (task / "comm").read_text().strip() for task in tasks}
        tid = next(tid for tid, name in names.items() if name == "rpc-libvirtd")
        script = tmp_path / "crash.gdb"
        script.write_text(CRASH.format(tid=tid))
        command = ["gdb", "-nx", "-batch", "-p", str(pid), "-x", str(script)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        wait_for_end(pid)
    finally:
        lab.down()
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace")
    lines = [line for line in log.stdout.splitlines() if f"[{tid}]: segfault" in line]
    if log.returncode or not lines:
        pytest.skip("this kernel's log cannot be read, or has no crashes")
    # The tests give the daemon copies of its files: the kernel knows them by other names.
    (named,) = (one.name for one in Path("/usr/lib").rglob("libvirt.so.0.*.0"))
    line = re.sub(r" in [^ \[]+\[", f" in {named}[", lines[-1])
    document = told(f"{log.stdout}\n{line}", tmp_path)
    first = document["verdicts"][0]
    assert first["verdict"] == "crashed"
    assert re.match(
        r"The daemon crashed with SIGSEGV reading address 0x[0-9a-f]{2}, a NULL pointer and an ",
        first["says"],
    )
    assert re.search(rf"in virBitmapSize\+0x[0-9a-f]+ \({named}\)", first["says"])
    (thread,) = document["threads"]
    assert (thread["tid"], thread["name"], thread["role"]) == (tid, "rpc-libvirtd", "worker")
    assert document["crash"]["signal"] == signal.SIGSEGV


def test_each_kind_of_fault_in_the_log_of_the_kernel(tmp_path: Path) -> None:
    """Of a program of the tests under the name of a daemon."""
    program = build_faulting(tmp_path)
    pids = []
    for fault in FAULTS:
        with subprocess.Popen([program, tmp_path / "usr/lib" / LIBRARY, fault.function]) as process:
            pids.append(process.pid)
        assert process.returncode == -fault.signal
    log = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace")
    if log.returncode or f"{PROGRAM}[{pids[0]}]" not in log.stdout:
        pytest.skip("this kernel's log cannot be read, or has no crashes")
    for fault, pid in zip(FAULTS, pids):
        assert_known(fault, pid, log.stdout, tmp_path)


def test_calls_that_gave_up_in_the_log_of_the_daemon(stock_lab: Lab, tmp_path: Path) -> None:
    """After the 30 s that libvirt waits for a job."""
    with stock_lab.stalled(), calling(stock_lab, ASK):
        document, verdict = wait_for(stock_lab, "qemu-stopped")
        root = next(one for one in document["threads"] if one["tid"] == verdict["thread"])
        suspending = stock_lab.virsh_command("suspend", "vm1")
        failed = subprocess.run(suspending, capture_output=True, text=True, timeout=PATIENCE)
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
    assert "cannot acquire state change lock" in failed.stderr
    log = stock_lab.folder / "cache/libvirt/libvirtd.log"
    lines = [line for line in log.read_text().splitlines() if "Cannot start job" in line]
    (line,) = (line for line in lines if f"owned by ({root['own_tid']} " in line)
    found = told(line, tmp_path)
    first = found["verdicts"][0]
    assert first["verdict"] == "held-job"
    assert re.fullmatch(
        rf"vm1 was blocked by virDomainGetBlockInfo \(thread {root['own_tid']}\): its job query, "
        r"held for [3-9]\d\.0 s\. These gave up: virDomainSuspend on vm1 \(thread \d+\)\.",
        first["says"],
    )
    (domain,) = found["domains"]
    assert (domain["name"], domain["uuid"], domain["id"]) == ("vm1", None, None)
    (job,) = domain["jobs"]
    assert (job["work"], job["owner"]) == ("query", root["own_tid"])
    # The log has whole seconds.
    (held,) = document["domains"][0]["jobs"]
    assert abs(job["since"] - held["since"]) < 1.1
