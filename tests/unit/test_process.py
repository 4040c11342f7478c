from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.acting import ROOT_ONLY, acting_as_nobody
from tests.support.command import VIRTRACE
from tests.support.toolchain import build
from tests.support.waiting import wait_until
from virtrace.binary.reader import read_by_child
from virtrace.errors import NOT_TRACED, TargetError
from virtrace.image.model import Module, Program
from virtrace.image.process import (
    container_name,
    inspect,
    texts_of_processes,
    user_name,
    yama_refusal,
)
from virtrace.targets import LIBVIRT
from virtrace.targets.processes import (
    check_traceable,
    choose_daemon,
    find_daemons,
    require_modules,
)

# Says that it runs; with "fork" it leaves a child of its own name, with "thread" a thread.
PROGRAM = """
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <pthread.h>
int virLibrary(void);
static void *wait_here(void *argument) { pause(); return argument; }
int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc > 1 && strcmp(argv[1], "thread") == 0)
        pthread_create(&thread, NULL, wait_here, NULL);
    if (argc > 1 && strcmp(argv[1], "fork") == 0 && fork() == 0)
        pause();
    puts("running");
    fflush(stdout);
    pause();
    return VALUE;
}
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program, wait until it says that it runs, and end it after the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: object, **options: Any) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        return process

    yield run
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of a name of its own, linked with a library named like libvirt's."""
    folder = tmp_path_factory.mktemp("daemon")
    library = build(
        "int virLibrary(void) { return 3; }",
        folder / "libvirt.so.0.9010.0",
        "-shared",
        "-Wl,-soname,libvirt.so.0",
    )
    (folder / "libvirt.so.0").symlink_to(library.name)
    return build(
        PROGRAM.replace("VALUE", "virLibrary()"),
        folder / f"virt{os.getpid()}",
        "-pthread",
        str(library),
        f"-Wl,-rpath,{folder}",
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program without libvirt, static: it runs in an empty chroot too."""
    name = f"other{os.getpid()}"
    output = tmp_path_factory.mktemp("other") / name
    return build(PROGRAM.replace("VALUE", "0"), output, "-static", "-pthread")


def refusal(pid: int) -> TargetError:
    with pytest.raises(TargetError) as caught:
        check_traceable(pid)
    assert caught.value.exit_status == NOT_TRACED
    assert caught.value.remedy
    return caught.value


def test_what_proc_tells(start: Start, daemon: Path) -> None:
    running = start(daemon)
    process = check_traceable(running.pid)
    assert process.pid == running.pid
    assert process.exe == str(daemon)
    assert LIBVIRT.version_of(process) == "9.10.0"
    library = process.module("libvirt.so.0")
    assert library is not None
    assert library.path == str(daemon.parent / "libvirt.so.0.9010.0")
    assert library.file.samefile(library.path)
    assert not library.deleted
    assert library.contains(library.start)
    assert not library.contains(library.end)
    assert library.build_id is not None
    assert process.module("libvirt.so") is not None
    assert process.module("libvir") is None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    age = uptime - process.start_time / os.sysconf("SC_CLK_TCK")
    assert -1 < age < 60


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("libvirt.so.0.9000.0", "9.0.0"),
        ("libvirt.so.0.12008.0", "12.8.0"),
        ("libvirt.so.0.7000.0", "7.0.0"),
        ("libvirt.so.0.5006.0", "5.6.0"),
        ("libvirt.so.0.10000.1", "10.0.1"),
        ("libvirt.so.0", None),
        ("libvirt-qemu.so.0.9000.0", None),
    ],
)
def test_version_from_the_file_name(name: str, version: str | None) -> None:
    path = f"/usr/lib/{name}"
    module = Module(path, Path(path), start=0, end=4096, offset=0, deleted=False)
    assert LIBVIRT.version_of(Program("/x", Path("/"), (module,))) == version


def test_no_such_process() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert f"no process {ended.pid}" in refusal(ended.pid).what


def test_zombie(daemon: Path, start: Start) -> None:
    running = start(daemon)
    running.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
    assert "zombie" in refusal(running.pid).what
    assert find_daemons(daemon.name) == []


def test_not_libvirt(start: Start, other: Path) -> None:
    running = start(other)
    assert f"is {other}, not a libvirt or QEMU daemon" in refusal(running.pid).what


def test_thread_of_a_daemon(start: Start, daemon: Path) -> None:
    running = start(daemon, "thread")
    threads = [int(name) for name in os.listdir(f"/proc/{running.pid}/task")]
    (thread,) = set(threads) - {running.pid}
    error = refusal(thread)
    assert f"thread of process {running.pid}" in error.what
    assert error.remedy == f"-p {running.pid}"
    assert [found.pid for found in find_daemons(daemon.name)] == [running.pid]


def test_stopped(start: Start, daemon: Path) -> None:
    running = start(daemon)
    running.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
    error = refusal(running.pid)
    assert "stopped" in error.what
    assert error.remedy.endswith(f"kill -CONT {running.pid}")
    running.send_signal(signal.SIGCONT)
    stat = Path(f"/proc/{running.pid}/stat")
    wait_until(lambda: stat.read_text().split()[2] == "S", "it sleeps")
    check_traceable(running.pid)


TRACER = """
import ctypes, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
PTRACE_SEIZE = 0x4206
if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_SEIZE, child.pid, 0, 0):
    sys.exit(ctypes.get_errno())
print("running", flush=True)
child.wait()
"""


def test_another_tracer_is_named(start: Start, daemon: Path) -> None:
    tracer = start(sys.executable, "-c", TRACER, daemon)
    (found,) = find_daemons(daemon.name)
    error = refusal(found.pid)
    assert "already traced by" in error.what
    assert f"(pid {tracer.pid}: {sys.executable} -c" in error.what


def test_replaced_library(tmp_path: Path, start: Start, daemon: Path) -> None:
    library = daemon.parent / "libvirt.so.0.9010.0"
    copy = tmp_path / library.name
    shutil.copy(library, copy)
    (tmp_path / "libvirt.so.0").symlink_to(copy.name)
    running = start(daemon, env={"LD_PRELOAD": str(tmp_path / "libvirt.so.0")})
    before = check_traceable(running.pid).module("libvirt.so.0")
    assert before is not None
    assert before.path == str(copy)
    build_id = before.build_id
    copy.unlink()
    build("int virLibrary(void) { return 4; }", copy, "-shared", "-Wl,-soname,libvirt.so.0")
    after = inspect(running.pid).module("libvirt.so.0")
    assert after is not None
    assert after.deleted
    if os.geteuid() == 0:
        assert after.build_id == build_id, "the mapped file, not the new one"
        check_traceable(running.pid)
    # Root that may not look behind the paths, and any other user.
    little = ["setpriv", "--bounding-set=-all,+sys_ptrace"] if os.geteuid() == 0 else []
    record = [*VIRTRACE, "record", "blockinfo"]
    done = subprocess.run(
        [*little, *record, "-p", str(running.pid)], capture_output=True, text=True
    )
    assert done.returncode == NOT_TRACED
    assert f"{copy} has been replaced or removed" in done.stderr
    assert "run as root (sudo), or restart the daemon" in done.stderr


@ROOT_ONLY
def test_other_users_process(start: Start, daemon: Path) -> None:
    running = start(daemon)
    with acting_as_nobody():
        error = refusal(running.pid)
        (found,) = find_daemons(daemon.name)
    assert f"{daemon.name}) belongs to root" in error.what
    assert error.remedy == "run as root (sudo)"
    assert (found.pid, found.user, found.exe) == (running.pid, "root", None)
    check_traceable(running.pid)


@ROOT_ONLY
def test_chroot(tmp_path: Path, start: Start, other: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(other, root / other.name)
    running = start(shutil.which("chroot"), root, f"/{other.name}")
    process = inspect(running.pid)
    assert process.exe == f"/{other.name}"
    module = process.module(other.name)
    assert module is not None
    assert module.path == f"/{other.name}"
    assert module.file.samefile(root / other.name)
    (found,) = find_daemons(other.name)
    assert str(found) == f"/{other.name} of user root, in the chroot {root}"


@ROOT_ONLY
def test_another_mount_namespace(start: Start, other: Path) -> None:
    unshare = ["unshare", "--mount", "--propagation", "unchanged"]
    if subprocess.run([*unshare, "true"]).returncode != 0:
        pytest.skip("this root may not make a mount namespace (a container without CAP_SYS_ADMIN)")
    start(*unshare, other)
    (found,) = find_daemons(other.name)
    assert str(found).endswith(" of user root, in another mount namespace (a container?)")


CONTAINER = "3f" * 32
POD = "kubepods-burstable-pod1c0ffee1_2f4b_4f8e_9f0e_1d2c3b4a5f60.slice"


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        (f"0::/kubepods.slice/{POD}/cri-containerd-{CONTAINER}.scope\n", "container 3f3f3f3f3f3f"),
        (f"0::/machine.slice/libpod-{CONTAINER}.scope/container\n", "container 3f3f3f3f3f3f"),
        (f"4:memory:/docker/{CONTAINER}\n0::/\n", "container 3f3f3f3f3f3f"),
        (f"0::/docker/{'00' * 32}/docker/{CONTAINER}\n", "container 3f3f3f3f3f3f"),
        ("0::/system.slice/libvirtd.service\n", "another mount namespace (a container?)"),
    ],
)
def test_container_by_the_name_that_its_runtime_shows(cgroup: str, name: str) -> None:
    assert container_name(cgroup) == name


@ROOT_ONLY
def test_other_files_under_the_same_names(tmp_path: Path, start: Start, daemon: Path) -> None:
    """As in a container: the path leads to one file here, and to another in there."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "true"]).returncode != 0:
        pytest.skip("this root may not make a mount namespace (a container without CAP_SYS_ADMIN)")
    other = tmp_path / "other"
    shutil.copytree(daemon.parent, other, symlinks=True)
    library = other / "libvirt.so.0.9010.0"
    build("int virLibrary(void) { return 5; }", library, "-shared", "-Wl,-soname,libvirt.so.0")
    script = f'mount --bind {other} {daemon.parent} && exec {daemon} "$@"'
    running = start(*unshare, "sh", "-c", script)
    module = check_traceable(running.pid).module("libvirt.so.0")
    assert module is not None
    assert module.path == str(daemon.parent / library.name)
    assert module.file.samefile(library)
    assert (
        module.build_id
        == read_by_child(library).build_id
        != read_by_child(Path(module.path)).build_id
    )


def test_choosing_a_daemon(start: Start, daemon: Path) -> None:
    with pytest.raises(TargetError, match=f"no {daemon.name} is running"):
        choose_daemon(daemon.name)
    one = start(daemon, "fork")
    assert choose_daemon(daemon.name) == one.pid, "a daemon's own child is no daemon"
    two = start(daemon)
    with pytest.raises(TargetError) as caught:
        choose_daemon(daemon.name)
    user = user_name(os.geteuid())
    assert caught.value.lines() == [
        "virtrace: 2 daemons are running",
        "try: one of",
        f"     -p {one.pid}  {daemon} of user {user}",
        f"     -p {two.pid}  {daemon} of user {user}",
    ]


def test_the_daemon_that_has_loaded_the_modules_is_chosen(
    start: Start, daemon: Path, tmp_path: Path
) -> None:
    """As on a host with one daemon for each driver."""
    driver = build("int unused;", tmp_path / "libvirt_driver_storage.so", "-shared")
    one = start(daemon)
    two = start(daemon, env={"LD_PRELOAD": str(driver)})
    modules = ("libvirt.so.0", "libvirt_driver_storage.so")
    assert choose_daemon(daemon.name, modules) == two.pid
    require_modules(check_traceable(two.pid), modules)
    with pytest.raises(TargetError) as caught:
        require_modules(check_traceable(one.pid), modules)
    assert caught.value.exit_status == NOT_TRACED
    assert caught.value.lines() == [
        f"virtrace: process {one.pid} ({daemon}) has not loaded libvirt_driver_storage.so, which "
        "this recipe traces",
        "try: trace libvirtd or virtstoraged; `virtrace doctor` lists the daemons that run",
    ]
    with pytest.raises(TargetError) as caught:
        choose_daemon(daemon.name, ["libvirt_driver_network.so"])
    assert caught.value.exit_status == NOT_TRACED
    user = user_name(os.geteuid())
    assert caught.value.lines() == [
        "virtrace: no running daemon has loaded libvirt_driver_network.so, which this recipe "
        "traces",
        "try: start libvirtd or virtnetworkd; these run",
        f"     -p {one.pid}  {daemon} of user {user}",
        f"     -p {two.pid}  {daemon} of user {user}",
    ]


# As a container's runtime does it: ptrace is refused, and all else allowed.
FILTERED = """
import ctypes, struct, sys
from virtrace.image.process import ptrace_is_filtered
from virtrace.targets import LIBVIRT
from virtrace.targets.processes import check_traceable
from virtrace.errors import TargetError
def step(code, yes, no, value):
    return struct.pack("HBBI", code, yes, no, value)
load, equal, answer = 0x20, 0x15, 0x06
steps = step(load, 0, 0, 0) + step(equal, 0, 1, int(sys.argv[2]))
steps += step(answer, 0, 0, 0x00050001) + step(answer, 0, 0, 0x7fff0000)
filter_ = ctypes.create_string_buffer(steps)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(filter_)))
assert not ptrace_is_filtered()
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program) == 0
try:
    check_traceable(int(sys.argv[1]))
except TargetError as error:
    print(error.what)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names its system calls by number")
@pytest.mark.parametrize(("call", "filtered"), [(101, True), (156, False)], ids=["ptrace", "other"])
def test_seccomp(start: Start, daemon: Path, call: int, filtered: bool) -> None:
    command = [sys.executable, "-c", FILTERED, str(start(daemon).pid), str(call)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("a seccomp filter forbids ptrace here" in done.stdout) is filtered


@pytest.mark.parametrize(
    ("scope", "may_trace_all", "part"),
    [
        (0, False, None),
        (1, True, None),
        (1, False, "sysctl kernel.yama.ptrace_scope=0"),
        (2, True, None),
        (2, False, "run as root (sudo)"),
        (3, True, "reboot"),
    ],
)
def test_yama(scope: int, may_trace_all: bool, part: str | None) -> None:
    error = yama_refusal(scope, may_trace_all)
    if part is None:
        assert error is None
    else:
        assert error is not None
        assert str(scope) in error.what
        assert part in error.remedy


def test_what_does_not_answer_does_not_hide_the_others(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    with ExitStack() as ends:
        pids = []
        # Who reads the second one's input from a pipe waits for as long as nobody writes to that.
        for source in (file.open(), subprocess.PIPE, file.open()):
            process = ends.enter_context(subprocess.Popen(["sleep", "1000"], stdin=source))
            ends.callback(process.kill)
            pids.append(process.pid)
        found = texts_of_processes([*pids, 1 << 22], "fd/0", 100)
    assert found == {pids[0]: "text", pids[2]: "text"}
