from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.acting import ROOT_ONLY, acting_as_nobody
from tests.support.toolchain import PROBE, build, need
from virtrace.checks.host import engine_section, missing_engines_section, verdict
from virtrace.cli.doctor import add_parser
from virtrace.engines.uprobes.trial import abilities
from virtrace.errors import DONE, NOT_TRACED
from virtrace.record.check import Check, Section
from virtrace.targets import LIBVIRT

API = """
int virDomainGetBlockInfo(void) { return 1; }
int virErrorMsg(void) { return 2; }
int virReportErrorHelper(void) { return 3; }
int virReportSystemErrorFull(void) { return 4; }
"""
DRIVER = """
int qemuMonitorGetAllBlockStatsInfo(void) { return 3; }
__attribute__((used)) static int qemuDomainGetBlockInfo(void) { return 4; }
"""
QMP = PROBE % {"name": "qemu_monitor_send_msg"} + PROBE % {"name": "qemu_monitor_recv_reply"}
PROGRAM = """
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int virDomainGetBlockInfo(void);
int main(int argc, char **argv)
{
    if (argc > 1 && !dlopen(argv[1], RTLD_NOW)) { puts(dlerror()); return 1; }
    puts("running");
    fflush(stdout);
    pause();
    return virDomainGetBlockInfo();
}
"""


class Daemon:
    """A process that is to the doctor what a libvirt daemon is."""

    def __init__(self, folder: Path, driver: str, *flags: str, load: bool = True) -> None:
        library = build(API, folder / "libvirt.so.0.9000.0", "-shared", "-Wl,-soname,libvirt.so.0")
        (folder / "libvirt.so.0").symlink_to(library.name)
        plugin = folder / "libvirt/connection-driver/libvirt_driver_qemu.so"
        build(driver, plugin, "-shared", *flags)
        program = build(PROGRAM, folder / "daemon", str(library), f"-Wl,-rpath,{folder}", "-ldl")
        command = [str(program), *([str(plugin)] if load else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "running\n"

    def __enter__(self) -> str:
        return str(self.process.pid)

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.communicate()


Report = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())

    def run(*arguments: str) -> tuple[int, list[str]]:
        args = parser.parse_args(["doctor", *arguments])
        return args.run(args), capsys.readouterr().out.splitlines()

    return run


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a gdb of ours, which is a shell script, alone on PATH."""
    folder.mkdir()
    gdb = folder / "gdb"
    gdb.write_text(f"#!/bin/sh\n{script}\n")
    gdb.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("driver", "flags", "answer"),
    [
        (DRIVER + QMP, ["-g"], "full chain (levels dwarf and usdt)"),
        (DRIVER, ["-g"], "full chain but for the QMP text (level dwarf)"),
        (DRIVER + QMP, [], "API and QMP text (levels symbol and usdt)"),
        (DRIVER, [], "API only (level symbol)"),
    ],
)
def test_the_answer_comes_first(
    tmp_path: Path, report: Report, driver: str, flags: list[str], answer: str
) -> None:
    need("gdb")
    with Daemon(tmp_path, driver, *flags) as pid:
        status, lines = report("-p", pid)
    assert lines[0].startswith(f"Tracing works here. Daemon {pid}: {answer}")
    assert status == DONE
    assert not any(line.startswith("  problem") for line in lines)
    assert f"  ok       {tmp_path}/daemon, libvirt 9.0.0" in lines
    assert any(
        line.startswith(f"  ok       {tmp_path}/libvirt.so.0.9000.0, build-id") for line in lines
    )
    has_debug_info = any("libvirt_driver_qemu.so has debug info" in line for line in lines)
    assert has_debug_info == (flags == ["-g"])
    # And each probe by itself, as GDB finds it, with what to do for more.
    level = "dwarf" if has_debug_info else "missing"
    told = " ".join(" ".join(lines[lines.index("  recipe blockinfo there:") :]).split())
    assert ("qemuDomainGetBlockInfo dwarf" in told) == (level == "dwarf")
    assert ("for more: `sudo apt install" in told) == (level == "missing")
    assert ("`virtrace pack make`" in told) == (level == "missing")


def test_what_would_make_a_trace_dangerous(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    with Daemon(tmp_path, DRIVER + QMP, "-g") as pid:
        _, lines = report("-p", pid)
    at = next(i for i, line in enumerate(lines) if line.startswith("  note     systemd ends this"))
    assert "--engine uprobes" in lines[at + 1]


def test_driver_that_is_not_loaded_is_looked_at_on_disk(tmp_path: Path, report: Report) -> None:
    need("gdb")
    with Daemon(tmp_path, DRIVER + QMP, load=False) as pid:
        status, lines = report("-p", pid)
    assert status == DONE
    assert "API and QMP text" in lines[0]
    assert any("libvirt_driver_qemu.so is not loaded" in line for line in lines)


def test_a_stopped_daemon_is_the_answer(tmp_path: Path, report: Report) -> None:
    need("gdb")
    with Daemon(tmp_path, DRIVER + QMP) as pid:
        os.kill(int(pid), signal.SIGSTOP)
        os.waitid(os.P_PID, int(pid), os.WSTOPPED | os.WNOWAIT)
        status, lines = report("-p", pid)
    assert status == NOT_TRACED
    assert lines[0].startswith(f"Tracing will not work here: process {pid} is stopped")
    assert any(line.strip() == f"try: let it run again: kill -CONT {pid}" for line in lines)
    assert any("USDT probes" in line for line in lines), "the rest is still told"


def test_a_pid_that_is_not_libvirt(report: Report) -> None:
    status, lines = report("-p", str(os.getpid()))
    assert status == NOT_TRACED
    assert "not a libvirt or QEMU daemon" in lines[0]


def test_real_gdb() -> None:
    need("gdb")
    section = engine_section("gdb")
    assert section.problem is None
    text = [check.text for check in section.checks]
    assert text[0].startswith(f"{shutil.which('gdb')}, version ")
    assert text[1].endswith("inside GDB")
    assert {line.split(":")[0] for line in text[2:]} == {"yaml", "pygments"}


def test_no_gdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    section = engine_section("gdb")
    assert section.problem is None
    [note] = section.checks
    assert note.kind == "note"
    assert note.text == (
        "gdb is not on PATH: the engine gdb cannot trace here; `virtrace recipe`, `doctor`, "
        "`show`, `explain` and `bundle` work without it"
    )
    assert note.remedy is not None
    assert note.remedy.endswith(" gdb")


def test_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    abilities.cache_clear()
    with acting_as_nobody() if os.geteuid() == 0 else nullcontext():
        missing = missing_engines_section()
    assert missing is not None
    assert [check.text for check in missing.checks] == [
        "only root may trace by the kernel's probes",
        "gdb is not installed",
    ]
    assert missing.problem is not None


@ROOT_ONLY
def test_the_kernel_s_probes() -> None:
    abilities.cache_clear()
    with acting_as_nobody():
        [note] = engine_section("uprobes").checks
    assert note.kind == "note"
    assert note.text == "no `--engine uprobes`: only root may trace by the kernel's probes"
    assert note.remedy == "run as root (sudo), or with the capabilities CAP_PERFMON and CAP_BPF"
    section = engine_section("uprobes")
    assert section.title == "The kernel's probes"
    assert [check.kind for check in section.checks] == ["ok"]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ('echo "GNU gdb (GDB) 9.2"', "is version 9.2"),
        ('echo "GNU gdb (GDB) 13.1"; echo "Python is not supported here" >&2', "no usable Python"),
        (
            'echo "GNU gdb (GDB) 13.1"; '
            """echo 'virtrace-answer {"version": [3, 8, 1], "modules": {}}'""",
            "the Python inside this GDB is 3.8.1",
        ),
        (
            'echo "GNU gdb (GDB) 13.1"; '
            """echo 'virtrace-answer {"version": [3, 9, 1], "modules": {"yaml": "no"}}'""",
            "yaml: GDB's Python cannot import it (no)",
        ),
        ("echo libpython3.9.so: cannot open shared object file >&2; exit 127", "does not run: lib"),
    ],
)
def test_gdb_that_will_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    stand_in(tmp_path / "bin", script, monkeypatch)
    problem = engine_section("gdb").problem
    assert problem is not None
    assert text in problem.text
    assert problem.remedy


def test_gdb_version_is_read_from_the_end_of_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'echo "GNU gdb (GDB) Red Hat Enterprise Linux 10.2-11.el9"'
    stand_in(tmp_path / "bin", script, monkeypatch)
    assert engine_section("gdb").checks[0].text.endswith("version 10.2-11.el9")


SEVERAL = (
    "Tracing works here, on several daemons, so name one with -p. "
    "Daemon 1: full chain; Daemon 3: API only"
)
READY = Section("Daemon 1", [Check("ok", "fine")], "full chain")
ALSO_READY = Section("Daemon 3", [Check("ok", "fine")], "API only")
BROKEN = Section("Daemon 2", [Check("problem", "already traced", "wait")])
GOOD = Section("GDB", [Check("ok", "gdb"), Check("note", "old")])
BAD = Section("GDB", [Check("problem", "no gdb", "get it")])


@pytest.mark.parametrize(
    ("general", "daemons", "status", "answer"),
    [
        ([GOOD], [READY], DONE, "Tracing works here. Daemon 1: full chain"),
        ([GOOD], [BROKEN, READY], DONE, "Tracing works here. Daemon 1: full chain"),
        ([GOOD], [READY, BROKEN, ALSO_READY], DONE, SEVERAL),
        ([GOOD], [BROKEN], NOT_TRACED, "Tracing will not work here: already traced"),
        ([BAD], [READY], NOT_TRACED, "Tracing will not work here: no gdb"),
    ],
)
def test_verdict(general: list[Section], daemons: list[Section], status: int, answer: str) -> None:
    assert verdict(general, daemons) == (status, answer)


@pytest.mark.parametrize(
    ("release", "parts"),
    [
        ("ID=debian\nVERSION_CODENAME=bookworm\n", ["-dbgsym", "bookworm-debug"]),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', ["-dbgsym", "ddebs"]),
        ("ID=fedora\n", ["dnf debuginfo-install libvirt-daemon-driver-qemu"]),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', ["dnf debuginfo-install"]),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', ["zypper", "-debuginfo"]),
        ("", ["DEBUGINFOD_URLS"]),
    ],
)
def test_how_to_get_debug_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, parts: list[str]
) -> None:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(release)
    remedy = LIBVIRT.how_to_get_debug_info("libvirt_driver_qemu.so", tmp_path)
    for part in parts:
        assert part in remedy
