"""`virtrace snapshot` of a real libvirtd that hangs, in each way that can be made here."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import SECONDS, virtrace
from tests.support.hanging import (
    PATIENCE,
    calling,
    qemu_of,
    snapshot,
    thread_of,
    wait_for,
)
from tests.support.paths import REPOSITORY
from virtrace.image.core import CoreImage
from virtrace.lab.daemon import Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the threads")
ASK = ("domblkinfo", "vm1", "vda")
OBJECT_SIZES = REPOSITORY / "tests" / "support" / "object_sizes.py"


def test_a_saved_snapshot_is_private_and_the_same_document(stock_lab: Lab, tmp_path: Path) -> None:

    file = tmp_path / "now.snapshot"
    done = virtrace("snapshot", "-p", stock_lab.pid, "-o", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The daemon is healthy")
    assert file.stat().st_mode & 0o777 == 0o600
    shown = virtrace("show", file)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[:3] == done.stdout.splitlines()[:3]
    assert virtrace("explain", file).stdout == shown.stdout
    document = json.loads(virtrace("show", "--json", file).stdout)
    assert document == json.loads(file.read_text())


@pytest.fixture
def crash(stock_lab: Lab, tmp_path: Path) -> Iterator[tuple[Path, int, int]]:
    """A core, the thread that got SIGSEGV, and its client; the daemon gets no signal of it.

    GDB sees the signal before the daemon does, writes the core, and takes the signal back.
    """
    core = tmp_path / "core"
    with stock_lab.stalled(), calling(stock_lab, ASK) as (call,):
        document, verdict = wait_for(stock_lab, "qemu-stopped")
        thread = thread_of(document, verdict["thread"])
        steps = ("continue", f"gcore {core}", "queue-signal 0", "detach")
        words = [word for step in steps for word in ("-ex", step)]
        command = ["gdb", "-nx", "-q", "-batch", "-p", str(stock_lab.pid), *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gdb:
            status = Path(f"/proc/{stock_lab.pid}/task/{thread['tid']}/status")
            end = time.monotonic() + PATIENCE
            while f"TracerPid:\t{gdb.pid}\n" not in (now := status.read_text()) or "t (" in now:
                assert time.monotonic() < end
            tgkill = 234
            libc = ctypes.CDLL(None)
            assert libc.syscall(tgkill, stock_lab.pid, thread["tid"], signal.SIGSEGV) == 0
            assert gdb.wait(PATIENCE) == 0
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
        assert call.wait(PATIENCE) == 0
        yield core, thread["tid"], call.pid


def test_a_core_tells_what_crashed_and_for_whom(
    stock_lab: Lab, crash: tuple[Path, int, int]
) -> None:
    core, tid, client = crash
    done = virtrace("snapshot", "--json", "--core", core)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    first = document["verdicts"][0]
    assert first["verdict"] == "crashed"
    assert first["says"].startswith("The daemon crashed with SIGSEGV")
    assert f"virDomainGetBlockInfo on vm1 (thread {tid})" in first["says"]
    assert document["crash"]["signal"] == signal.SIGSEGV
    thread = document["threads"][0]
    assert thread["tid"] == tid
    assert thread["client"]["pid"] == client
    assert thread["wait"]["command"]["name"] == "query-blockstats"
    assert any(frame.startswith("qemuMonitorSend+") for frame in thread["frames"])
    (domain,) = document["domains"]
    assert (domain["name"], domain["jobs"][0]["owner"]) == ("vm1", tid)
    # Threads have the names that libvirt gave them, as the live daemon's have.
    roles = {one["role"] for one in snapshot(stock_lab)["threads"]}
    assert {one["role"] for one in document["threads"]} >= roles - {
        *("event loop of GLib", "event loop of a domain"),
    }


@pytest.mark.parametrize("how", ["zstd", "lz4", "xz", "gzip"])
def test_a_compressed_core_says_the_same(
    how: str, crash: tuple[Path, int, int], tmp_path: Path
) -> None:
    core = crash[0]
    packed = tmp_path / "packed"
    with packed.open("wb") as output:
        # The fastest: a core has hundreds of megabytes.
        subprocess.run([how, "-1", "-c", str(core)], check=True, stdout=output)
    # The time of a core is that of its file.
    status = core.stat()
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    plain, unpacked = (
        json.loads(virtrace("snapshot", "--json", "--core", file).stdout) for file in (core, packed)
    )
    assert unpacked == plain


def test_what_is_lost_without_the_files_of_the_core_is_told(
    crash: tuple[Path, int, int], tmp_path: Path
) -> None:
    core, tid, _ = crash
    done = virtrace("snapshot", "--json", "--core", core, "--root", tmp_path)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdicts"][0]["verdict"] == "crashed"
    assert document["threads"][0]["tid"] == tid
    (lost,) = (note for note in document["notes"] if "--root" in note)
    assert "are not here as the core had them: /" in lost
    assert re.search(r"libvirtd \(build-id [0-9a-f]{40}\)", lost)


def test_a_file_is_found_by_its_build_id(crash: tuple[Path, int, int], tmp_path: Path) -> None:
    """Where the packages of Fedora link it; all others are at their own paths."""
    core = crash[0]
    root, links = tmp_path / "root", tmp_path / "root/usr/lib/.build-id"
    whole = json.loads(virtrace("snapshot", "--json", "--core", core).stdout)
    for module in CoreImage(core).program.modules:
        file = root / module.path.lstrip("/")
        if "libvirt" in module.name and module.build_id is not None:
            file = links / module.build_id[:2] / module.build_id[2:]
        if module.file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(module.file)
    found = json.loads(virtrace("snapshot", "--json", "--core", core, "--root", root).stdout)
    assert found["threads"] == whole["threads"]
    assert found["notes"] == whole["notes"]


def test_a_signal_that_somebody_sent_has_no_address(crash: tuple[Path, int, int]) -> None:
    """It is no fault: siginfo has a pid and a user where the address of a fault is."""
    document = json.loads(virtrace("snapshot", "--json", "--core", crash[0]).stdout)
    assert document["crash"]["code"] <= 0
    assert document["crash"]["address"] is None
    # GDB or this test.
    assert document["crash"]["sender"] > 0
    assert " at address " not in document["verdicts"][0]["says"]


def test_a_file_that_is_no_core_of_a_daemon_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "core"
    file.write_bytes(b"\x7fELF" + bytes(1000))
    done = virtrace("snapshot", "--core", file)
    assert done.returncode == 3
    assert "is not an intact core file" in done.stderr


def test_a_trace_without_a_call_leads_to_a_snapshot(stock_lab: Lab, tmp_path: Path) -> None:
    with stock_lab.stalled(), calling(stock_lab, ASK):
        wait_for(stock_lab, "qemu-stopped")
        output = tmp_path / "none.jsonl"
        done = virtrace("record", "dominfo", "-p", stock_lab.pid, "--seconds", 1, "-o", output)
        assert done.returncode == 0, done.stderr
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
    assert "A call that began before the trace, and hangs, is not in it." in done.stdout
    assert f"virtrace snapshot -p {stock_lab.pid}" in done.stdout


def test_two_snapshots_tell_what_has_not_moved(stock_lab: Lab, tmp_path: Path) -> None:
    before, after = tmp_path / "before.snapshot", tmp_path / "after.snapshot"
    with stock_lab.stalled(), calling(stock_lab, ASK) as (first,):
        wait_for(stock_lab, "qemu-stopped")
        virtrace("snapshot", "-p", stock_lab.pid, "-o", before)
        with calling(stock_lab, ASK) as (second,):
            wait_for(stock_lab, "qemu-stopped", [second])
            virtrace("snapshot", "-p", stock_lab.pid, "-o", after)
            os.kill(qemu_of(stock_lab), signal.SIGCONT)
    done = virtrace("diff", "--json", before, after)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert [thread["client"]["pid"] for thread in found["stuck"]] == [first.pid]
    assert [thread["client"]["pid"] for thread in found["began"]] == [second.pid]
    assert found["ended"] == []
    counts = {one["name"]: (one["before"], one["after"]) for one in found["counts"]}
    assert counts["clients of libvirtd"] == (1, 2)
    shown = virtrace("diff", before, after)
    assert "1 thread stayed where it was, 0 calls ended, and 1 call began." in shown.stdout


def test_sizes_of_objects_are_those_that_glib_says(stock_lab: Lab) -> None:
    sizes = json.loads(subprocess.check_output([sys.executable, str(OBJECT_SIZES)], text=True))
    document = snapshot(stock_lab)
    found = {
        name: document["object_bytes"][name] // number
        for name, number in document["objects"].items()
    }
    common = found.keys() & sizes.keys()
    assert common >= {"virDomainObj", "virDomainObjList"}
    assert {name: found[name] for name in common} == {name: sizes[name] for name in common}


def in_gdb(*words: str) -> str:
    """What `virtrace snapshot` says inside a GDB that is started like this."""
    script = REPOSITORY / "gdb_scripts" / "virtrace.py"
    command = ["gdb", "-nx", "-q", "-batch", "-x", str(script), *words, "-ex", "virtrace snapshot"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inside_gdb_it_says_the_same_of_a_process(stock_lab: Lab) -> None:
    with stock_lab.stalled(), calling(stock_lab, ASK):
        _, verdict = wait_for(stock_lab, "qemu-stopped")
        said = in_gdb("-p", str(stock_lab.pid))
        os.kill(qemu_of(stock_lab), signal.SIGCONT)
    assert " ".join(verdict["says"].split()) in " ".join(said.split())
    assert "qemuMonitorSend" in said
    held = f"process {stock_lab.pid}; it was looked at once, stopped by a debugger"
    assert held in " ".join(said.split())


def test_inside_gdb_it_says_the_same_of_a_core(crash: tuple[Path, int, int]) -> None:
    core, tid, _ = crash
    said = in_gdb("-c", str(core))
    assert "The daemon crashed with SIGSEGV" in said
    # It is folded at the width of a terminal.
    assert f"(thread {tid})" in " ".join(said.split())
