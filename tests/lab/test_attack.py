"""A user without rights prepares what root will look at, so that root's trace ends the daemon."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.tracing import all_disks, calls_of, record, whole_trace
from tests.support.command import virtrace
from virtrace.binary import x86_64
from virtrace.binary.elf import ElfFile
from virtrace.binary.functions import Functions
from virtrace.image.process import inspect
from virtrace.lab.daemon import Lab

API = "virDomainGetBlockInfo"
STRANGER = 12345
LIBRARIES = ("libvirt.so.0", "libvirt_driver_qemu.so")
# Maps files as a daemon has them, and is called like one.
DAEMON = """
import mmap, sys, time
open("/proc/self/comm", "w").write("libvirtd")
kept = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        kept.append(mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
print("ready", flush=True)
time.sleep(3600)
"""


def move_function(driver: Path, by: int) -> int:
    """Let the tables of a driver say that its method begins later. Where it says so now."""
    [method] = Functions(ElfFile(driver)).callers_of(f"{API}EnsureACL")
    data = bytearray(driver.read_bytes())
    sections = ElfFile(driver).loaded_sections(".eh_frame_hdr", ".rela.dyn")
    header, relocations = sections[".eh_frame_hdr"], sections[".rela.dyn"]

    def replace(old: bytes, new: bytes, within: bytes) -> None:
        at = data.index(within) + within.index(old)
        data[at : at + len(old)] = new

    # The table, the entry that it names, and the pointer in the driver's table of methods.
    old = struct.pack("<i", method - header.address)
    at = header.data.index(old)
    (entry,) = struct.unpack_from("<i", header.data, at + 4)
    replace(old, struct.pack("<i", method + by - header.address), header.data)
    place = header.address + entry + 8
    start, size = struct.unpack_from("<iI", data, place)
    assert place + start == method
    struct.pack_into("<iI", data, place, start + by, size - by)
    pointer = struct.pack("<Qq", x86_64.RELATIVE, method)
    replace(pointer, struct.pack("<Qq", x86_64.RELATIVE, method + by), relocations.data)
    driver.write_bytes(data)
    return method + by


@pytest.fixture
def impostor(stock_lab: Lab) -> Iterator[tuple[int, int]]:
    """The pid of a process that has the daemon's files, its driver patched; what it claims."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a program as another user")
    modules = [inspect(stock_lab.pid).module(name) for name in LIBRARIES]
    with tempfile.TemporaryDirectory(prefix="virtrace-test-", dir="/var/tmp") as place:
        files = []
        for module in modules:
            assert module is not None
            files.append(Path(place, module.name))
            shutil.copyfile(module.file, files[-1])
        # Into the middle of `mov %rsp,%rbp`, behind `push %rbp`.
        claimed = move_function(files[-1], 2)
        os.chmod(place, 0o755)
        user = ["setpriv", f"--reuid={STRANGER}", "--clear-groups"]
        process = subprocess.Popen(
            [*user, "/usr/bin/python3", "-c", DAEMON, *files], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process:
            try:
                assert process.stdout.readline() == "ready\n"
                yield process.pid, claimed
            finally:
                process.kill()


def test_what_a_stranger_claims_reaches_no_other_process(
    stock_lab: Lab, impostor: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pid, claimed = impostor
    driver = inspect(pid).module(LIBRARIES[-1])
    real = inspect(stock_lab.pid).module(LIBRARIES[-1])
    assert driver is not None
    assert real is not None
    assert driver.build_id == real.build_id
    # It is believed of itself alone: there it is an instruction, in the daemon it is none.
    assert driver.elf.callers_of(f"{API}EnsureACL") == [claimed]
    assert inspect(stock_lab.pid).doubts({real.base + claimed: False}) == {
        real.base + claimed: "no instruction begins there"
    }

    # Before the daemon itself is looked at.
    virtrace("doctor", "-p", str(pid))
    looked = virtrace("doctor")
    assert f"Daemon {pid}:" in looked.stdout, looked.stderr
    assert f"Daemon {stock_lab.pid}:" in looked.stdout
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]

    output = tmp_path / "trace.jsonl"
    done = record(stock_lab, output, command=all_disks(stock_lab))
    assert done.returncode == 0, done.stderr
    trace = whole_trace(output)
    [method] = (probe for probe in trace.header["probes"] if probe["name"].endswith("GetBlockInfo")
                and probe["name"] != API)  # fmt: skip
    assert method["level"] == "inferred"
    assert int(method["offset"] or "", 16) == claimed - 2
    assert len(calls_of(trace)) == 4
    assert stock_lab.virsh("domblkinfo", "vm1", "vda").returncode == 0
