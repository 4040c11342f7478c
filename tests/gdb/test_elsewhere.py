"""A program whose paths lead to other files here: in a root of its own, or replaced on disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from tests.gdb.harness import HERE, NAME, SCRIPTS, Daemon, Tracing, events, gdb_command, values
from tests.support.command import VIRTRACE
from tests.support.intact import assert_untraced_and_intact
from tests.support.waiting import PATIENCE
from virtrace.binary.elf import LARGEST
from virtrace.binary.reader import read_by_child
from virtrace.errors import NOT_TRACED
from virtrace.trace.reader import Trace, read_trace

LIBRARY = "libvirt.so.0.9000.0"
DRIVER = "libvirt_driver_qemu.so"
GATHER = "qemuDomainBlocksStatsGather"

CONTAIN = [sys.executable, str(HERE.parent / "support" / "contain.py")]
PRIVATE = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
# Takes the root as the lower layer, as container runtimes do; nothing else sees the mounts.
OVERLAY = f"""\
set -e; mount -t tmpfs tmpfs /srv; cd /srv; mkdir upper work root
mount -t overlay -o "lowerdir=$0,upperdir=upper,workdir=work" overlay root
exec {subprocess.list2cmdline(CONTAIN)} /srv/root "$@"
"""
# What enters a root, given behind it.
ENTER = {
    "chroot": ["chroot"],
    "mount namespace": ["unshare", "--mount", *CONTAIN],
    "mount and PID namespace": [*PRIVATE, *CONTAIN],
    "user namespace": [*PRIVATE, "--user", "--map-root-user", *CONTAIN],
    "overlayfs": ["unshare", "--mount", "sh", "-c", OVERLAY],
}
# PROC_PID_INIT_INO of include/linux/proc_ns.h: that of the host.
FIRST_PID_NAMESPACE = 0xEFFFFFFC
# What root may do in a container that was only given --cap-add SYS_PTRACE.
LITTLE_ROOT = ["setpriv", "--bounding-set=-all,+sys_ptrace,+dac_override"]


def in_root(root: Path, path: Path) -> Path:
    """Where a path in that root is found from here."""
    return root / path.relative_to("/")


class Contained(Daemon):
    """Runs in a root of its own, where its folder's path leads to other files."""

    def __init__(self, folder: Path, enter: list[str], root: Path) -> None:
        self._enter = [*enter, str(root)]
        self.root = root
        super().__init__(folder)
        if "--fork" in enter:
            self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())

    def command(self) -> list[str | Path]:
        # Without /proc in there, $ORIGIN leads nowhere.
        return ["env", f"LD_LIBRARY_PATH={self.folder}", *self._enter, *super().command()]


def need_namespaces() -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"]).returncode != 0:
        pytest.skip("only root can give a process a root of its own, and not in every container")


@pytest.fixture
def root(build: Callable[[str], Path], tmp_path: Path) -> Path:
    """A root with the optimized program where this one has the plain one: in tmp_path/program."""
    need_namespaces()
    folder, root = tmp_path / "program", tmp_path / "root"
    shutil.copytree(build("plain"), folder, symlinks=True)
    inside = in_root(root, folder)
    shutil.copytree(build("optimized"), inside, symlinks=True)
    listed = subprocess.check_output(["ldd", inside / NAME], text=True)
    for library in map(Path, re.findall(r"(/\S+) \(0x", listed)):
        if not library.is_relative_to(inside):
            in_root(root, library).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, in_root(root, library))
    return root


@pytest.fixture
def contain_in(root: Path, tmp_path: Path) -> Iterator[Callable[[str], Contained]]:
    started: list[Contained] = []

    def start(place: str) -> Contained:
        # The kernel gives none to a process in a chroot (user_namespaces(7), EPERM).
        if "--user" in ENTER[place] and subprocess.run(["unshare", "--user", "true"]).returncode:
            pytest.skip("no user namespace can be made here")
        started.append(Contained(tmp_path / "program", ENTER[place], root))
        return started[-1]

    yield start
    for daemon in started:
        daemon.end()


def by_record(daemon: Daemon, output: Path, engine: str = "gdb") -> str:
    # Asks the program itself, and waits for its answer.
    ask = f"echo call vm1 vda >/proc/{daemon.pid}/fd/0; grep -qx '[.]' /proc/{daemon.pid}/fd/1"
    done = record(daemon, output, "--", "sh", "-c", ask, engine=engine)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def by_uprobes(daemon: Daemon, output: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can set uprobes")
    namespaces = {os.stat(f"/proc/{pid}/ns/pid").st_ino for pid in ("self", daemon.pid)}
    if len(namespaces) > 1 and FIRST_PID_NAMESPACE not in namespaces:
        pytest.skip("from one PID namespace into another below it, threads have the host's ids")
    return by_record(daemon, output, "uprobes")


def by_gdb(daemon: Daemon, output: Path) -> str:
    tracing = Tracing(exact_line(daemon), {"OUTPUT": str(output)})
    assert tracing.is_on, tracing.ended()
    daemon.do("call vm1 vda")
    status, printed = tracing.finish()
    assert status == 0, printed
    return printed


WAYS = pytest.mark.parametrize("way", [by_record, by_uprobes, by_gdb])


def ways_into(place: str) -> list[ParameterSet]:
    """The ways to trace a program in that place; what a root of the matrix cannot have is marked.

    It is a chroot, in which the kernel makes no user namespace, and has a PID namespace.
    """
    ways = {
        way: "--user" in ENTER[place] or ("--pid" in ENTER[place] and way is by_uprobes)
        for way in (by_record, by_uprobes, by_gdb)
    }
    return [
        pytest.param(place, way, marks=[pytest.mark.host] if host else [])
        for way, host in ways.items()
    ]


def record(
    daemon: Daemon,
    output: Path,
    *arguments: str,
    engine: str = "gdb",
    by: list[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    command = [*VIRTRACE, "record", "blockinfo", "--engine", engine]
    return subprocess.run(
        [*(by or []), *command, "-p", str(daemon.pid), "-o", str(output), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def exact_line(daemon: Daemon) -> list[str]:
    script = str(SCRIPTS / "trace_blockinfo.py")
    return ["gdb", "-nx", "-batch", "-x", script, "-p", str(daemon.pid)]


def assert_true(found: Trace, daemon: Daemon, files: Path) -> None:
    """The program's first call is in the trace, as the program computes its values.

    files: where the files that it runs are now.
    """
    assert found.problems == []
    assert found.header is not None
    modules = found.header["target"]["modules"]
    for module, name in zip(modules, (LIBRARY, DRIVER)):
        assert module["path"] == str(daemon.folder / name)
        assert module["build_id"] == read_by_child(files / name).build_id
    info = {"capacity": 1001, "allocation": 1002, "physical": 1003}
    assert values(found, "virDomainGetBlockInfo", "enter")["disk"] == "vda"
    assert values(found, "virDomainGetBlockInfo", "exit") == {"result": 0, "info": info}
    assert values(found, GATHER, "enter") == {"disk": "vda", "capacity": True}
    stats = values(found, GATHER, "exit")["stats"]
    assert (stats["rd_req"], stats["write_threshold"], stats["physical"]) == (101, 109, 1003)
    assert [event.values["text"][:27] for event in events(found, "qmp.send")] == [
        '{"execute":"query-blockstat',
        '{"execute":"query-named-blo',
    ]
    assert len(events(found, "qmp.reply")) == 2
    threads = {int(name) for name in os.listdir(f"/proc/{daemon.pid}/task")}
    assert {event.tid for event in found.events} <= threads
    assert_untraced_and_intact(daemon.pid)
    assert daemon.do("semaphores") == ["0"]


@pytest.mark.parametrize(("place", "way"), [way for place in ENTER for way in ways_into(place)])
def test_from_outside_of_its_root(
    contain_in: Callable[[str], Contained],
    tmp_path: Path,
    place: str,
    way: Callable[[Daemon, Path], str],
) -> None:
    """Its files are read, and not those that its paths lead to here."""
    daemon = contain_in(place)
    inside = in_root(daemon.root, daemon.folder)
    assert read_by_child(inside / DRIVER).build_id != read_by_child(daemon.folder / DRIVER).build_id
    printed = way(daemon, tmp_path / "t.jsonl")
    if way is not by_gdb:
        assert "warning" not in printed
    assert_true(read_trace(tmp_path / "t.jsonl"), daemon, inside)


def rename(new: Path, old: Path) -> None:
    """Replace a file by another, as a package manager does."""
    beside = old.with_name(f"{old.name}.new")
    shutil.copy(new, beside)
    beside.rename(old)


def rewrite(new: Path, old: Path) -> None:
    """Delete a file and write another, as `make install` does."""
    old.unlink()
    shutil.copy(new, old)


@WAYS
@pytest.mark.parametrize("replace", [rename, rewrite])
def test_replaced_on_disk_since_it_started(
    build: Callable[[str], Path],
    tmp_path: Path,
    way: Callable[[Daemon, Path], str],
    replace: Callable[[Path, Path], None],
) -> None:
    """As by an upgrade: the daemon goes on with the files that it has mapped."""
    if os.geteuid() != 0:
        pytest.skip("only root can read a file that is only mapped")
    folder = tmp_path / "program"
    shutil.copytree(build("optimized"), folder, symlinks=True)
    daemon = Daemon(folder)
    try:
        for name in (LIBRARY, DRIVER):
            replace(build("plain") / name, folder / name)
        way(daemon, tmp_path / "t.jsonl")
        assert_true(read_trace(tmp_path / "t.jsonl"), daemon, build("optimized"))
        doctor = [*VIRTRACE, "doctor", "-p", str(daemon.pid)]
        said = subprocess.run(doctor, stdout=subprocess.PIPE, text=True).stdout
        assert f"{folder / DRIVER} has been replaced since: what is mapped can be read" in said
    finally:
        daemon.end()


@WAYS
def test_replaced_in_a_layer_over_its_own(
    contain_in: Callable[[str], Contained], tmp_path: Path, way: Callable[[Daemon, Path], str]
) -> None:
    """As by an upgrade in a container: the files that it has mapped are only in the lower layer."""
    daemon = contain_in("overlayfs")
    layered = Path(f"/proc/{daemon.pid}/root{daemon.folder}")
    for name in (LIBRARY, DRIVER):
        rewrite(daemon.folder / name, layered / name)
    way(daemon, tmp_path / "t.jsonl")
    assert_true(read_trace(tmp_path / "t.jsonl"), daemon, in_root(daemon.root, daemon.folder))


@pytest.mark.parametrize(("place", "way"), ways_into("mount and PID namespace"))
def test_debug_info_in_its_root(
    contain_in: Callable[[str], Contained],
    root: Path,
    tmp_path: Path,
    place: str,
    way: Callable[[Daemon, Path], str],
) -> None:
    inside = in_root(root, tmp_path / "program")
    for name in (LIBRARY, DRIVER):
        build_id = read_by_child(inside / name).build_id
        assert build_id is not None
        debug = root / "usr/lib/debug/.build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        debug.parent.mkdir(parents=True)
        subprocess.run(["objcopy", "--only-keep-debug", inside / name, debug], check=True)
        subprocess.run(["strip", inside / name], check=True)
    daemon = contain_in(place)
    way(daemon, tmp_path / "t.jsonl")
    found = read_trace(tmp_path / "t.jsonl")
    assert found.header is not None
    levels = {probe["name"]: probe["level"] for probe in found.header["probes"]}
    assert levels[GATHER] == "dwarf"
    assert levels["virDomainGetBlockInfo"] == "dwarf"
    assert_true(found, daemon, inside)


@pytest.fixture
def covered(build: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[[Path], Daemon]]:
    """The optimized program; afterwards, where it lives, another file covers its library."""
    need_namespaces()
    started: list[Daemon] = []

    class Apart(Daemon):
        def command(self) -> list[str | Path]:
            return ["unshare", "--mount", *super().command()]

    def start(cover: Path) -> Daemon:
        shutil.copytree(build("optimized"), tmp_path / "program", symlinks=True)
        daemon = Apart(tmp_path / "program")
        started.append(daemon)
        enter = ["nsenter", "--mount", "--root", f"--target={daemon.pid}"]
        mount = ["mount", "--bind", str(cover), str(daemon.folder / LIBRARY)]
        subprocess.run([*enter, *mount], check=True)
        return daemon

    yield start
    for daemon in started:
        daemon.end()


@pytest.fixture(params=["another file", "a FIFO"])
def cover(request: pytest.FixtureRequest, build: Callable[[str], Path], tmp_path: Path) -> Path:
    if request.param == "another file":
        return build("plain") / LIBRARY
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("way", [by_record, by_uprobes])
def test_another_file_over_its_own(
    covered: Callable[[Path], Daemon],
    cover: Path,
    tmp_path: Path,
    way: Callable[[Daemon, Path], str],
) -> None:
    daemon = covered(cover)
    way(daemon, tmp_path / "t.jsonl")
    assert_true(read_trace(tmp_path / "t.jsonl"), daemon, daemon.folder)


def test_another_file_is_never_taken_for_its_own(
    covered: Callable[[Path], Daemon], cover: Path, tmp_path: Path
) -> None:
    """Where the kernel does not give the mapped file, its path may lead to another."""
    daemon = covered(cover)
    refused = record(daemon, tmp_path / "t.jsonl", by=LITTLE_ROOT)
    assert refused.returncode == NOT_TRACED, refused.stderr
    if cover.is_fifo():
        assert f"{LIBRARY}: it is not a regular file" in refused.stderr
    else:
        assert f"{LIBRARY} that can be read is not the one that process" in refused.stderr
    assert "\ntry: " in refused.stderr
    assert not (tmp_path / "t.jsonl").exists()
    assert_untraced_and_intact(daemon.pid)
    assert daemon.do("call vm1 vda")


@pytest.mark.parametrize("name", [LIBRARY, DRIVER])
def test_what_is_too_large_is_not_read(
    contain_in: Callable[[str], Contained], root: Path, tmp_path: Path, name: str
) -> None:
    os.truncate(in_root(root, tmp_path / "program" / name), 1 << 40)
    daemon = contain_in("mount namespace")
    for command in (exact_line(daemon), gdb_command("blockinfo")):
        tracing = Tracing(command, {"PID": str(daemon.pid), "OUTPUT": str(tmp_path / "t.jsonl")})
        assert not tracing.is_on
        status, printed = tracing.ended()
        assert status == NOT_TRACED
        assert f"{name}: it is larger than {LARGEST >> 20} MiB" in printed
        assert not (tmp_path / "t.jsonl").exists()
        assert_untraced_and_intact(daemon.pid)
    assert daemon.do("call vm1 vda")


def test_scripts_of_its_files_are_not_run(
    contain_in: Callable[[str], Contained], root: Path, tmp_path: Path
) -> None:
    """Also for a user who has told GDB to trust every file."""
    ran, section = tmp_path / "ran", tmp_path / "section"
    section.write_bytes(b"\4gdb.inlined-script\nopen(" + repr(str(ran)).encode() + b", 'w')\n\0")
    library = in_root(root, tmp_path / "program" / LIBRARY)
    add = ["--add-section", f".debug_gdb_scripts={section}"]
    subprocess.run(["objcopy", *add, library], check=True)
    trusting = ["gdb", "-nx", "-batch", "-iex", "set auto-load safe-path /"]
    subprocess.run([*trusting, library], check=True)
    assert ran.exists(), "the script is one that GDB runs"
    ran.unlink()
    daemon = contain_in("mount namespace")
    start = [*trusting, "-x", str(SCRIPTS / "virtrace.py"), "-ex", "virtrace start blockinfo"]
    for number, command in enumerate((start, exact_line(daemon), gdb_command("blockinfo"))):
        output = tmp_path / f"{number}.jsonl"
        tracing = Tracing(command, {"PID": str(daemon.pid), "OUTPUT": str(output)})
        assert tracing.is_on, tracing.ended()
        daemon.do("call vm1 vda")
        assert tracing.finish()[0] == 0
        assert len(events(read_trace(output), "virDomainGetBlockInfo", "exit")) == 1
        assert not ran.exists()
